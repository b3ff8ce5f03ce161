"""What the compiled optimizer means for the factors, against full matrices and against Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from reference import optimizers as reference
from reference import parallel
from reference.cases import few, partly_slow, seeds, shapes, start
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
from reference.two_layers import X, Y, make

from keras_lowrank import (
    FixedRank,
    KeepRank,
    LowRankDense,
    LowRankModel,
    Parallel,
    RankAdaptive,
    Tolerance,
)
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold import Squares
from keras_lowrank.optimizers import StiefelAdam, adam, muon
from keras_lowrank.optimizers.rule import rule_class
from keras_lowrank.training.matrix_step import transport_state

Adagrad, Adam, AdamW = (getattr(keras.optimizers, name) for name in ("Adagrad", "Adam", "AdamW"))
RMSprop, SGD = keras.optimizers.RMSprop, keras.optimizers.SGD


def full(tangent, factors):
    """The tangent vector as a matrix."""
    u, _, v = (np.asarray(part) for part in factors)
    k, s, l = (np.asarray(part) for part in tangent)
    return k @ v.T + u @ (l - v @ s.T).T


def at_origin(factors):
    """The `Chart` at diagonal factors."""
    point = to_tensors(factors, "float64")
    return Chart(point, tf.linalg.diag_part(point.S))


RULES = {
    "momentum": (lambda: SGD(0.125, momentum=0.9), reference.sgd(0.9)),
    "nesterov": (
        lambda: SGD(0.125, momentum=0.9, nesterov=True),
        reference.sgd(0.9, nesterov=True),
    ),
    "adam": (lambda: Adam(0.03125), reference.adam()),
    "adamw": (lambda: AdamW(0.03125, weight_decay=0.0), reference.adam()),
    "stiefel adam": (lambda: StiefelAdam(0.03125), reference.stiefel_adam()),
    "rmsprop": (lambda: RMSprop(0.03125), reference.rmsprop()),
    "rmsprop with momentum": (
        lambda: RMSprop(0.015625, momentum=0.5),
        reference.rmsprop(mu=0.5),
    ),
    "adagrad": (lambda: Adagrad(0.25), reference.adagrad()),
}
if muon.RUNS:
    RULES["muon"] = (lambda: keras.optimizers.Muon(0.125, weight_decay=None), reference.muon())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_makes_the_step_of_the_full_matrix(float64, name):
    """With what it keeps carried from step to step, at ranks that change."""
    rng = np.random.default_rng(4)
    target = with_spectrum(rng, 9, 7, 2.0 * 2.0 ** -np.arange(7))
    factors = orthonormal(rng, 9, 3), np.diag([0.5, 0.3, 0.2]), orthonormal(rng, 7, 3)
    optimizer, step = RULES[name][0](), RULES[name][1]
    optimizer.build([keras.Variable(1.0)])
    h, rule, state = float(optimizer.learning_rate), rule_class(optimizer)(optimizer), {}
    zeros = {
        "tangent": tangent_of(np.zeros((9, 7)), factors),
        "squares": Squares(*tangent_of(np.zeros((9, 7)), factors)),
        "rows": tf.zeros(9, tf.float64),
        "columns": tf.zeros(7, tf.float64),
    }
    slots = {slot: zeros[kind] for slot, kind in rule.state.items()}
    for number, rank in enumerate((3, 4, 4, 2, 3), start=1):
        # The error of a few examples, in which some directions are faint.
        gradient = 0.01 * (matrix(factors) - target) * np.linspace(0.1, 1.0, 9)[:, None]
        point, number = at_origin(factors), tf.constant(float(number), tf.float64)
        direction, slots = rule.direction(tangent_of(gradient, factors), slots, point, h, number)
        D, size = full(direction.tangent, factors), float(rule.step_size(h, number))
        new, state = step(factors, lambda W: gradient, state, h, lambda values: rank)  # noqa: B023
        moved = parallel.step(factors, lambda W: D, size, lambda values: rank)  # noqa: B023
        np.testing.assert_allclose(matrix(moved), matrix(new), atol=1e-9)
        slots = transport_state(slots, (point.U, point.V), to_tensors(new, "float64"), rule.decay)
        factors = new


@pytest.mark.parametrize("name", partly_slow(["adam"], [name for name in RULES if name != "adam"]))
def test_moments_are_those_of_the_full_matrix_while_ranks_change(float64, name):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 12))
    y = x @ with_spectrum(rng, 12, 9, 2.0 * 2.0 ** -np.arange(9))
    (u, s, v), gradient = start(rng, 12, 9, 4), mean_squared_error_gradient(x, y)
    p, values, q = np.linalg.svd(s)
    factors = u @ p, np.diag(values), v @ q.T
    optimizer, step = RULES[name][0](), RULES[name][1]
    h, tau = float(optimizer.learning_rate), 0.3 if name == "muon" else 0.06
    seen = fit_one_layer(Parallel(adapt_every=1), factors, x, y, optimizer, 40, Tolerance(tau))
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

# Each is part of one of the others, but for the schedule, which `test_fit` has too.
_SINGLE = set(OF_KERAS) - {"nesterov", "LossScaleOptimizer", "most at once"}


@pytest.mark.parametrize(
    "integrator, name",
    partly_slow(
        [
            (Parallel, "most at once"),
            (FixedRank, "nesterov"),
        ],
        [
            (Parallel, "LossScaleOptimizer"),
            (Parallel, "nesterov"),
            (RankAdaptive, "most at once"),
            *((Parallel, name) for name in OF_KERAS if name in _SINGLE),
            (RankAdaptive, "nesterov"),
            (FixedRank, "most at once"),
        ],
    ),
)
def test_at_full_rank_it_is_the_step_of_keras(integrator, name):
    low, full = full_rank_pair(integrator(adapt_every=1), channels=2, filters=8, units=8)
    low.compile(OF_KERAS[name](), "mse", integrator=low.integrator, truncation=0.0)
    full.compile(OF_KERAS[name](), "mse")
    compare_step_by_step(low, full)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.01}])
def test_a_learning_rate_in_float64_is_taken_whole(float64, options):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 6)), rng.standard_normal((16, 4))
    inputs = keras.Input((6,))
    layer = LowRankDense(4, rank=4, use_bias=False, dtype="float64")
    model = LowRankModel(inputs, layer(inputs))
    integrator = Parallel(adapt_every=1)
    model.compile(SGD(0.1, **options), "mse", integrator=integrator, truncation=0.0)
    W, moved = layer.kernel.numpy(), 0.0
    for _ in range(10):
        gradient = x.T @ (x @ W - y) * 2 / y.size
        moved = options.get("momentum", 0.0) * moved - 0.1 * gradient
        W = W * (1 - 0.1 * options.get("weight_decay", 0.0)) + moved
        model.train_on_batch(x, y)
    np.testing.assert_allclose(layer.kernel, W, atol=1e-13)


def test_accumulated_gradients_at_full_rank_are_those_of_keras():
    low, full = full_rank_pair(Parallel(adapt_every=1), channels=2, filters=8, units=8)
    options = {"momentum": 0.5, "clipnorm": 0.5, "gradient_accumulation_steps": 3}
    low.compile(SGD(0.2, **options), "mse", integrator=low.integrator, truncation=0.0)
    full.compile(SGD(0.2, **options), "mse")
    compare_step_by_step(low, full, steps=18)


def fit(model, **kwargs):
    return model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **kwargs).history["loss"]


OPTIMIZERS = {
    "momentum": lambda: SGD(0.05, momentum=0.9),
    "adam": lambda: Adam(0.01),
    "adamw": lambda: AdamW(0.01, weight_decay=0.01),
    "stiefel adam": lambda: StiefelAdam(0.01, weight_decay=0.01),
    "rmsprop": lambda: RMSprop(0.01, momentum=0.5),
    "adagrad": lambda: Adagrad(0.1),
    "accumulation": lambda: SGD(0.1, momentum=0.5, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(Adam(0.01)),
}
if muon.RUNS:
    OPTIMIZERS["muon"] = lambda: keras.optimizers.Muon(0.01)
    OPTIMIZERS["muon and adamw"] = lambda: keras.optimizers.Muon(0.01, exclude_layers=["second"])
_LESS_OF_ANOTHER = ("momentum", "adamw", "rmsprop", "adagrad", "loss scale", "muon")


@pytest.mark.parametrize(
    "name, integrator",
    partly_slow(
        [
            *((name, "parallel") for name in OPTIMIZERS if name not in _LESS_OF_ANOTHER),
            ("adam", "rank_adaptive"),
            ("momentum", "fixed_rank"),
        ],
        [
            *((name, "parallel") for name in _LESS_OF_ANOTHER),
            ("momentum", "rank_adaptive"),
            ("adam", "fixed_rank"),
        ],
    ),
)
def test_every_optimizer_trains_with_orthonormal_bases(name, integrator):
    model = make(OPTIMIZERS[name](), integrator)
    losses = fit(model, epochs=12)
    assert losses[-1] < 0.95 * losses[0]
    for layer in (model.get_layer("first"), model.get_layer("second")):
        assert max(defect(layer.U.numpy()), defect(layer.V.numpy())) < 1e-5


# The others hold no other kind of state than these.
_KINDS_OF_STATE = ("adam", "stiefel adam", "accumulation")


@pytest.mark.parametrize(
    "name",
    partly_slow(_KINDS_OF_STATE, [name for name in OPTIMIZERS if name not in _KINDS_OF_STATE]),
)
def test_training_resumed_from_a_file_is_training_not_interrupted(name, tmp_path):
    """Bit for bit, with ranks that changed before the file was written."""
    model = make(OPTIMIZERS[name](), Parallel(adapt_every=2), truncation=0.6)
    fit(model, epochs=2)
    assert list(model.ranks.values()) != [4, 3]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert fit(model, epochs=2) == fit(again, epochs=2)
    for one, two in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", partly_slow(["adam"], ["accumulation", "loss scale"]))
def test_a_tensorflow_checkpoint_holds_the_moments(name, tmp_path):
    model, again = make(OPTIMIZERS[name](), truncation=0.35), make(OPTIMIZERS[name]())
    for _ in range(6):  # not `fit`, which would leave orthonormal bases
        model.train_on_batch(X, Y)
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
    size = sum(np.prod(v.shape) for v in model._training.state.variables)
    # A tangent vector, one number a row and a column, and the scale of the chart.
    sums = [13, 11]
    assert size == sum(s * r + r**2 + s + r for s, r in zip(sums, ranks))
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


def kernels_of(model):
    return [model.get_layer(name).kernel.numpy() for name in ("first", "second")]


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_the_steps_between_full_ones_follow_the_same_path(name):
    """Up to the square of their length; a moment that is lost on the way is of first order."""
    optimizers = {"momentum": lambda: SGD(0.01, momentum=0.9), "adam": lambda: Adam(0.002)}
    kernels = []
    for adapt_every in (1, 100):
        keras.utils.set_random_seed(0)
        integrator = Parallel(adapt_every=adapt_every)
        model = make(optimizers[name](), integrator, truncation=KeepRank(), run_eagerly=True)
        start = kernels_of(model)
        for _ in range(10):
            model.train_on_batch(X, Y)
        kernels.append(kernels_of(model))
    for before, exact, light in zip(start, *kernels):
        difference = np.linalg.norm(light - exact) / np.linalg.norm(exact - before)
        assert difference < 0.05


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((4, 1, 1), 0)
def test_the_direction_of_adam_does_not_depend_on_the_bases(shape, seed):
    """`(U O) s (V O)^T` is the same W; elementwise moments would give another step."""
    rng = np.random.default_rng(seed)
    n, m, r = shape
    u, s, v = orthonormal(rng, n, r), 0.5 * np.eye(r), orthonormal(rng, m, r)
    turn = orthonormal(rng, r, r)
    G = rng.standard_normal((n, m))
    found = []
    for factors in ((u, s, v), (u @ turn, s, v @ turn)):
        tangent, point = tangent_of(G, factors), at_origin(factors)
        rule, squares = (
            adam.AdagradRule(keras.optimizers.Adagrad()),
            adam.mean_squares(tangent, point),
        )
        found.append(full(rule.scaled_direction(tangent, *squares, point, 1.0).tangent, factors))
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 4, 30])
@pytest.mark.parametrize("noisy, least", [(True, 0.95), (False, 0.7)])
def test_a_step_of_adam_is_about_as_long_as_that_of_keras_at_every_rank(rank, noisy, least):
    """For noise in all directions, and for a gradient of rank 1 inside of the tangent space."""
    rng = np.random.default_rng(rank)
    factors, lengths = (orthonormal(rng, 60, rank), np.eye(rank), orthonormal(rng, 30, rank)), []
    point = at_origin(factors)
    for _ in range(20):
        u, v = (basis @ rng.standard_normal(rank) for basis in (factors[0], factors[2]))
        gradient = rng.standard_normal((60, 30)) if noisy else np.outer(u, v)
        tangent = tangent_of(gradient, factors)
        rule, squares = (
            adam.AdagradRule(keras.optimizers.Adagrad()),
            adam.mean_squares(tangent, point),
        )
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
