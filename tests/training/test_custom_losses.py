"""Losses that take gradients themselves, and layers that no gradient comes to."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.recurrent import LSTM, UNITS, draw, pair

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, Parallel, RankAdaptive

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 8)).astype("float32")
Y = rng.standard_normal((16, 8)).astype("float32")


def squared_error(y, y_pred):
    return tf.reduce_mean(tf.square(y - y_pred))


def perturbed(model, x, y):
    """The fast gradient sign method (arXiv:1412.6572): inputs moved to where the loss is higher."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = squared_error(y, model(x, training=True))
    return tf.stop_gradient(x + 0.5 * tf.sign(tape.gradient(loss, x)))


class Adversarial(LowRankModel):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return squared_error(y, self(perturbed(self, x, y), training=True))


def with_gradient_penalty(model_class, stop=tf.identity):
    """Outputs and inputs of one application are differentiated twice."""

    class GradientPenalty(model_class):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            x = tf.convert_to_tensor(x)  # run eagerly, Keras hands arrays on
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = squared_error(y, self(x, training=True))
            slope = stop(tape.gradient(loss, x))
            return loss * (1.0 + tf.reduce_sum(tf.square(slope)))

    return GradientPenalty


def make(model_class=LowRankModel, integrator="parallel", layer=None, **arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    layer = layer or LowRankDense(8, rank=2, use_bias=False)
    model = model_class(inputs, layer(inputs))
    arguments = {"integrator": integrator, "truncation": 0.0, **arguments}
    model.compile(keras.optimizers.SGD(1.0), "mse", **arguments)
    return model


def test_adversarial_training_is_training_on_the_inputs_it_finds():
    model, plain = make(Adversarial), make(run_eagerly=True)
    plain.train_on_batch(perturbed(plain, X, Y), Y)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(model.layers[-1].kernel, plain.layers[-1].kernel, atol=1e-6)


def test_a_loss_may_be_weighed_by_a_gradient_that_is_stopped():
    model = make(with_gradient_penalty(LowRankModel, tf.stop_gradient), run_eagerly=True)
    plain = make()
    x = tf.convert_to_tensor(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = squared_error(Y, plain(x))
    weight = 1.0 + float(np.sum(np.square(tape.gradient(loss, x))))
    plain.compile(keras.optimizers.SGD(weight), "mse", truncation=0.0, run_eagerly=True)
    plain.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(model.layers[-1].kernel, plain.layers[-1].kernel, atol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_loss_may_depend_on_a_gradient_of_the_network(recurrent):
    """At full rank, where a step is that of Keras."""
    if recurrent:
        low, plain = pair(LSTM)
        x, y = draw(6, 3, 5), draw(6, UNITS)
    else:
        low, plain, x, y = LowRankDense(8, rank=8), keras.layers.Dense(8), X, Y
        low.build(x.shape)
        plain.build(x.shape)
        plain.set_weights([low.kernel, low.bias])
    inputs = keras.Input(x.shape[1:])
    model = with_gradient_penalty(LowRankModel)(inputs, low(inputs))
    full = with_gradient_penalty(keras.Model)(inputs, plain(inputs))
    eager = {"run_eagerly": not recurrent}
    integrator = Parallel(adapt_every=1)
    model.compile(keras.optimizers.SGD(0.5), integrator=integrator, truncation=0.0, **eager)
    full.compile(keras.optimizers.SGD(0.5), **eager)
    before = full(x)
    for _ in range(2):
        losses = model.train_on_batch(x, y), full.train_on_batch(x, y)
        np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(model(x), full(x), atol=1e-5)
    assert np.abs(full(x) - before).max() > 1e-2


class Called(keras.layers.Layer):
    """A layer that calls another one in one way or another."""

    def __init__(self, way):
        super().__init__()
        self.inner, self.way = LowRankDense(8, rank=3, use_bias=False), way
        self.traced = tf.function(self.inner)

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        if self.way == "map":
            return keras.ops.map(lambda x: self.inner(x[None])[0], inputs)
        if self.way == "vectorized_map":
            return keras.ops.vectorized_map(lambda x: self.inner(x[None])[0], inputs)
        if self.way == "function":
            return self.traced(inputs)
        return self.inner(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize(
    "way, integrator",
    partly_slow(
        [
            ("function", "parallel"),
            *((way, RankAdaptive(adapt_every=1)) for way in ("map", "vectorized_map")),
        ],
        [("map", "parallel"), ("vectorized_map", "parallel")],
    ),
)
def test_a_step_is_the_same_in_a_loop_and_in_a_function_of_its_own(way, integrator):
    kernels = []
    for one in ("plainly", way):
        eager = {"run_eagerly": one == "plainly"}
        model = make(integrator=integrator, layer=Called(one), **eager)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        kernels.append(model.layers[-1].inner.kernel)
    np.testing.assert_allclose(*kernels, atol=1e-5)


def test_a_second_pass_through_a_function_of_its_own_is_refused():
    """It was traced with the variables, which do not hold the bases of that pass."""
    model = make(integrator=RankAdaptive(adapt_every=1), layer=Called("function"))
    with pytest.raises(ValueError, match="second pass.*its own traced function"):
        model.fit(X, Y, batch_size=8, verbose=0)


@pytest.mark.parametrize("model_class", [keras.Model, LowRankModel])
def test_an_older_compute_loss_without_an_argument_for_training(model_class):
    class Older(model_class):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return squared_error(y, y_pred)

    inputs = keras.Input((8,))
    model = Older(inputs, LowRankDense(8, rank=2)(inputs))
    model.compile("sgd", run_eagerly=True)
    expected = float(squared_error(Y, model(X)))
    history = model.fit(X, Y, batch_size=16, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)


@pytest.mark.parametrize(
    "integrator, way",
    partly_slow(
        [(Parallel(adapt_every=4), {}), (FixedRank(adapt_every=1), {"run_eagerly": True})],
        [
            (RankAdaptive(adapt_every=4), {}),
            (RankAdaptive(adapt_every=4), {"run_eagerly": True}),
            (FixedRank(adapt_every=1), {}),
        ],
    ),
)
def test_what_the_loss_does_not_reach_stays_as_it_is(integrator, way):
    inputs = keras.Input((8,))
    heads = [
        LowRankDense(8, rank=6, name="used"),
        LowRankDense(8, rank=6, name="unused"),
        LowRankDense(8, rank=2, name="regular", kernel_regularizer="l2"),
    ]
    model = LowRankModel(inputs, [head(inputs) for head in heads])
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1)
    model.compile(optimizer, ["mse", None, None], integrator=integrator, truncation=0.5, **way)
    rank, before = heads[0].rank, [head.kernel.numpy() for head in heads]
    with pytest.warns(UserWarning, match=r"Gradients do not exist for .*\['unused'\]"):
        model.fit(X, Y, batch_size=4, epochs=3, verbose=0)
    np.testing.assert_allclose(heads[1].kernel, before[1], atol=1e-6)
    # Its own regularizer is a loss that reaches it.
    assert np.linalg.norm(heads[2].kernel) < 0.9 * np.linalg.norm(before[2])
    assert not integrator.adapts_rank or heads[0].rank < rank


@pytest.mark.parametrize("model_class", [keras.Model, LowRankModel])
def test_other_variables_without_a_gradient_do_not_decay(model_class):
    inputs = keras.Input((8,))
    low = model_class is LowRankModel
    used = LowRankDense(8, rank=3, use_bias=False) if low else keras.layers.Dense(8)
    unused = keras.layers.Dense(3)
    model = model_class(inputs, [used(inputs), unused(inputs)])
    adamw = keras.optimizers.AdamW(0.05, weight_decay=0.1)
    model.compile(adamw, ["mse", None], run_eagerly=True)
    before = unused.kernel.numpy()
    model.fit(X, Y, batch_size=4, verbose=0)
    np.testing.assert_array_equal(unused.kernel, before)
    assert int(model.optimizer.iterations) == 4


def test_a_loss_that_reaches_no_low_rank_layer_trains_all_else():
    inputs = keras.Input((8,))
    plain = keras.layers.Dense(8)
    model = LowRankModel(inputs, [plain(inputs), LowRankDense(8, rank=3)(inputs)])
    model.compile("sgd", ["mse", None])
    before = plain.kernel.numpy()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        model.fit(X, Y, verbose=0)
    assert np.abs(plain.kernel - before).max() > 1e-4


def test_a_loss_of_nothing_raises_as_in_keras():
    model = make()
    model.compile("sgd", lambda y, y_pred: tf.reduce_mean(y - tf.stop_gradient(y_pred)))
    with pytest.raises(ValueError, match=r"No gradients provided for any variable.*low_rank_dense"):
        model.fit(X, Y, verbose=0)
