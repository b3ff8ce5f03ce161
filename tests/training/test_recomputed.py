"""Layers whose outputs are recomputed in the backward pass: less memory, the same training."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, Parallel, RankAdaptive
from keras_lowrank.layers import LowRankConv2D, LowRankEmbedding, LowRankLSTM

rng = np.random.default_rng(0)
PICTURES = rng.standard_normal((32, 5, 5, 2)).astype("float32")
VECTORS = rng.standard_normal((32, 8)).astype("float32")
INDICES = rng.integers(0, 50, (32, 8)).astype("int32")
Y = rng.standard_normal((32, 8)).astype("float32")


class Block(keras.layers.Layer):
    """Two layers that are recomputed together, and called before, between and after without that.

    Args:
        wrap: callable that takes a function: `tf.recompute_grad`, or one that changes nothing.
    """

    def __init__(self, wrap):
        super().__init__(name="block")
        self.wrap = wrap
        self.first = LowRankDense(16, rank=4, activation="tanh", name="first")
        self.second = LowRankDense(8, rank=4, name="second")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], 16))

    def call(self, inputs):
        def both(x):
            return self.second(self.first(x))

        again = self.wrap(both)
        return both(again(both(again(both(inputs)))))


def block(on):
    inputs = keras.Input((8,))
    return LowRankModel(inputs, Block(tf.recompute_grad if on else lambda f: f)(inputs)), VECTORS


def scope(on):
    if on and not hasattr(keras, "RematScope"):
        pytest.skip("RematScope came with a later version of Keras")
    return keras.RematScope(mode="full") if on else contextlib.nullcontext()


def dense(on):
    inputs = keras.Input((8,))
    with scope(on):
        first = LowRankDense(16, rank=4, activation="tanh", kernel_regularizer="l2")
    return LowRankModel(inputs, LowRankDense(8, rank=4)(first(inputs))), VECTORS


def pictures(on):
    inputs = keras.Input(PICTURES.shape[1:])
    with scope(on):
        first = LowRankConv2D(8, 3, rank=4, activation="relu")
    x = keras.layers.Flatten()(first(inputs))
    return LowRankModel(inputs, keras.layers.Dense(8)(x)), PICTURES


def words(on):
    inputs = keras.Input((8,), dtype="int32")
    with scope(on):
        first = LowRankEmbedding(50, 8, rank=4)
    x = keras.layers.GlobalAveragePooling1D()(first(inputs))
    return LowRankModel(inputs, keras.layers.Dense(8)(x)), INDICES


class Penalized(Block):
    """Uses the kernel of a recomputed layer elsewhere."""

    def call(self, inputs):
        self.add_loss(0.1 * tf.reduce_sum(tf.abs(self.second.kernel)))
        return super().call(inputs)


def penalized(on):
    inputs = keras.Input((8,))
    layer = Penalized(tf.recompute_grad if on else lambda f: f)
    return LowRankModel(inputs, layer(inputs)), VECTORS


@pytest.mark.parametrize(
    "make, integrator, eager",
    partly_slow(
        [
            (block, FixedRank(adapt_every=2), False),
            (dense, Parallel(adapt_every=2), False),
            (words, RankAdaptive(adapt_every=2), True),
            (penalized, Parallel(adapt_every=2), False),
        ],
        [
            (block, RankAdaptive(adapt_every=2), True),
            (dense, RankAdaptive(adapt_every=2), True),
            (pictures, RankAdaptive(adapt_every=2), False),
            (words, Parallel(adapt_every=1), False),
        ],
    ),
)
def test_it_trains_as_without(make, integrator, eager):
    outputs, ranks = [], []
    for on in (False, True):
        keras.utils.set_random_seed(0)
        model, x = make(on)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        model.compile(optimizer, "mse", integrator=integrator, truncation=0.05, run_eagerly=eager)
        model.fit(x, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        outputs.append(model.predict(x, verbose=0))
        ranks.append(list(model.ranks.values()))
    np.testing.assert_allclose(*outputs, atol=1e-5)
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize("integrator", partly_slow([FixedRank], [RankAdaptive]))
def test_a_second_pass_is_refused(integrator):
    model, x = block(True)
    model.compile("sgd", "mse", integrator=integrator(adapt_every=1))
    with pytest.raises(ValueError, match=r"second pass.*recomputed.*larger `adapt_every`"):
        model.fit(x, Y, verbose=0)


class Adversarial(LowRankModel):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean((y - self(x, training=True)) ** 2)
        moved = tf.stop_gradient(x + 0.5 * tf.sign(tape.gradient(loss, x)))
        return tf.reduce_mean((y - self(moved, training=True)) ** 2)


@pytest.mark.slow
def test_what_is_found_for_gradients_that_a_loss_takes_itself_is_left_out():
    outputs = []
    for wrap in (tf.recompute_grad, lambda f: f):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8,))
        model = Adversarial(inputs, Block(wrap)(inputs))
        model.compile(keras.optimizers.SGD(0.1), integrator="rank_adaptive")
        model.fit(VECTORS, Y, batch_size=8, shuffle=False, verbose=0)
        outputs.append(model.predict(VECTORS, verbose=0))
    np.testing.assert_allclose(*outputs, atol=1e-5)


class Language(keras.layers.Layer):
    """A table, a loop, and the table again as the way back; each is recomputed by itself."""

    def __init__(self, wrap):
        super().__init__()
        self.table = LowRankEmbedding(50, 8, rank=4, name="table")
        self.loop = LowRankLSTM(8, rank=3, return_sequences=True, name="loop")
        self.parts = [wrap(part) for part in (self.table, self.loop, self.back)]

    def build(self, input_shape):
        self.table.build(input_shape)
        self.loop.build((*input_shape, 8))

    def back(self, vectors):
        return self.table(vectors, reverse=True)

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs


@pytest.mark.slow
def test_recurrent_layers_and_both_uses_of_an_embedding():
    outputs = []
    for wrap in (tf.recompute_grad, lambda f: f):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8,), dtype="int32")
        model = LowRankModel(inputs, Language(wrap)(inputs))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
        model.fit(INDICES, INDICES, batch_size=8, shuffle=False, verbose=0)
        outputs.append(model.predict(INDICES, verbose=0))
    np.testing.assert_allclose(*outputs, atol=1e-4)
