"""Losses that take gradients themselves, and layers that no gradient comes to."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankLSTM, LowRankModel

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 8)).astype("float32")
Y = rng.standard_normal((16, 8)).astype("float32")

# The second pass of the other finds other inputs, at other matrices.
ONE_PASS = pytest.mark.parametrize("integrator", partly_slow(["parallel"], ["rank_adaptive"]))


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


class GradientPenalty(LowRankModel):
    """Outputs and inputs of one application are differentiated twice."""

    stop = staticmethod(tf.stop_gradient)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = squared_error(y, self(x, training=True))
        slope = self.stop(tape.gradient(loss, x))
        return loss * (1.0 + tf.reduce_sum(tf.square(slope)))


def make(model_class=LowRankModel, integrator="parallel", layer=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    layer = layer or LowRankDense(8, rank=2, use_bias=False)
    model = model_class(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(1.0), "mse", integrator=integrator, truncation=0.0)
    return model


@ONE_PASS
def test_adversarial_training_is_training_on_the_inputs_it_finds(integrator):
    model, plain = make(Adversarial, integrator), make(integrator=integrator)
    plain.train_on_batch(perturbed(plain, X, Y), Y)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(model.layers[-1].kernel, plain.layers[-1].kernel, atol=1e-6)


@pytest.mark.parametrize("integrator", partly_slow(["parallel"], ["rank_adaptive"]))
def test_a_loss_may_be_weighed_by_a_gradient_that_is_stopped(integrator):
    model, plain = make(GradientPenalty, integrator), make(integrator=integrator)
    x = tf.convert_to_tensor(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = squared_error(Y, plain(x))
    weight = 1.0 + float(np.sum(np.square(tape.gradient(loss, x))))
    plain.compile(keras.optimizers.SGD(weight), "mse", integrator=integrator, truncation=0.0)
    plain.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(model.layers[-1].kernel, plain.layers[-1].kernel, atol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_loss_of_a_gradient_of_the_network_is_refused(recurrent):
    class NotStopped(GradientPenalty):
        stop = staticmethod(tf.identity)

    inputs = keras.Input((8,))
    model = NotStopped(inputs, LowRankDense(8, rank=2)(inputs))
    x, y = X, Y
    if recurrent:
        inputs = keras.Input((4, 2))
        model = NotStopped(inputs, LowRankLSTM(8, rank=2)(inputs))
        x = X.reshape(16, 4, 2)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"must not depend on a gradient.*stop_gradient"):
        model.train_on_batch(x, y)


def test_a_map_that_loses_the_gradient_on_the_manifold_is_refused():
    class Mapped(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = LowRankDense(8, rank=3)

        def build(self, input_shape):
            self.inner.build(input_shape)

        def call(self, inputs):
            return keras.ops.vectorized_map(lambda x: self.inner(x[None])[0], inputs)

    model = make(layer=Mapped())
    with pytest.raises(ValueError, match=r"must not be called inside `tf.vectorized_map`"):
        model.fit(X, Y, verbose=0)


@pytest.mark.parametrize("model_class", [keras.Model, LowRankModel])
def test_an_older_compute_loss_without_an_argument_for_training(model_class):
    class Older(model_class):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return squared_error(y, y_pred)

    inputs = keras.Input((8,))
    model = Older(inputs, LowRankDense(8, rank=2)(inputs))
    model.compile("sgd")
    expected = float(squared_error(Y, model(X)))
    history = model.fit(X, Y, batch_size=16, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)


@pytest.mark.parametrize(
    "integrator, way",
    partly_slow(
        [("parallel", {}), ("fixed_rank", {})],
        [
            ("rank_adaptive", {}),
            *(
                (name, {"run_eagerly": True})
                for name in ("parallel", "rank_adaptive", "fixed_rank")
            ),
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
    used, unused, regular = ([v.numpy() for v in head.factors.variables] for head in heads)
    with pytest.warns(UserWarning, match=r"Gradients do not exist for .*\['unused', 'regular'\]"):
        model.fit(X, Y, batch_size=4, epochs=3, verbose=0)
    for before, now in zip(unused, heads[1].factors.variables):
        np.testing.assert_array_equal(now, before)
    # Its own regularizer is a loss that reaches it.
    assert np.linalg.norm(heads[2].S) < 0.9 * np.linalg.norm(regular[1])
    assert integrator == "fixed_rank" or heads[0].factors.rank < len(used[1])


@pytest.mark.parametrize("model_class", [keras.Model, LowRankModel])
def test_other_variables_without_a_gradient_do_not_decay(model_class):
    inputs = keras.Input((8,))
    low = model_class is LowRankModel
    used = LowRankDense(8, rank=3, use_bias=False) if low else keras.layers.Dense(8)
    unused = keras.layers.Dense(3)
    model = model_class(inputs, [used(inputs), unused(inputs)])
    model.compile(keras.optimizers.AdamW(0.05, weight_decay=0.1), ["mse", None])
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


def test_a_layer_in_a_traced_function_of_its_own_is_refused_with_the_cause():
    class Traced(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = LowRankDense(8, rank=3)

        def build(self, input_shape):
            self.inner.build(input_shape)

        @tf.function
        def call(self, inputs):
            return self.inner(inputs)

    model = make(layer=Traced())
    with pytest.raises(ValueError, match=r"`tf.function` of its own"):
        model.fit(X, Y, verbose=0)
