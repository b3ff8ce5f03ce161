"""Layers that are built late: in the midst of a trace, symbolically, or by their first call."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference.cases import partly_slow

from keras_lowrank import (
    LowRankConv2D,
    LowRankDense,
    LowRankEmbedding,
    LowRankGRU,
    LowRankGRUCell,
    LowRankLSTM,
    LowRankModel,
    LowRankMultiHeadAttention,
)

rng = np.random.default_rng(0)
X = rng.standard_normal((8, 5)).astype("float32")
SEQUENCES = rng.standard_normal((8, 4, 5)).astype("float32")
IMAGES = rng.standard_normal((8, 5, 5, 2)).astype("float32")
TOKENS = rng.integers(0, 9, (8, 4))


class Attends(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = LowRankMultiHeadAttention(2, 3, rank=2)

    def call(self, inputs):
        return self.attention(inputs, inputs)


LATE = {
    "dense": (lambda: LowRankDense(3), X),
    "conv": (lambda: LowRankConv2D(3, 2), IMAGES),
    "embedding": (lambda: LowRankEmbedding(9, 4), TOKENS),
    "lstm": (lambda: LowRankLSTM(3), SEQUENCES),
    "cell": (lambda: layers.RNN(LowRankGRUCell(3)), SEQUENCES),
    "bidirectional": (lambda: layers.Bidirectional(LowRankGRU(3)), SEQUENCES),
    "wrapped": (lambda: layers.TimeDistributed(LowRankDense(3)), SEQUENCES),
    "attention": (Attends, SEQUENCES),
    "nested": (lambda: keras.Sequential([LowRankDense(3)]), X),
}


EVERY_TIME = {"dense", "attention", "wrapped"}


class Calls(LowRankModel):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, keras.Sequential([layers.Flatten(), layers.Dense(1)])

    def call(self, inputs):
        return self.head(self.layer(inputs))


@pytest.mark.parametrize("kind", partly_slow(sorted(EVERY_TIME), sorted(set(LATE) - EVERY_TIME)))
def test_a_plain_sequential_without_an_input(kind):
    """Any optimizer with slots, which Keras makes in the trace as well."""
    make, inputs = LATE[kind]
    model = keras.Sequential([make(), layers.Flatten(), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), "mse")
    losses = [model.fit(inputs, np.ones((8, 1)), verbose=0).history["loss"][0] for _ in range(2)]
    slots = {tuple(v.shape) for v in model.optimizer.variables}
    assert {tuple(v.shape) for v in model.trainable_variables} <= slots
    assert losses[1] < losses[0]


@pytest.mark.parametrize("first", partly_slow(["evaluate"], ["predict", "train_on_batch"]))
def test_a_model_that_is_first_built_by(first):
    model = Calls(LowRankDense(3, rank=2))
    model.compile("adam", "mse")
    target = np.zeros((8, 1))
    if first == "train_on_batch":
        model.train_on_batch(X, target)
    else:
        getattr(model, first)(X, *[target] * (first == "evaluate"), verbose=0)
    model.fit(X, target, verbose=0)
    assert model.ranks and all(map(model._training.state.holds, model.ranks))


# Initializers that mean one definite matrix.


@keras.saving.register_keras_serializable("late")
class Ramp(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.reshape(keras.ops.arange(np.prod(shape), dtype=dtype), shape)


def of_numpy(shape, dtype=None):
    return np.ones(shape, dtype)


def of_tensors(shape, dtype=None):
    return tf.ones(shape, dtype)


DEFINITE = ["ones", "identity", keras.initializers.Constant(2.0), Ramp(), of_numpy, of_tensors]


@pytest.mark.parametrize(
    "initializer", DEFINITE, ids=["ones", "identity", "constant", "own", "numpy", "tensors"]
)
def test_an_initializer_of_a_definite_matrix(initializer):
    """However the layer is built: eagerly, in a trace, symbolically by `compute_output_spec`."""
    eager = LowRankDense(3, rank=3, kernel_initializer=initializer)
    eager.build((None, 5))
    symbolic = LowRankDense(3, rank=3, kernel_initializer=initializer)
    LowRankModel(inputs := keras.Input((5,)), symbolic(inputs))
    traced = LowRankDense(3, rank=3, kernel_initializer=initializer)
    tf.function(lambda: traced(X), autograph=False)()
    spec = Calls(LowRankDense(3, rank=3, kernel_initializer=initializer))
    keras.src.backend.compute_output_spec(spec, keras.KerasTensor((8, 5)))
    plain = layers.Dense(3, kernel_initializer=initializer)
    plain.build((None, 5))
    for layer in (eager, symbolic, traced, spec.layer):
        np.testing.assert_allclose(layer.kernel, plain.kernel, atol=1e-4)


@pytest.mark.parametrize("kind", ["conv", "embedding", "lstm"])
def test_a_constant_in_every_kind_of_layer(kind):
    name = "embeddings_initializer" if kind == "embedding" else "kernel_initializer"
    make = {
        "conv": lambda **o: LowRankConv2D(3, 2, **o),
        "embedding": lambda **o: LowRankEmbedding(9, 4, **o),
        "lstm": lambda **o: LowRankLSTM(3, recurrent_initializer="ones", **o),
    }[kind]
    model = keras.Sequential([make(**{name: "ones"}), layers.Flatten(), layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(LATE[kind][1], np.zeros((8, 1)), verbose=0)


# Layers that only a call builds.


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_an_activation_with_weights(kind):
    activation = layers.PReLU()
    low = {
        "dense": lambda: LowRankDense(3, activation=activation),
        "conv": lambda: LowRankConv2D(3, 2, activation=activation),
    }[kind]()
    inputs = keras.Input(LATE[kind][1].shape[1:])
    model = LowRankModel(inputs, layers.Dense(1)(layers.Flatten()(low(inputs))))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(LATE[kind][1], np.ones((8, 1)), verbose=0)
    assert np.any(activation.alpha)
    assert any(v is activation.alpha for v in model.trainable_variables)
