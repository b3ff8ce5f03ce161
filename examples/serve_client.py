"""Asks TF Serving for predictions, with REST or gRPC.

Sends scikit-learn's handwritten digits, or an .npy file, and prints the predictions and, for the
digits, the accuracy. docs/serving.md shows how to start the server.

    python examples/serve_client.py --model digits
    python examples/serve_client.py --model digits --transport grpc  # tensorflow-serving-api
    python examples/serve_client.py --model NAME --version 2 --input images.npy
"""

import json
import urllib.error
import urllib.request

import numpy as np
from absl import app, flags

HOST = flags.DEFINE_string("host", "localhost", "Where TF Serving runs.")
TRANSPORT = flags.DEFINE_enum("transport", "rest", ["rest", "grpc"], "How to ask it.")
PORT = flags.DEFINE_integer("port", None, "Its port. Without: 8501 for rest, 8500 for grpc.")
MODEL = flags.DEFINE_string("model", "digits", "The model's name, as the server has it.")
VERSION = flags.DEFINE_integer("version", None, "Its version. Without: the newest.")
INPUT = flags.DEFINE_string("input", None, "An .npy file, one sample a row. Without: ten digits.")
INPUT_NAME = flags.DEFINE_string("input_name", None, "Which input. Without: the only one.")
TIMEOUT = flags.DEFINE_float("timeout", 10.0, "Seconds to wait for an answer.", lower_bound=0.0)

_SIGNATURE = "serving_default"


def rest(samples):
    """Returns `{output: array}` with REST; a single output is called `predictions`."""
    rows = samples.tolist()
    if INPUT_NAME.value:
        rows = [{INPUT_NAME.value: row} for row in rows]
    body = {"signature_name": _SIGNATURE, "instances": rows}
    request = urllib.request.Request(
        f"{_address()}:predict", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    predictions = _read(request)["predictions"]
    if not isinstance(predictions[0], dict):
        return {"predictions": np.array(predictions)}
    return {name: np.array([row[name] for row in predictions]) for name in predictions[0]}


def grpc(samples):
    """Returns `{output: array}` with gRPC, which needs the package tensorflow-serving-api."""
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        raise SystemExit(f"{error}: pip install tensorflow-serving-api") from None
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL.value
    request.model_spec.signature_name = _SIGNATURE
    if VERSION.value is not None:
        request.model_spec.version.value = VERSION.value
    with grpc.insecure_channel(f"{HOST.value}:{PORT.value or 8500}") as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            name = INPUT_NAME.value or _only_input(service)
            request.inputs[name].CopyFrom(tf.make_tensor_proto(samples))
            answer = service.Predict(request, timeout=TIMEOUT.value)
        except grpc.RpcError as error:
            raise SystemExit(f"TF Serving did not answer: {error.details()}") from None
    return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}


def _only_input(service):
    """Asks the server for the name of the model's only input."""
    from tensorflow_serving.apis import get_model_metadata_pb2 as metadata

    request = metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = MODEL.value
    answer = service.GetModelMetadata(request, timeout=TIMEOUT.value)
    signatures = metadata.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    names = list(signatures.signature_def[_SIGNATURE].inputs)
    if len(names) != 1:
        raise SystemExit(f"--input_name must be one of {sorted(names)}")
    return names[0]


def _address():
    version = "" if VERSION.value is None else f"/versions/{VERSION.value}"
    return f"http://{HOST.value}:{PORT.value or 8501}/v1/models/{MODEL.value}{version}"


def _read(request):
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT.value) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:  # the server's text says what was wrong
        raise SystemExit(f"TF Serving refused: {error.read().decode()[:300]}") from None
    except OSError as error:
        raise SystemExit(f"TF Serving did not answer: {error}") from None


def _samples():
    """The samples, and their labels or None."""
    if INPUT.value:
        return np.load(INPUT.value), None
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[:10, ..., None] / 16.0).astype("float32"), digits.target[:10]


def main(_):
    samples, labels = _samples()
    outputs = {"rest": rest, "grpc": grpc}[TRANSPORT.value](samples)
    for name, values in outputs.items():
        print(f"{name} {values.shape}:")
        print(values)
    if labels is not None:
        scores = outputs.get("scores", next(iter(outputs.values())))
        print(f"accuracy: {np.mean(scores.argmax(axis=-1) == labels):.0%}")


if __name__ == "__main__":
    app.run(main)
