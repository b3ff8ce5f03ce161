"""What an export is checked on: inputs that the model takes; errors of the model are its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.export import saved_model

FORMATS = {"tf_saved_model": "1", "litert": "m.tflite", "onnx": "m.onnx"}
EVERY = pytest.mark.parametrize("format", FORMATS)

rng = np.random.default_rng(0)
POSITIVE = rng.uniform(0.5, 2.0, (4, 8)).astype("float32")
CURE = r"Pass `example_inputs=`"


class Refuses(keras.layers.Layer):
    """Raises where inputs are not positive, as a decoder of images does on random bytes."""

    def __init__(self, error):
        super().__init__()
        self._error = error

    def call(self, x):
        if tf.executing_eagerly() and float(tf.reduce_min(x)) < 0.0:
            raise self._error
        return x


def model_of(*layers, shape=(8,), dtype=None):
    inputs = keras.Input(shape, dtype=dtype, name="x")
    x = inputs
    for layer in layers:
        x = layer(x)
    return LowRankModel(inputs, LowRankDense(4, rank=2)(x))


def jpeg(size=16):
    image = rng.integers(0, 255, (size, size, 3)).astype("uint8")
    return tf.io.encode_jpeg(image).numpy()


class Decode(keras.layers.Layer):
    def call(self, x):
        def one(text):
            return tf.image.resize(tf.io.decode_jpeg(text, channels=3), (2, 2)) / 255.0

        images = tf.map_fn(one, x, fn_output_signature=tf.TensorSpec((2, 2, 3), "float32"))
        return tf.reshape(images, (-1, 12))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, 12))


def packages(format):
    if format == "onnx":
        pytest.importorskip("tf2onnx")


@EVERY
def test_a_model_that_gives_nan_on_random_input_takes_examples(tmp_path, format):
    packages(format)
    model, path = model_of(keras.ops.log), tmp_path / FORMATS[format]
    with pytest.raises(ValueError, match=rf"model itself returns NaN on random input.*{CURE}"):
        model.export(path, format, verbose=False)
    assert not list(tmp_path.iterdir())
    model.export(path, format, verbose=False, example_inputs=POSITIVE)
    assert path.exists()


@EVERY
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),  # says so, and is still the model's own
        tf.errors.InvalidArgumentError(None, None, "Input is empty."),
        ZeroDivisionError("no mask"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_inside_the_model_is_the_models(tmp_path, format, error):
    packages(format)
    model, path = model_of(Refuses(error)), tmp_path / FORMATS[format]
    with pytest.raises(ValueError, match=rf"model itself fails on random input. {CURE}") as caught:
        model.export(path, format, verbose=False)
    assert "disk" not in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    model.export(path, format, verbose=False, check_data=(POSITIVE, np.zeros(4)))
    assert path.exists()


def test_an_error_on_the_data_for_the_accuracy_is_no_full_disk(tmp_path):
    model = model_of(Refuses(OSError("not an image")))
    data = (np.concatenate([POSITIVE, -POSITIVE]), np.zeros(8))
    with pytest.raises(OSError, match="not an image") as caught:
        model.export(tmp_path / "1", verbose=False, example_inputs=POSITIVE, check_data=data)
    assert "could not be written" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_images_are_decoded_inside_the_file(tmp_path):
    model = model_of(Decode(), shape=(), dtype="string")
    with pytest.raises(ValueError, match=rf"fails on random input. {CURE}.*JPEG|Input is empty"):
        model.export(tmp_path / "1", verbose=False)
    files = np.array([jpeg(), jpeg(9)])
    model.export(tmp_path / "1", verbose=False, example_inputs=files)
    served = tf.saved_model.load(str(tmp_path / "1"))
    np.testing.assert_allclose(served.serve(files), model(files), atol=1e-4)


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_an_input_of_free_size_is_drawn_as_large_as_the_model_needs(tmp_path, format):
    packages(format)
    pools = [keras.layers.MaxPooling2D() for _ in range(5)]
    layers = [*pools, keras.layers.GlobalAveragePooling2D()]
    model_of(*layers, shape=(None, None, 3)).export(
        tmp_path / FORMATS[format], format, verbose=False
    )


def test_examples_are_what_predict_takes_and_one_batch_at_least(tmp_path):
    model = model_of(keras.ops.log)
    data = tf.data.Dataset.from_tensor_slices((POSITIVE, np.zeros(4))).batch(2)
    model.export(tmp_path / "1", verbose=False, example_inputs=data)
    with pytest.raises(ValueError, match=r"arrays of the shapes.*\(samples, 8\). Received"):
        model.export(tmp_path / "2", verbose=False, example_inputs=POSITIVE[:, :3])
    with pytest.raises(ValueError, match=r"one batch of the fixed size 5. Received: 4 samples"):
        model.export(tmp_path / "2", verbose=False, example_inputs=POSITIVE, batch_size=5)


def test_infinite_outputs_agree_with_themselves(tmp_path):
    inputs = keras.Input((8,))
    outputs = LowRankDense(4, rank=2)(inputs) + np.array([0.0, -np.inf, 0.0, np.inf], "float32")
    LowRankModel(inputs, outputs).export(tmp_path / "1", verbose=False)


def test_a_file_that_cannot_run_is_refused_in_our_words(tmp_path, monkeypatch):
    def load(served, function, path):
        def run(*arguments):
            raise RuntimeError("no kernel")

        return run

    monkeypatch.setattr(saved_model, "load", load)
    with pytest.raises(ValueError, match="must run on random input, as the model.*no kernel"):
        model_of().export(tmp_path / "1", verbose=False)
    assert not list(tmp_path.iterdir())
