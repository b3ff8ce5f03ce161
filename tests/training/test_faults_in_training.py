"""What training does at the edges: nothing is left half-updated, and nothing breaks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, Parallel, RankAdaptive

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 6)).astype("float32")
Y = rng.standard_normal((16, 3)).astype("float32")

# Light steps and full ones in turns, and algorithms step by step, of one pass and of two.
BOTH = RankAdaptive(adapt_every=2)
INTEGRATORS = pytest.mark.parametrize(
    "integrator", partly_slow([BOTH, FixedRank(adapt_every=1)], [Parallel(adapt_every=1)])
)
ADAPTIVE = pytest.mark.parametrize(
    "integrator", partly_slow([BOTH], [Parallel(adapt_every=1), RankAdaptive(adapt_every=1)])
)


def make(integrator="parallel", optimizer=None, activation=None, **compile_arguments):
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=3, activation=activation, name="low")(inputs)
    model = LowRankModel(inputs, keras.layers.Dense(3, name="head")(x))
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    arguments = {"truncation": 0.1, "run_eagerly": True, **compile_arguments}
    model.compile(optimizer, "mse", integrator=integrator, **arguments)
    return model


def state(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def assert_finite(model):
    """Factors of one rank, finite; so are the moments that follow them."""
    factors = model.get_layer("low").factors
    factors.check_shapes(*(variable.shape for variable in factors.variables))
    for value in state(model):
        assert np.all(np.isfinite(value))
    for variable in model._training.state.variables:
        assert len(variable.shape) < 2 or factors.rank in variable.shape


def assert_whole(model):
    """The same, and the bases are orthonormal."""
    assert_finite(model)
    layer = model.get_layer("low")
    for basis in (layer.U.numpy(), layer.V.numpy()):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)


# Batches.


@ADAPTIVE
def test_batches_of_one(integrator):
    model = make(integrator, keras.optimizers.SGD(0.02), run_eagerly=False)
    history = model.fit(X, Y, batch_size=1, epochs=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert_whole(model)


@INTEGRATORS
def test_an_empty_last_batch_changes_nothing(integrator):
    model = make(integrator, keras.optimizers.SGD(0.02), truncation=0.0)
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    model.fit(batches, verbose=0)
    before = model.get_layer("low").kernel.numpy(), model.get_layer("head").kernel.numpy()
    history = model.fit(batches.map(lambda x, y: (x[:0], y[:0])), verbose=0).history
    after = model.get_layer("low").kernel.numpy(), model.get_layer("head").kernel.numpy()
    for one, other in zip(after, before):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.all(np.isfinite(history["loss"]))
    assert int(model.optimizer.iterations) == 2
    assert_whole(model)


# Gradients.


@INTEGRATORS
def test_a_dead_layer_stays_as_it_is_and_wakes_up(integrator):
    model = make(integrator, activation="relu", truncation=0.0)
    layer = model.get_layer("low")
    layer.bias.assign(np.full(6, -100.0))  # no unit ever fires: every gradient is zero
    before = layer.kernel.numpy()
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0)
    np.testing.assert_allclose(layer.kernel.numpy(), before, atol=1e-6)
    assert_whole(model)
    layer.bias.assign(np.zeros(6))
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0)
    assert np.abs(layer.kernel.numpy() - before).max() > 1e-3
    assert_whole(model)


@ADAPTIVE
@pytest.mark.parametrize("optimizer", partly_slow(["adam"], ["sgd"]))
def test_a_learning_rate_of_a_million_ends_in_an_error_or_in_numbers(integrator, optimizer):
    model = make(integrator, optimizer, run_eagerly=False)
    model.optimizer.learning_rate = 1e6
    error = None
    before = state(model)
    for _ in range(20):
        before = state(model)
        try:
            model.train_on_batch(X, Y)
        except FloatingPointError as raised:
            error = raised
            break
    if error is not None:
        assert "or lower the learning rate" in str(error)
        for one, other in zip(state(model), before, strict=True):
            np.testing.assert_array_equal(one, other)
    assert_finite(model)


# Spectra.


@ADAPTIVE
@pytest.mark.parametrize("truncation", partly_slow([0.5], [0.0]))
def test_equal_singular_values(integrator, truncation):
    # Every basis of the span is a basis of singular vectors, and every rank ends amid a tie.
    model = make(integrator, truncation=truncation)
    layer = model.get_layer("low")
    bases = [np.linalg.qr(rng.standard_normal((6, 3)))[0] for _ in range(2)]
    model.optimizer.learning_rate = 0.0
    layer.set_weights([bases[0], np.eye(3), bases[1], np.zeros(6)])
    before = layer.kernel.numpy()
    model.fit(X, Y, batch_size=8, verbose=0)
    cut = np.linalg.norm(layer.kernel.numpy() - before)
    assert cut <= truncation * np.sqrt(3.0) + 1e-5
    model.optimizer.learning_rate = 0.05
    losses = model.fit(X, Y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert_whole(model)


# Factors that were set by hand.

OTHERS = {
    "scaled": lambda basis: 3.0 * basis,
    "random": lambda basis: rng.standard_normal(basis.shape).astype("float32"),
    "columns that repeat": lambda basis: basis[:, [0, 0, -1]],
    "zero": np.zeros_like,
}


@pytest.mark.parametrize("other", OTHERS)
def test_bases_that_are_not_orthonormal_are_made_so(other):
    model = make("fixed_rank", keras.optimizers.Adam(0.01))  # with moments to be thrown away
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)  # the step that would look at the bases by itself is behind
    layer = model.get_layer("low")
    layer.U.assign(OTHERS[other](layer.U.numpy()))
    layer.V.assign(OTHERS[other](layer.V.numpy()))
    model.optimizer.learning_rate = 0.0
    kernel = layer.kernel.numpy()
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(layer.kernel.numpy(), kernel, atol=1e-5 * max(1, kernel.max()))
    assert_whole(model)


def test_the_momentum_of_a_matrix_that_was_replaced_starts_anew():
    models = [make(truncation=0.0) for _ in range(2)]
    models[1].fit(X, -Y, epochs=3, verbose=0)
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.get_layer("low").U.assign(3.0 * model.get_layer("low").U)
        model.train_on_batch(X, Y)
    kernels = [model.get_layer("low").kernel for model in models]
    np.testing.assert_allclose(*kernels, atol=1e-5)


def test_a_file_of_a_plain_model_is_taken(tmp_path):
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=3, name="low")(inputs)
    plain = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    plain.compile(keras.optimizers.SGD(0.2), "mse")
    plain.fit(X, Y, epochs=5, verbose=0)
    plain.save_weights(tmp_path / "plain.weights.h5")
    model = make(optimizer=keras.optimizers.SGD(0.0))
    model.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(model(X), plain(X), atol=1e-6)
    model.fit(X, Y, verbose=0)
    np.testing.assert_allclose(model(X), plain(X), atol=1e-5)
    assert_whole(model)


def test_a_checkpoint_of_tensorflow_is_looked_at_too(tmp_path):
    model = make(truncation=0.0)
    model.fit(X, Y, verbose=0)
    good = tf.train.Checkpoint(model).write(tmp_path / "good")
    layer = model.get_layer("low")
    layer.U.assign(2.0 * layer.U)
    other = tf.train.Checkpoint(model).write(tmp_path / "other")
    model.fit(X, Y, verbose=0)
    tf.train.Checkpoint(model).read(other)
    model.optimizer.learning_rate = 0.0
    kernel = layer.kernel.numpy()
    model.fit(X, Y, verbose=0)
    np.testing.assert_allclose(layer.kernel, kernel, atol=1e-5)
    assert_whole(model)
    tf.train.Checkpoint(model).read(good)
    model.fit(X, Y, verbose=0)
    assert_whole(model)


def test_factors_of_different_ranks_raise_before_a_step():
    model = make()
    model.train_on_batch(X, Y)
    layer = model.get_layer("low")
    layer.U.assign(np.eye(6, 2))
    before = state(model)
    with pytest.raises(ValueError, match=r"with one rank r.*Received: U \(6, 2\), S \(3, 3\)"):
        model.train_on_batch(X, Y)
    for one, other in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    layer.U.assign(np.eye(6, 3))
    model.fit(X, Y, verbose=0)
    assert_whole(model)


@pytest.mark.parametrize("bad", [(True, False), (False, True)])
def test_nan_in_one_of_two_variables_of_equal_paths_is_found(bad):
    class Shift(keras.layers.Layer):
        def __init__(self, bad, **options):
            super().__init__(**options)
            self.bad = bad

        def build(self, input_shape):
            self.shift = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="w")

        def call(self, inputs):
            return inputs + (keras.ops.sqrt(self.shift) if self.bad else self.shift)

    inputs = x = keras.Input((8,))
    for one in bad:
        inner = keras.Input((8,))
        x = keras.Model(inner, Shift(one, name="shift")(inner))(x)
    model = LowRankModel(inputs, LowRankDense(8, rank=3)(x))
    model.compile("sgd", "mse")
    with pytest.raises(FloatingPointError, match=r"gradient of 'shift/w'"):
        model.fit(np.ones((8, 8)), np.ones((8, 8)), verbose=0)
    assert all(np.isfinite(v.numpy()).all() for v in model.trainable_variables)


def test_factors_that_are_frozen_one_by_one_raise():
    inputs = keras.Input((8,))
    layer = LowRankDense(8, rank=3, name="low")
    model = LowRankModel(inputs, layer(inputs))
    model.compile("sgd", "mse")
    layer.U.trainable = False
    with pytest.raises(ValueError, match=r"trained together.*\['U'\] in layer 'low'"):
        model.fit(np.ones((8, 8)), np.ones((8, 8)), verbose=0)


# `TerminateOnNaN`: the training ends, as in Keras, and nothing of the bad step is kept.


class Terminates(keras.callbacks.TerminateOnNaN):
    pass


class Ends(keras.callbacks.Callback):
    def on_train_end(self, logs=None):
        self.ended = True


@pytest.mark.parametrize("eager", [False, True])
def test_with_terminate_on_nan_training_ends_as_in_keras(eager):
    data = X.copy()
    data[9] = np.nan  # in the third batch
    good = make(run_eagerly=eager)
    good.set_weights((model := make(run_eagerly=eager)).get_weights())
    good.fit(X[:8], Y[:8], batch_size=4, shuffle=False, verbose=0)
    callbacks = [Ends(), Terminates()]
    history = model.fit(
        data, Y, batch_size=4, shuffle=False, epochs=3, callbacks=callbacks, verbose=0
    )
    assert model.stop_training and callbacks[0].ended
    assert len(history.history["loss"]) == 1 and np.isnan(history.history["loss"][0])
    for one, other in zip(model.get_weights(), good.get_weights()):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert_whole(model)
    for without in (lambda: model.fit(data, Y, verbose=0), lambda: model.train_on_batch(data, Y)):
        with pytest.raises(FloatingPointError, match="not finite"):
            without()


def test_a_gradient_that_is_not_finite_ends_it_too():
    """Its loss is a number, and Keras would see it one step later, in the weights."""

    @tf.custom_gradient
    def breaks(x):
        return x, lambda dy: dy / 0.0

    model = make(activation=breaks, run_eagerly=True)
    by_position = (X, Y, 4, 2, 0, _listed(model))
    before = state(model)[: len(model.variables)]
    model.fit(*by_position)
    assert model.stop_training
    for one, other in zip(model.trainable_variables, model.get_weights()):
        assert np.all(np.isfinite(one)) and one.shape == other.shape
    np.testing.assert_array_equal(model.get_layer("low").U, before[0])


def _listed(model):
    return keras.callbacks.CallbackList([Terminates()], add_history=True, model=model)
