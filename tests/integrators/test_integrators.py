"""What every integrator has to do, whichever it is."""

import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reference import fixed_rank, parallel, rank_adaptive
from reference.cases import partly_slow, problems, same, seeds, shapes, start
from reference.closed_form import (
    LeastSquares,
    LogCosh,
    factors_with_spectrum,
    matrix,
    orthonormal,
    with_spectrum,
)
from reference.full_rank import compare_step_by_step, full_rank_pair
from reference.trajectories import (
    compare_trajectories,
    defect,
    fit_one_layer,
    losses,
    mean_squared_error_gradient,
    one_step,
    two_factor_losses,
    worst_defects,
)
from reference.truncation import RelativeTolerance

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, Parallel, RankAdaptive, Tolerance
from keras_lowrank.ranks.policy import Policy

REFERENCES = {"parallel": parallel, "rank_adaptive": rank_adaptive, "fixed_rank": fixed_rank}
CLASSES = {"parallel": Parallel, "rank_adaptive": RankAdaptive, "fixed_rank": FixedRank}
INTEGRATORS = pytest.mark.parametrize("name", CLASSES)
# The algorithms of the papers, step by step.
EXACT = {name: kind(adapt_every=1) for name, kind in CLASSES.items()}
AWKWARD = pytest.mark.parametrize("shape", [(9, 7, 3), (5, 5, 5), (1, 4, 1), (4, 1, 1), (6, 8, 1)])


@pytest.mark.parametrize(
    "name, kind, dtype",
    partly_slow(
        [
            ("parallel", LogCosh, "float32"),
            ("rank_adaptive", LeastSquares, "float64"),
            ("fixed_rank", LogCosh, "float32"),
        ],
        [
            ("parallel", LeastSquares, "float64"),
            ("rank_adaptive", LogCosh, "float32"),
            ("fixed_rank", LeastSquares, "float64"),
            *((name, LeastSquares, "float32") for name in CLASSES),
            *((name, LogCosh, "float64") for name in CLASSES),
        ],
    ),
)
@same
@given(shapes(), seeds, st.sampled_from([0.03, 0.1, 0.3]), st.none() | st.integers(1, 6))
@example((6, 6, 6), 0, 0.1, None)  # r = min(n, m)
@example((5, 9, 5), 0, 0.1, None)
@example((1, 7, 1), 0, 0.1, None)  # n = 1
@example((7, 1, 1), 0, 0.1, None)  # m = 1
@example((1, 1, 1), 0, 0.1, None)
@example((8, 9, 1), 0, 0.1, None)  # rank 1
@example((4, 3, 1), 2266, 0.03, None)  # a faint direction that the core needs
def test_fifty_steps_agree_with_the_paper(name, kind, dtype, shape, seed, tau, max_rank):
    rng = np.random.default_rng(seed)
    problem = kind.random(rng, *shape[:2])
    compare_trajectories(
        EXACT[name], REFERENCES[name], problem, start(rng, *shape), tau, dtype, max_rank
    )


@INTEGRATORS
@pytest.mark.parametrize("kind", partly_slow([LogCosh], [LeastSquares]))
@AWKWARD
def test_a_zero_core_leaves_zero_as_the_paper_says(name, kind, shape):
    rng = np.random.default_rng(1)
    n, m, r = shape
    factors = (orthonormal(rng, n, r), np.zeros((r, r)), orthonormal(rng, m, r))
    problem, integrator = kind.random(rng, n, m), EXACT[name]
    compare_trajectories(integrator, REFERENCES[name], problem, factors, 0.1, "float64")
    assert np.abs(matrix(one_step(integrator, factors, problem.gradient, 0.1))).max() > 0


@INTEGRATORS
@pytest.mark.parametrize("dtype", partly_slow(["float32"], ["float64"]))
@AWKWARD
@pytest.mark.parametrize("values", ["full", "one zero", "zero"])
def test_a_zero_gradient_moves_nothing(name, dtype, shape, values):
    """Also where `K1 = U S` has lost rank and its basis must make up columns."""
    rng = np.random.default_rng(2)
    n, m, r = shape
    spectrum = 0.5 * 1.5 ** -np.arange(r)
    spectrum *= {"full": 1, "one zero": np.arange(r) != r - 1, "zero": 0}[values]
    factors = factors_with_spectrum(rng, n, m, spectrum)
    policy = Policy(Tolerance(1e-3))
    new = one_step(EXACT[name], factors, np.zeros_like, 0.1, policy, dtype)
    rank = r if name == "fixed_rank" else max(1, np.count_nonzero(spectrum))
    assert new[1].shape == (rank, rank)
    np.testing.assert_allclose(matrix(new), matrix(factors), atol=1e-6)
    assert max(defect(new[0]), defect(new[2])) < 1e-5


@INTEGRATORS
@pytest.mark.parametrize("l2", partly_slow([0.02], [0.0]))
def test_a_model_in_fit_agrees_with_the_paper_over_fifty_epochs(name, l2):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 12))
    y = x @ with_spectrum(rng, 12, 9, 2.0 * 3.0 ** -np.arange(9))
    factors, gradient = start(rng, 12, 9, 2), mean_squared_error_gradient(x, y, l2)
    seen = fit_one_layer(EXACT[name], factors, x, y, 1.0, 50, Tolerance(0.1), l2)
    rule = RelativeTolerance(0.1)
    for kernel, rank in seen:
        factors = REFERENCES[name].step(factors, gradient, 1.0, rule)
        assert rank == len(factors[1])
        W = matrix(factors)
        np.testing.assert_allclose(kernel, W, atol=1e-5 * max(1, np.linalg.norm(W)))
    assert rule.margin > 1e-4 and (len({rank for _, rank in seen}) > 1) == (name != "fixed_rank")


@INTEGRATORS
@problems
@pytest.mark.parametrize("n, m, r", [(20, 16, 4), (12, 12, 8)])
def test_small_singular_values_do_not_slow_a_step_down(name, kind, n, m, r):
    rng = np.random.default_rng(5)
    problem = kind.random(rng, n, m)
    h = 0.2 / problem.lipschitz
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    well, ill = (u, 0.2 * np.eye(r), v), (u, np.diag(0.2 * np.logspace(0, -8, r)), v)
    policy = Policy(Tolerance(1e-3), min_rank=r, max_rank=r)
    loss_well, loss_ill = (
        losses(EXACT[name], factors, problem, h, 20, policy) for factors in (well, ill)
    )
    assert np.all(loss_ill - loss_well <= 0.05 * loss_ill[0])
    assert loss_ill[-1] < 0.15 * loss_ill[0]
    behind = two_factor_losses(ill, problem, h, 20) - loss_well
    assert np.max(behind) > 0.3 * loss_ill[0]


@pytest.mark.parametrize(
    "name, noise, steps",
    partly_slow(
        [(name, 0.3, 1_000) for name in CLASSES],
        [
            *((name, noise, 3_000) for name in CLASSES for noise in (0.0, 0.3)),
            *(("rank_adaptive", 0.3, 10_000), ("parallel", 0.02, 100_000)),
        ],
    ),
)
def test_bases_stay_orthonormal_over_many_float32_steps(name, noise, steps):
    """At rest, with bases and ranks that change all the time, and turning by small steps alone."""
    rng = np.random.default_rng(6)
    target = with_spectrum(rng, 24, 16, 2.0 ** -np.arange(16))
    factors, policy = start(rng, 24, 16, 4), Policy(Tolerance(0.1))
    defects, low, high = worst_defects(EXACT[name], factors, target, noise, steps, policy)
    assert np.max(defects) < 1e-5
    assert (high > low) == (name != "fixed_rank")


@pytest.mark.parametrize(
    "name, policy",
    partly_slow(
        [(name, "mixed_bfloat16") for name in CLASSES],
        [(name, "mixed_float16") for name in CLASSES],
    ),
)
def test_bases_stay_orthonormal_where_gradients_come_in_half_precision(name, policy):
    """The K- and the L-part then disagree on their S-part, by far more than bases may lose."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 40)), rng.standard_normal((64, 24))
    layers = [
        LowRankDense(32, rank=8, activation="relu", dtype=policy),
        LowRankDense(24, rank=6, dtype=policy),
    ]
    inputs = keras.Input((40,))
    model = LowRankModel(inputs, layers[1](layers[0](inputs)))
    model.compile(keras.optimizers.SGD(0.3), "mse", integrator=EXACT[name], truncation=0.01)
    for _ in range(40):
        model.train_on_batch(x, y)
        assert max(defect(b.numpy()) for layer in layers for b in (layer.U, layer.V)) < 1e-5


# At full rank the tangent space is all of the space where the kernel is square. `parallel` and
# `rank_adaptive` reach the rest by their augmented bases; `fixed_rank` first projects.
@pytest.mark.parametrize(
    "name, channels, filters, units",
    partly_slow(
        [("parallel", 2, 12, 14), ("rank_adaptive", 2, 6, 5), ("fixed_rank", 2, 8, 8)],
        [("parallel", 2, 6, 5), ("rank_adaptive", 2, 12, 14)],
    ),
)
def test_a_network_at_full_ranks_trains_as_the_full_rank_network(name, channels, filters, units):
    low, full = full_rank_pair(EXACT[name], channels, filters, units)
    compare_step_by_step(low, full)
