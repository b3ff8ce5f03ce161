"""What is used more than once: models that go on in another way, shared layers, seeds."""

import keras
import numpy as np
import pytest
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankModel, Parallel

rng = np.random.default_rng(0)
X = rng.standard_normal((32, 8)).astype("float32")
Y = rng.standard_normal((32, 3)).astype("float32")

INTEGRATORS = pytest.mark.parametrize(
    "integrator", partly_slow(["parallel"], ["rank_adaptive", "fixed_rank"])
)


def momentum(learning_rate=0.05):
    return keras.optimizers.SGD(learning_rate, momentum=0.9)


def make(low=None, optimizer=None, seed=0, **compile_arguments):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8,))
    x = (low or LowRankDense(8, rank=6, activation="tanh", name="low"))(inputs)
    x = keras.layers.Dropout(0.2, name="dropout")(x)
    model = LowRankModel(inputs, keras.layers.Dense(3, name="head")(x))
    arguments = {"truncation": 0.3, "run_eagerly": True, **compile_arguments}
    model.compile(optimizer or momentum(), "mse", **arguments)
    return model


def fit(model, epochs=2, shuffle=True):
    return model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=shuffle, verbose=0).history["loss"]


def everything(model):
    """All that a step may change, as bits."""
    variables = [v for v in model.variables if all(v is not m for m in model.metrics_variables)]
    return [v.numpy().tobytes() for v in (*variables, *model.optimizer.variables)]


def assert_orthonormal(layer):
    for basis in (layer.U.numpy(), layer.V.numpy()):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)


# Seeds.


@INTEGRATORS
def test_the_same_seed_gives_the_same_weights_bit_for_bit(integrator):
    graphs = {"integrator": integrator, "run_eagerly": False}
    models = [make(seed=seed, **graphs) for seed in (7, 7, 8)]
    histories = []
    for model, seed in zip(models, (7, 7, 8)):
        keras.utils.set_random_seed(seed)
        histories.append(fit(model))
    assert histories[0] == histories[1] != histories[2]
    assert everything(models[0]) == everything(models[1])
    assert everything(models[0]) != everything(models[2])


def test_fit_twice_is_fit_for_twice_as_long():
    """Bit for bit where every step is a full one; else `fit` ends with one more."""
    for exact in (True, False):
        integrator = Parallel(adapt_every=1) if exact else Parallel()
        models = [make(integrator=integrator) for _ in range(2)]
        whole = fit(models[0], epochs=2, shuffle=False)
        parts = [fit(models[1], epochs=1, shuffle=False)[0] for _ in range(2)]
        if exact:
            assert whole == parts
            assert everything(models[0]) == everything(models[1])
        np.testing.assert_allclose(whole, parts, rtol=1e-3)


# Another optimizer, another set of trained layers.


def test_another_optimizer_starts_as_one_of_a_new_model():
    model = make()
    fit(model)
    fresh = make(optimizer=keras.optimizers.Adam(0.01))
    for one, other in zip(fresh.variables, model.variables, strict=True):
        one.assign(other)
    model.compile(keras.optimizers.Adam(0.01), "mse", truncation=0.3, run_eagerly=True)
    assert fit(model, shuffle=False) == fit(fresh, shuffle=False)
    assert everything(model) == everything(fresh)


@pytest.mark.parametrize("rate", [0.2, 1e-6])
def test_an_optimizer_that_comes_back_forgets_where_the_factors_were(rate):
    """However little another one has moved them meanwhile."""
    first = momentum()
    model, fresh = make(optimizer=first), make()
    low = model.get_layer("low")
    for optimizer in (first, momentum(rate)):
        model.compile(optimizer, "mse", truncation=0.3, run_eagerly=True)
        fit(model)
    for one, other in zip(fresh.variables, model.variables, strict=True):
        one.assign(other)
    model.compile(first, "mse", truncation=0.3, run_eagerly=True)
    for one in (model, fresh):
        one.train_on_batch(X, Y)
    # The step is the first of a momentum: that of the matrix that was left means nothing here.
    np.testing.assert_allclose(low.kernel, fresh.get_layer("low").kernel, atol=1e-6)
    fit(model)
    assert_orthonormal(low)


@INTEGRATORS
def test_a_layer_that_was_frozen_trains_again(integrator):
    model = make(integrator=integrator)
    low, head = model.get_layer("low"), model.get_layer("head")
    fit(model)
    low.trainable = False
    model.compile(momentum(), "mse", integrator=integrator, run_eagerly=True)
    frozen, moving = low.get_weights(), head.kernel.numpy()
    with pytest.warns(UserWarning, match="no trainable low-rank layer"):
        fit(model)
    for one, other in zip(low.get_weights(), frozen):
        np.testing.assert_array_equal(one, other)
    assert np.any(head.kernel.numpy() != moving)
    low.trainable = True
    model.compile(momentum(), "mse", integrator=integrator, run_eagerly=True)
    losses = fit(model, epochs=4)
    assert losses[-1] < losses[0] and np.any(low.kernel.numpy() != _kernel(frozen))
    assert_orthonormal(low)


def test_a_layer_waits_for_compile_to_be_trained_again():
    """Keras's rule, by which a model trains a part of another that is frozen in it alone."""
    inputs = keras.Input((8,))
    low, second = (LowRankDense(8, rank=4, name=name) for name in ("low", "second"))
    model = LowRankModel(inputs, second(low(inputs)))
    low.trainable = False
    model.compile(momentum(), "mse")
    model.fit(X, X, verbose=0)
    low.trainable = True
    before = low.get_weights()
    low.set_weights([-before[0], *before[1:]])
    moving = second.kernel.numpy()
    model.fit(X, X, verbose=0)
    np.testing.assert_array_equal(low.U, -before[0])
    assert np.any(second.kernel.numpy() != moving)


def _kernel(weights):
    u, s, v, _ = weights
    return u @ s @ v.T


# A layer in several models.


@INTEGRATORS
def test_a_layer_of_two_models_trains_in_both(integrator):
    low = LowRankDense(8, rank=6, activation="tanh", name="low")
    arguments = {"integrator": integrator, "truncation": 0.1}
    models = [make(low, seed=seed, **arguments) for seed in range(2)]
    targets = [Y, -Y]
    first = [m.evaluate(X, y, verbose=0) for m, y in zip(models, targets)]
    for _ in range(10):  # the moments of each are of a matrix that the other has moved
        for model, y in zip(models, targets):
            model.train_on_batch(X, y)
    last = [m.evaluate(X, y, verbose=0) for m, y in zip(models, targets)]
    assert last[0] < first[0] and last[1] < first[1]
    assert models[0].ranks == models[1].ranks
    assert models[0].get_layer("low") is models[1].get_layer("low")
    fit(models[0])
    assert_orthonormal(low)


def test_a_layer_that_a_plain_model_has_trained_is_made_fit_for_a_step():
    inputs = keras.Input((8,))
    low = LowRankDense(8, rank=6, name="low")
    plain = keras.Model(inputs, low(inputs))
    plain.compile(keras.optimizers.SGD(0.5), "mse", run_eagerly=True)
    plain.fit(X, X, epochs=4, verbose=0)
    model = make(low, keras.optimizers.SGD(0.0), truncation=0.0)
    kernel = low.kernel.numpy()
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(low.kernel, kernel, atol=1e-5)
    assert_orthonormal(low)


@pytest.mark.parametrize("whole", partly_slow([True], [False]))
def test_a_trained_base_is_taken_over_and_tuned(whole, tmp_path):
    base = make()
    fit(base)
    low = base.get_layer("low")
    inputs = keras.Input((8,))
    if whole:  # the whole model as one layer
        base.trainable = False
        features = base(inputs)
    else:  # its graph up to a layer
        low.trainable = False
        inputs, features = base.input, low.output
    x = LowRankDense(8, rank=2, activation="tanh", name="new")(features)
    model = LowRankModel(inputs, keras.layers.Dense(2, name="other")(x))
    assert list(model.ranks) == [f"{base.name}/low" if whole else "low", "new"]
    before = low.get_weights()
    model.compile(momentum(), "mse", run_eagerly=True)
    losses = [model.train_on_batch(X, Y[:, :2]) for _ in range(10)]
    for one, other in zip(low.get_weights(), before):
        np.testing.assert_array_equal(one, other)
    (base if whole else low).trainable = True
    model.compile(momentum(0.01), "mse", truncation=0.3, run_eagerly=True)
    losses += [model.train_on_batch(X, Y[:, :2]) for _ in range(9)]
    losses += model.fit(X, Y[:, :2], batch_size=len(X), verbose=0).history["loss"]
    assert losses[9] < losses[0] and losses[19] < losses[10]
    assert np.any(low.kernel.numpy() != _kernel(before))
    assert_orthonormal(low)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


@pytest.mark.parametrize(
    "integrator, way",
    partly_slow(
        [("fixed_rank", "fit")], [("rank_adaptive", "fit"), ("parallel", "train_on_batch")]
    ),
)
def test_a_layer_that_a_plain_model_trains_in_between_is_made_fit_again(integrator, way):
    """The steps of the plain model are traced: no assignment is seen on the host."""

    def trained(announce):
        keras.utils.set_random_seed(0)  # of the initializers of the layer
        low = LowRankDense(8, rank=6, name="low")
        eager = {"run_eagerly": way == "fit"}
        model = make(low, integrator=integrator, truncation=0.0, **eager)
        fit(model, shuffle=False)
        if way == "train_on_batch":  # so many steps that the look before each is traced
            for _ in range(20):
                model.train_on_batch(X, Y)
        plain = keras.Model(model.input, low.output)
        plain.compile(keras.optimizers.SGD(0.5), "mse")
        plain.fit(X, X, epochs=10, shuffle=False, verbose=0)
        if announce:
            low.set_weights(low.get_weights())
        model.train_on_batch(X, Y) if way == "train_on_batch" else fit(model, 1, shuffle=False)
        assert_orthonormal(low)
        return low.get_weights()

    for one, other in zip(trained(False), trained(True), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_layer_frozen_without_compile_still_trains_on_orthonormal_bases():
    """Keras's rule: until the next `compile` the step is the one that was traced."""
    model = make(run_eagerly=False)
    fit(model)
    low = model.get_layer("low")
    low.trainable = False
    low.set_weights([2.0 * low.get_weights()[0], *low.get_weights()[1:]])
    fit(model)
    assert_orthonormal(low)
