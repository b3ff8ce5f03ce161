"""What a file holds beside weights: look-up tables that it reads, and nothing that it does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel

FORMATS = {"tf_saved_model": "1", "litert": "m.tflite", "onnx": "m.onnx"}


class Holder(LowRankModel):
    """Holds layers that inference does not call."""

    def __init__(self):
        super().__init__()
        self.tokens = keras.layers.TextVectorization(vocabulary=["a", "b"])
        self.words = keras.layers.StringLookup(vocabulary=["a"])
        self.teacher = keras.layers.Dense(3)
        self.low = LowRankDense(4, rank=2)

    def call(self, inputs):
        return self.low(inputs)


class Scaled(keras.layers.Layer):
    """A layer with a weight and a table of its own."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return self.scale * tf.cast(lookup(self.table, inputs), "float32")


def make_table():
    pairs = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], "int64"))
    return tf.lookup.StaticHashTable(pairs, -1)


def lookup(table, inputs):
    return table.lookup(tf.convert_to_tensor(inputs))


def words_model(layer):
    words = keras.Input((3,), dtype="string", name="words")
    return LowRankModel(words, LowRankDense(4, rank=2)(layer(words)))


@pytest.fixture(scope="module")
def numbers():
    inputs = keras.Input((3,), name="x")
    return LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))


WORDS = np.array([["a", "b", "c"], ["b", "b", "a"]])


@pytest.mark.parametrize("format", FORMATS)
def test_layers_that_were_never_called_and_tables_that_are_not_read_stay_out(tmp_path, format):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    model = Holder()
    model(np.ones((2, 3)))
    model.words(WORDS)  # built, and read by none
    path = tmp_path / FORMATS[format]
    model.export(path, format, verbose=False)
    content = path if path.is_file() else path / "saved_model.pb"
    assert b"HashTable" not in content.read_bytes()


def test_a_table_is_held_wherever_a_layer_has_it(tmp_path):
    model = words_model(Scaled(make_table()))
    model.export(tmp_path / "1", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "1"))
    np.testing.assert_allclose(served.serve(tf.constant(WORDS)), model(WORDS), atol=1e-5)


def test_a_table_that_no_layer_has_is_refused_in_our_words(tmp_path):
    table = make_table()

    class Reads(keras.layers.Layer):
        def call(self, inputs):
            return tf.cast(lookup(table, inputs), "float32")

    model = words_model(Reads())
    with pytest.raises(ValueError, match="must be an attribute of one of its layers.*Received: 1"):
        model.export(tmp_path / "1", verbose=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["layer", "sequential", "subclassed"])
def test_preprocessing_without_inputs_takes_those_of_the_model(numbers, tmp_path, kind):
    scale = keras.layers.Rescaling(0.5)
    if kind == "sequential":
        scale = keras.Sequential([scale])
    if kind == "subclassed":

        class Halve(keras.Model):
            def call(self, inputs):
                return 0.5 * inputs

        scale = Halve()
    numbers.export(tmp_path / "1", verbose=False, preprocessing=scale)
    served = tf.saved_model.load(str(tmp_path / "1"))
    x = np.ones((2, 3), "float32")
    np.testing.assert_allclose(served.serve(x), numbers(0.5 * x), atol=1e-5)


def test_preprocessing_that_takes_other_inputs_says_how_to_give_them(numbers, tmp_path):
    tokens = keras.layers.TextVectorization(vocabulary=["a", "b"], output_sequence_length=3)
    with pytest.raises(ValueError, match=r"`preprocessing`.*keras.Input.*`input_signature`"):
        numbers.export(tmp_path / "1", verbose=False, preprocessing=tokens)
    vectors = keras.Sequential([keras.layers.Dense(3)])
    vectors.build((None, 5))
    numbers.export(tmp_path / "2", verbose=False, preprocessing=vectors)  # has inputs of its own
    assert not (tmp_path / "1").exists()
    signature = [tf.TensorSpec((None,), "string", "text")]
    numbers.export(tmp_path / "1", verbose=False, preprocessing=tokens, input_signature=signature)
    served = tf.saved_model.load(str(tmp_path / "1"))
    text = tf.constant(["a b", "b"])
    np.testing.assert_allclose(served.serve(text), numbers(tokens(text)), atol=1e-5)
