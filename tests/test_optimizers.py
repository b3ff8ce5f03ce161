"""What the compiled optimizer means for the factors, against full matrices and against Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from reference import optimizers as reference
from reference.cases import few, seeds, shapes, start
from reference.closed_form import matrix, orthonormal, with_spectrum
from reference.full_rank import compare_step_by_step, full_rank_pair
from reference.trajectories import (
    defect,
    fit_one_layer,
    mean_squared_error_gradient,
    tangent_of,
    to_tensors,
)
from reference.truncation import RelativeTolerance

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, Parallel, RankAdaptive, Tolerance
from keras_lowrank.optimizers import Direction, Rule, adaptive, rule_of

Adagrad, Adam, AdamW = (getattr(keras.optimizers, name) for name in ("Adagrad", "Adam", "AdamW"))
RMSprop, SGD = keras.optimizers.RMSprop, keras.optimizers.SGD
INTEGRATORS = pytest.mark.parametrize("integrator", ["parallel", "rank_adaptive", "fixed_rank"])

NEEDS_MUON = pytest.mark.skipif(not hasattr(keras.optimizers, "Muon"), reason="Keras < 3.10")

rng = np.random.default_rng(0)
X, Y = (rng.standard_normal((24, k)).astype("float32") for k in (7, 5))


def full(tangent, factors):
    """The tangent vector as a matrix."""
    u, _, v = (np.asarray(part) for part in factors)
    k, s, l = (np.asarray(part) for part in tangent)
    return k @ v.T + u @ (l - v @ s.T).T


@pytest.mark.parametrize(
    "optimizer, step, tau",
    [
        (lambda: SGD(0.125, momentum=0.9), reference.sgd(0.9), 0.06),
        (lambda: SGD(0.125, momentum=0.9, nesterov=True), reference.sgd(0.9, nesterov=True), 0.06),
        (lambda: Adam(0.03125), reference.adam(), 0.06),
        (lambda: AdamW(0.03125, weight_decay=0.0), reference.adam(), 0.06),
        (lambda: RMSprop(0.03125), reference.rmsprop(), 0.06),
        (lambda: RMSprop(0.015625, momentum=0.5), reference.rmsprop(mu=0.5), 0.06),
        (lambda: Adagrad(0.25), reference.adagrad(), 0.06),
        pytest.param(
            lambda: keras.optimizers.Muon(0.125, weight_decay=None),
            reference.muon(),
            0.3,
            marks=NEEDS_MUON,
        ),
    ],
)
def test_moments_are_those_of_the_full_matrix_while_ranks_change(float64, optimizer, step, tau):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 12))
    y = x @ with_spectrum(rng, 12, 9, 2.0 * 2.0 ** -np.arange(9))
    factors, gradient = start(rng, 12, 9, 4), mean_squared_error_gradient(x, y)
    optimizer = optimizer()
    h, seen = float(optimizer.learning_rate), []
    seen = fit_one_layer("parallel", factors, x, y, optimizer, 40, Tolerance(tau))
    state, rule = {}, RelativeTolerance(tau)
    for kernel, rank in seen:
        factors, state = step(factors, gradient, state, h, rule)
        assert rank == len(factors[1])
        np.testing.assert_allclose(kernel, matrix(factors), atol=1e-7)
    assert rule.margin > 1e-4 and len({rank for _, rank in seen}) > 1


# At full rank: how each option means what Keras means, in one integrator or in all.
OF_KERAS = {
    "momentum": lambda: SGD(0.05, momentum=0.9),
    "nesterov": lambda: SGD(0.05, momentum=0.9, nesterov=True),
    "weight decay": lambda: SGD(0.2, weight_decay=0.1),
    "clipnorm": lambda: SGD(0.2, clipnorm=0.3),
    "global_clipnorm": lambda: SGD(0.2, global_clipnorm=0.8),
    "loss_scale_factor": lambda: SGD(0.1, momentum=0.5, loss_scale_factor=8.0),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(
        SGD(0.1, momentum=0.5, clipnorm=0.5), initial_scale=64.0
    ),
    "schedule": lambda: SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.8), momentum=0.5),
    "most at once": lambda: SGD(
        0.1, momentum=0.5, weight_decay=0.1, global_clipnorm=0.8, loss_scale_factor=8.0
    ),
}


@pytest.mark.parametrize(
    "integrator, name",
    [
        *((Parallel, name) for name in OF_KERAS),
        *(
            (kind, name)
            for kind in (RankAdaptive, FixedRank)
            for name in ("most at once", "nesterov")
        ),
    ],
)
def test_at_full_rank_it_is_the_step_of_keras(integrator, name):
    low, full = full_rank_pair(integrator(), channels=2, filters=8, units=8)
    low.compile(OF_KERAS[name](), "mse", integrator=integrator(), truncation=0.0)
    full.compile(OF_KERAS[name](), "mse")
    compare_step_by_step(low, full)


def test_accumulated_gradients_at_full_rank_are_those_of_keras():
    low, full = full_rank_pair(Parallel(), channels=2, filters=8, units=8)
    options = {"momentum": 0.5, "clipnorm": 0.5, "gradient_accumulation_steps": 3}
    low.compile(SGD(0.2, **options), "mse", truncation=0.0)
    full.compile(SGD(0.2, **options), "mse")
    compare_step_by_step(low, full, steps=18)


def make(optimizer, integrator="parallel", ranks=(4, 3), truncation=0.05, **kwargs):
    inputs = keras.Input((7,))
    x = LowRankDense(6, rank=ranks[0], name="first", activation="tanh")(inputs)
    model = LowRankModel(inputs, LowRankDense(5, rank=ranks[1], name="second")(x))
    model.compile(optimizer, "mse", integrator=integrator, truncation=truncation, **kwargs)
    return model


def fit(model, **kwargs):
    return model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **kwargs).history["loss"]


OPTIMIZERS = {
    "momentum": lambda: SGD(0.05, momentum=0.9),
    "adam": lambda: Adam(0.01),
    "adamw": lambda: AdamW(0.01, weight_decay=0.01),
    "rmsprop": lambda: RMSprop(0.01, momentum=0.5),
    "adagrad": lambda: Adagrad(0.1),
    "accumulation": lambda: SGD(0.1, momentum=0.5, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(Adam(0.01)),
}
if hasattr(keras.optimizers, "Muon"):
    OPTIMIZERS["muon"] = lambda: keras.optimizers.Muon(0.01)


@pytest.mark.parametrize(
    "name, integrator",
    [
        *((name, "parallel") for name in OPTIMIZERS),
        *(
            (name, other)
            for name in ("momentum", "adam")
            for other in ("rank_adaptive", "fixed_rank")
        ),
    ],
)
def test_every_optimizer_trains_with_orthonormal_bases(name, integrator):
    model = make(OPTIMIZERS[name](), integrator)
    losses = fit(model, epochs=12)
    assert losses[-1] < 0.95 * losses[0]
    for layer in (model.get_layer("first"), model.get_layer("second")):
        assert max(defect(layer.U.numpy()), defect(layer.V.numpy())) < 1e-5


# The others hold no other kind of state than these four.
_KINDS_OF_STATE = ("momentum", "adam", "accumulation", "loss scale")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in _KINDS_OF_STATE else pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_training_resumed_from_a_file_is_training_not_interrupted(name, tmp_path):
    """Bit for bit, with ranks that changed before the file was written."""
    model = make(OPTIMIZERS[name](), truncation=0.6)
    fit(model, epochs=2)
    assert list(model.ranks.values()) != [4, 3]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert fit(model, epochs=2) == fit(again, epochs=2)
    for one, two in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["adam", "accumulation", "loss scale"])
def test_a_tensorflow_checkpoint_holds_the_moments(name, tmp_path):
    model, again = make(OPTIMIZERS[name](), truncation=0.35), make(OPTIMIZERS[name]())
    fit(model, epochs=2)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "c"))
    again.compile(OPTIMIZERS[name](), "mse", truncation=0.35)
    fit(again)
    restored = tf.train.Checkpoint(model=again, optimizer=again.optimizer)
    restored.restore(path).assert_existing_objects_matched()
    assert fit(model, epochs=2) == fit(again, epochs=2)


def test_the_state_follows_the_rank_and_is_counted():
    model = make(Adam(0.01), truncation=0.35)
    fit(model, epochs=2)
    ranks = list(model.ranks.values())
    size = sum(np.prod(v.shape) for v in model.optimizer_state.variables)
    # A tangent vector, and one number a row and a column.
    sums = [13, 11]
    assert size == sum(s * r + r**2 + s for s, r in zip(sums, ranks))
    held = sum(s * r + r**2 for s, r in zip(sums, ranks))
    assert model.compression().training == 2 * held


def test_weights_of_another_rank_are_taken_up_with_a_fresh_momentum():
    model, other = make(SGD(0.05, momentum=0.9)), make(SGD(0.05), ranks=(2, 2))
    fit(model)
    model.set_weights(other.get_weights())
    losses = fit(model, epochs=4)
    assert losses[-1] < losses[0]
    basis = model.get_layer("first").U.numpy()
    assert defect(basis) < 1e-5


def test_a_step_that_is_not_finite_leaves_the_moments_alone():
    model = make(Adam(0.01))
    fit(model)
    before = [v.numpy() for v in model.optimizer.variables]
    with pytest.raises(FloatingPointError, match="gradient of layer|the loss"):
        model.train_on_batch(X * np.nan, Y)
    for old, new in zip(before, model.optimizer.variables):
        np.testing.assert_array_equal(old, new.numpy())
    assert np.any(before[-1] != 0)


def test_an_optimizer_goes_on_in_its_model_and_is_refused_in_another():
    optimizer = Adam(0.01)
    model = make(optimizer)
    fit(model)
    count = len(optimizer.variables)
    model.compile(optimizer, "mae")
    fit(model)
    assert len(optimizer.variables) == count and int(optimizer.iterations) == 6
    with pytest.raises(ValueError, match="belongs to the model.*another layer 'first'"):
        make(optimizer)


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((4, 1, 1), 0)
def test_the_direction_of_adam_does_not_depend_on_the_bases(shape, seed):
    """`(U O)(O^T S R)(V R)^T` is the same W; elementwise moments would give another step."""
    rng = np.random.default_rng(seed)
    n, m, r = shape
    u, s, v = start(rng, n, m, r)
    left, right = orthonormal(rng, r, r), orthonormal(rng, r, r)
    G = rng.standard_normal((n, m))
    found = []
    for factors in ((u, s, v), (u @ left, left.T @ s @ right, v @ right)):
        tangent, point = tangent_of(G, factors), to_tensors(factors, "float64")
        rule, squares = adaptive.Adagrad(keras.optimizers.Adagrad()), adaptive.mean_squares(tangent)
        found.append(full(rule.scaled_direction(tangent, *squares, point, 1.0).tangent, point))
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 4, 30])
@pytest.mark.parametrize("noisy, least", [(True, 0.95), (False, 0.7)])
def test_a_step_of_adam_is_about_as_long_as_that_of_keras_at_every_rank(rank, noisy, least):
    """For noise in all directions, and for a gradient of rank 1 inside of the tangent space."""
    rng = np.random.default_rng(rank)
    factors, lengths = start(rng, 60, 30, rank), []
    point = to_tensors(factors, "float64")
    for _ in range(20):
        u, v = (basis @ rng.standard_normal(rank) for basis in (factors[0], factors[2]))
        gradient = rng.standard_normal((60, 30)) if noisy else np.outer(u, v)
        tangent = tangent_of(gradient, factors)
        rule, squares = adaptive.Adagrad(keras.optimizers.Adagrad()), adaptive.mean_squares(tangent)
        direction = rule.scaled_direction(tangent, *squares, point, 1.0).tangent
        lengths.append(float(direction.squared_norm()) ** 0.5)
    # Every entry of a dense kernel would move by about 1.
    assert least <= np.mean(lengths) / (60 * 30) ** 0.5 <= 1.15


def test_weight_decay_shrinks_s_and_leaves_what_is_excluded():
    def shrunk(**excluded):
        optimizer = SGD(0.5, weight_decay=0.1)
        if excluded:
            optimizer.exclude_from_weight_decay(**excluded)
        model = make(optimizer, truncation=0.0)
        layer = model.get_layer("first")
        before = layer.S.numpy(), layer.kernel.numpy()
        model.train_on_batch(X, Y, sample_weight=np.zeros(len(X)))  # no gradient
        assert defect(layer.U.numpy()) < 1e-5
        return layer, before

    layer, (s, kernel) = shrunk()
    np.testing.assert_allclose(layer.kernel, 0.95 * kernel, atol=1e-6)
    np.testing.assert_allclose(np.sort(np.diag(layer.S)), 0.95 * np.sort(np.diag(s)), atol=1e-6)
    for name in ("S", "U", "kernel"):
        layer, (_, kernel) = shrunk(var_names=[name])
        np.testing.assert_allclose(layer.kernel, kernel, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer, words",
    [
        (lambda: keras.optimizers.Lion(), "Lion has no rule.*sign of every entry.*Use one of.*SGD"),
        (lambda: keras.optimizers.Ftrl(), "Ftrl has no rule.*Use one of.*SGD"),
        (lambda: SGD(clipvalue=1.0), "`clipvalue`.*depends on the basis.*clipnorm"),
        (lambda: SGD(use_ema=True), "`use_ema`.*learning rate that falls"),
        (lambda: Adam(amsgrad=True), "`amsgrad`.*Use Adam without it"),
        (lambda: RMSprop(centered=True), "`centered`.*Use RMSprop without it"),
        (
            lambda: SGD(global_clipnorm=1.0, gradient_accumulation_steps=2),
            "`global_clipnorm`.*Use `clipnorm`",
        ),
        (lambda: keras.optimizers.LossScaleOptimizer(SGD(use_ema=True)), "`use_ema`"),
    ],
)
def test_what_has_no_meaning_is_refused_at_compile(optimizer, words):
    with pytest.raises(ValueError, match=words):
        make(optimizer())


@NEEDS_MUON
@INTEGRATORS
def test_muon_at_full_rank_is_that_of_keras(integrator):
    options = {"learning_rate": 0.03, "weight_decay": 0.1, "exclude_layers": ["head"]}
    inputs = keras.Input((7,))
    models = []
    for kind in (LowRankDense, keras.layers.Dense):
        full_rank = {"rank": 7} if kind is LowRankDense else {}
        hidden = kind(7, name="hidden", activation="tanh", **full_rank)
        outputs = keras.layers.Dense(5, name="head")(hidden(inputs))
        make_model = LowRankModel if kind is LowRankDense else keras.Model
        models.append(make_model(inputs, outputs))
    low, full = models
    full.get_layer("head").set_weights(low.get_layer("head").get_weights())
    full.get_layer("hidden").set_weights(
        [low.get_layer("hidden").kernel.numpy(), np.zeros(7, "float32")]
    )
    low.compile(keras.optimizers.Muon(**options), "mse", integrator=integrator, truncation=0.0)
    full.compile(keras.optimizers.Muon(**options), "mse")
    for _ in range(8):
        losses = [model.train_on_batch(X, Y) for model in models]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    kernels = [model.get_layer("hidden").kernel.numpy() for model in models]
    np.testing.assert_allclose(*kernels, atol=1e-4)


@NEEDS_MUON
def test_muon_refuses_to_leave_a_low_rank_layer_to_adamw():
    with pytest.raises(
        ValueError, match="`exclude_layers` of Muon.*'sec.*', which names.*'second'"
    ):
        make(keras.optimizers.Muon(exclude_layers=["sec.*"]))


@pytest.mark.parametrize("integrator", ["rank_adaptive", "fixed_rank"])
def test_accumulation_is_refused_where_it_cannot_be(integrator):
    with pytest.raises(ValueError, match="`gradient_accumulation_steps`.*integrator='parallel'"):
        make(SGD(gradient_accumulation_steps=2), integrator)


class SignedMomentum(keras.optimizers.SGD):
    """Somebody's own optimizer, whose step has the length of the learning rate."""


@rule_of(SignedMomentum)
class NormalizedMomentum(Rule):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.state = {"average": "tangent", "steps": "scalar"}

    def direction(self, gradient, state, point, learning_rate, step):
        average = state["average"].scaled(0.9).plus(gradient.scaled(0.1))
        length = 1.0 / (tf.sqrt(average.squared_norm()) + 1e-12)
        new = {"average": average, "steps": state["steps"] + 1.0}
        return Direction(average.scaled(length), share=0.1 * length), new


@INTEGRATORS
def test_a_rule_of_ones_own(integrator):
    model = make(SignedMomentum(0.01), integrator, truncation=0.0)
    layer = model.get_layer("first")
    # What rank_adaptive adds of the gradient outside of the tangent space comes on top.
    tolerance = 0.3 if integrator == "rank_adaptive" else 0.05
    for number in range(1, 4):
        before = layer.kernel.numpy()
        model.train_on_batch(X, Y)
        assert np.linalg.norm(layer.kernel - before) == pytest.approx(0.01, rel=tolerance)
        (steps,) = (v for v in model.optimizer.variables if "first_steps" in v.name)
        assert float(steps) == number


def test_a_kind_of_state_that_there_is_not_is_named():
    class Wrong(keras.optimizers.SGD):
        pass

    @rule_of(Wrong)
    class WrongRule(Rule):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            self.state = {"moment": "matrix"}

    with pytest.raises(ValueError, match="'tangent', 'rows'.*Received: moment='matrix'"):
        make(Wrong(0.1))
