"""The client against servers that take TF Serving's requests and answer by the SavedModel."""

import concurrent.futures
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loaded():
    return tf.saved_model.load(str(ROOT / "saved_models" / "digits" / "1"))


@pytest.fixture(scope="module")
def accuracy(loaded):
    """What the client must print: the model asked directly, on the digits that it sends."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = tf.constant(digits.images[:10, ..., None] / 16.0, tf.float32)
    hits = np.argmax(loaded.serve(images), axis=-1) == digits.target[:10]
    return f"accuracy: {hits.mean():.0%}"


def client(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "serve_client.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def rest_port(loaded):
    serve = loaded.signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/models/digits/versions/1:predict":
                return self.answer(404, {"error": f"Servable not found for request: {self.path}"})
            assert body["signature_name"] == "serving_default"
            rows = [row[name] if isinstance(row, dict) else row for row in body["instances"]]
            (values,) = serve(**{name: tf.constant(rows, tf.float32)}).values()
            return self.answer(200, {"predictions": values.numpy().tolist()})

        def answer(self, status, body):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_rest(rest_port, accuracy, tmp_path):
    done = client(f"--port={rest_port}", "--version=1")
    assert done.returncode == 0, done.stderr
    assert "predictions (10, 10):" in done.stdout
    assert accuracy in done.stdout
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 1)))
    named = client(
        *(f"--port={rest_port}", "--version=1"),
        *(f"--input={tmp_path / 'x.npy'}", "--input_name=keras_tensor"),
    )
    assert "predictions (2, 10):" in named.stdout, named.stderr
    wrong = client(f"--port={rest_port}", "--model=hat")
    assert wrong.returncode == 1
    assert wrong.stderr.strip().endswith('Servable not found for request: /v1/models/hat:predict"}')


def test_grpc(loaded, accuracy):
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("tensorflow_serving")
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    serve = loaded.signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def GetModelMetadata(self, request, context):
            signatures = get_model_metadata_pb2.SignatureDefMap()
            signatures.signature_def["serving_default"].inputs[name].name = name
            answer = get_model_metadata_pb2.GetModelMetadataResponse()
            answer.metadata["signature_def"].Pack(signatures)
            return answer

        def Predict(self, request, context):
            assert request.model_spec.name == "digits"
            assert request.model_spec.version.value == 1
            values = tf.make_ndarray(request.inputs[name])
            answer = predict_pb2.PredictResponse()
            for key, output in serve(**{name: tf.constant(values)}).items():
                answer.outputs[key].CopyFrom(tf.make_tensor_proto(output))
            return answer

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    done = client(f"--port={port}", "--version=1", "--transport=grpc")
    server.stop(0)
    assert done.returncode == 0, done.stderr
    assert "output_0 (10, 10):" in done.stdout and accuracy in done.stdout


def test_no_server_is_one_line():
    done = client("--port=9", "--host=localhost")
    assert done.returncode == 1 and done.stderr.startswith("TF Serving did not answer")
    assert len(done.stderr.splitlines()) == 1
