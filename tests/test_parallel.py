import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reference import parallel
from reference.cases import few, problems, same, seeds, shapes, start
from reference.closed_form import LeastSquares, matrix, orthonormal, with_spectrum
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

from keras_lowrank import Parallel, Tolerance
from keras_lowrank.truncation import Policy


@problems
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@same
@given(shapes(), seeds, st.sampled_from([0.03, 0.1, 0.3]), st.none() | st.integers(1, 6))
@example((6, 6, 6), 0, 0.1, None)  # r = min(n, m)
@example((5, 9, 5), 0, 0.1, None)
@example((1, 7, 1), 0, 0.1, None)  # n = 1
@example((7, 1, 1), 0, 0.1, None)  # m = 1
@example((1, 1, 1), 0, 0.1, None)
@example((8, 9, 1), 0, 0.1, None)  # rank 1
def test_fifty_steps_agree_with_the_paper(kind, dtype, shape, seed, tau, max_rank):
    rng = np.random.default_rng(seed)
    problem = kind.random(rng, *shape[:2])
    factors = start(rng, *shape)
    compare_trajectories(Parallel(), parallel, problem, factors, tau, dtype, max_rank, scale=0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ranks_grow_and_fall_as_the_paper_says(dtype):
    rng = np.random.default_rng(0)
    problem = LeastSquares.random(rng, 14, 10)
    up, down = (
        compare_trajectories(
            Parallel(), parallel, problem, start(rng, 14, 10, r), tau, dtype, scale=1.0
        )
        for r, tau in ((1, 0.03), (10, 0.05))
    )
    assert up[0] == 1 and up[-1] == 4
    assert down[0] > down[-1]


@problems
@pytest.mark.parametrize("scale", [0.02, 0.5])
@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((1, 7, 1), 0)
@example((7, 1, 1), 0)
@example((8, 9, 1), 0)
def test_at_a_rank_that_stays_it_is_riemannian_gradient_descent(kind, scale, shape, seed):
    """With the metric-projection retraction, to rounding; short steps and long ones."""
    rng = np.random.default_rng(seed)
    problem = kind.random(rng, *shape[:2])
    h = scale / problem.lipschitz
    factors = expected = start(rng, *shape)
    for _ in range(10):
        expected = parallel.riemannian_step(expected, problem.gradient, h)
        factors = one_step(Parallel(), factors, problem.gradient, h)
        assert len(factors[1]) == shape[2]
        np.testing.assert_allclose(matrix(factors), matrix(expected), atol=1e-9)


@problems
@pytest.mark.parametrize("shape", [(9, 7, 3), (5, 5, 5), (1, 4, 1), (4, 1, 1), (6, 8, 1)])
def test_a_zero_core_leaves_zero_as_the_paper_says(kind, shape):
    rng = np.random.default_rng(1)
    n, m, r = shape
    factors = (orthonormal(rng, n, r), np.zeros((r, r)), orthonormal(rng, m, r))
    problem = kind.random(rng, n, m)
    compare_trajectories(Parallel(), parallel, problem, factors, 0.1, "float64", scale=0.5)
    assert np.abs(matrix(one_step(Parallel(), factors, problem.gradient, 0.1))).max() > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(9, 7, 3), (5, 5, 5), (1, 4, 1), (4, 1, 1), (6, 8, 1)])
@pytest.mark.parametrize("zero_core", [False, True])
def test_a_zero_gradient_moves_nothing(dtype, shape, zero_core):
    rng = np.random.default_rng(2)
    u, s, v = start(rng, *shape)
    factors = (u, 0 * s, v) if zero_core else (u, s, v)
    new = one_step(Parallel(), factors, np.zeros_like, 0.1, Policy(Tolerance(1e-3)), dtype)
    assert len(new[1]) == (1 if zero_core else shape[2])
    np.testing.assert_allclose(matrix(new), matrix(factors), atol=1e-6)
    assert max(defect(new[0]), defect(new[2])) < 1e-5


@pytest.mark.parametrize("l2", [0.0, 0.02])
def test_a_model_in_fit_agrees_with_the_paper_over_fifty_epochs(l2):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 12))
    y = x @ with_spectrum(rng, 12, 9, 2.0 * 2.5 ** -np.arange(9))
    factors, gradient = start(rng, 12, 9, 2), mean_squared_error_gradient(x, y, l2)
    seen = fit_one_layer("parallel", factors, x, y, 1.0, 50, Tolerance(0.05), l2)
    rule = RelativeTolerance(0.05)
    for kernel, rank in seen:
        factors = parallel.step(factors, gradient, 1.0, rule)
        assert rank == len(factors[1])
        np.testing.assert_allclose(kernel, matrix(factors), atol=1e-5)
    assert rule.margin > 1e-4 and len({rank for _, rank in seen}) > 1


@problems
@pytest.mark.parametrize("n, m, r", [(20, 16, 4), (12, 12, 8)])
def test_small_singular_values_do_not_slow_a_step_down(kind, n, m, r):
    rng = np.random.default_rng(5)
    problem = kind.random(rng, n, m)
    h = 0.2 / problem.lipschitz
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    well, ill = (u, 0.2 * np.eye(r), v), (u, np.diag(0.2 * np.logspace(0, -8, r)), v)
    policy = Policy(Tolerance(1e-3), min_rank=r, max_rank=r)
    loss_well = losses(Parallel(), well, problem, h, 20, policy)
    loss_ill = losses(Parallel(), ill, problem, h, 20, policy)
    assert np.all(loss_ill - loss_well <= 0.05 * loss_ill[0])
    assert loss_ill[-1] < 0.15 * loss_ill[0]
    behind = two_factor_losses(ill, problem, h, 20) - loss_well
    assert np.max(behind) > 0.3 * loss_ill[0]


@pytest.mark.parametrize("noise, steps", [(0.0, 10_000), (0.3, 10_000), (0.02, 100_000)])
def test_bases_stay_orthonormal_over_many_float32_steps(noise, steps):
    """At rest, with ranks that change all the time, and turning by small steps alone."""
    rng = np.random.default_rng(6)
    target = with_spectrum(rng, 24, 16, 2.0 ** -np.arange(16))
    factors, policy = start(rng, 24, 16, 4), Policy(Tolerance(0.1))
    defects, low, high = worst_defects(Parallel(), factors, target, noise, steps, policy)
    assert np.max(defects) < 1e-5
    assert high > low


@pytest.mark.parametrize("channels, filters, units", [(2, 6, 5), (2, 12, 14)])
def test_a_network_at_full_ranks_trains_as_the_full_rank_network(channels, filters, units):
    """At full rank the tangent space is all of the space, where the kernel is square."""
    low, full = full_rank_pair(Parallel(), channels, filters, units)
    compare_step_by_step(low, full)
