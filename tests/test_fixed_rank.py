import numpy as np
import pytest
from hypothesis import assume, example, given
from reference import fixed_rank
from reference.cases import few, problems, same, seeds, shapes, start
from reference.closed_form import (
    factors_with_spectrum,
    matrix,
    orthonormal,
    with_spectrum,
)
from reference.full_rank import compare_step_by_step, full_rank_pair
from reference.trajectories import (
    defect,
    fit_one_layer,
    losses,
    mean_squared_error_gradient,
    one_step,
    two_factor_losses,
    worst_defects,
)

from keras_lowrank import FixedRank


def compare_with_the_paper(problem, factors, dtype, steps=50):
    h, rank = 0.5 / problem.lipschitz, len(factors[1])
    reference = factors
    for _ in range(steps):
        reference = fixed_rank.step(reference, problem.gradient, h)
        factors = one_step(FixedRank(), factors, problem.gradient, h, dtype=dtype)
        assert factors[1].shape == (rank, rank)
        W = matrix(reference)
        np.testing.assert_allclose(matrix(factors), W, atol=1e-5 * max(1, np.linalg.norm(W)))
        assert max(defect(factors[0]), defect(factors[2])) < 1e-5


@problems
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@same
@given(shapes(), seeds)
@example((6, 6, 6), 0)  # r = min(n, m)
@example((5, 9, 5), 0)
@example((1, 7, 1), 0)  # n = 1
@example((7, 1, 1), 0)  # m = 1
@example((1, 1, 1), 0)
@example((8, 9, 1), 0)  # rank 1
def test_fifty_steps_agree_with_the_paper(kind, dtype, shape, seed):
    rng = np.random.default_rng(seed)
    problem = kind.random(rng, *shape[:2])
    compare_with_the_paper(problem, start(rng, *shape), dtype)


@problems
@pytest.mark.parametrize("shape", [(9, 7, 3), (5, 5, 5), (1, 4, 1), (4, 1, 1), (6, 8, 1)])
def test_a_zero_core_leaves_zero_as_the_paper_says(kind, shape):
    rng = np.random.default_rng(1)
    n, m, r = shape
    factors = (orthonormal(rng, n, r), np.zeros((r, r)), orthonormal(rng, m, r))
    problem = kind.random(rng, n, m)
    compare_with_the_paper(problem, factors, "float64", steps=20)
    assert np.abs(matrix(one_step(FixedRank(), factors, problem.gradient, 0.1))).max() > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(9, 7, 3), (5, 5, 5), (1, 4, 1), (4, 1, 1), (6, 8, 1)])
@pytest.mark.parametrize("values", ["full", "one zero", "zero"])
def test_a_zero_gradient_moves_nothing(dtype, shape, values):
    """Also where `K1 = U S` has lost rank and its QR must make up columns."""
    rng = np.random.default_rng(2)
    n, m, r = shape
    spectrum = 0.5 * 1.5 ** -np.arange(r)
    spectrum *= {"full": 1, "one zero": np.arange(r) != r - 1, "zero": 0}[values]
    factors = factors_with_spectrum(rng, n, m, spectrum)
    new = one_step(FixedRank(), factors, np.zeros_like, 0.1, dtype=dtype)
    assert new[1].shape == (r, r)
    np.testing.assert_allclose(matrix(new), matrix(factors), atol=1e-6)
    assert max(defect(new[0]), defect(new[2])) < 1e-5


@pytest.mark.parametrize("l2", [0.0, 0.02])
def test_a_model_in_fit_agrees_with_the_paper_over_fifty_epochs(l2):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 12))
    y = x @ with_spectrum(rng, 12, 9, 2.0 * 2.5 ** -np.arange(9))
    factors, gradient = start(rng, 12, 9, 3), mean_squared_error_gradient(x, y, l2)
    for kernel, rank in fit_one_layer("fixed_rank", factors, x, y, 1.0, 50, l2=l2):
        factors = fixed_rank.step(factors, gradient, 1.0)
        assert rank == 3
        np.testing.assert_allclose(kernel, matrix(factors), atol=1e-5)


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((1, 5, 1), 0)
@example((5, 1, 1), 0)
@example((7, 8, 1), 0)
def test_a_step_of_constant_gradient_to_a_matrix_of_the_same_rank_lands_on_it(shape, seed):
    rng = np.random.default_rng(seed)
    n, m, r = shape
    factors, h = start(rng, n, m, r), 0.25
    W1 = with_spectrum(rng, n, m, np.linspace(1, 0.5, r))
    G = (matrix(factors) - W1) / h
    overlaps = (W1 @ factors[2], W1.T @ factors[0])
    assume(min(np.linalg.svd(part, compute_uv=False)[r - 1] for part in overlaps) > 1e-2)
    new = one_step(FixedRank(), factors, lambda W: G, h)
    np.testing.assert_allclose(matrix(new), W1, atol=1e-9)


@problems
@pytest.mark.parametrize("n, m, r", [(20, 16, 4), (12, 12, 8)])
def test_small_singular_values_do_not_slow_a_step_down(kind, n, m, r):
    rng = np.random.default_rng(5)
    problem = kind.random(rng, n, m)
    h = 0.2 / problem.lipschitz
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    well, ill = (u, 0.2 * np.eye(r), v), (u, np.diag(0.2 * np.logspace(0, -8, r)), v)
    loss_well = losses(FixedRank(), well, problem, h, 20)
    loss_ill = losses(FixedRank(), ill, problem, h, 20)
    assert np.all(loss_ill - loss_well <= 0.05 * loss_ill[0])
    assert loss_ill[-1] < 0.15 * loss_ill[0]
    behind = two_factor_losses(ill, problem, h, 20) - loss_well
    assert np.max(behind) > 0.3 * loss_ill[0]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_bases_stay_orthonormal_over_ten_thousand_float32_steps(noise):
    """At rest, where directions are rounding noise, and with bases that turn at every step."""
    rng = np.random.default_rng(6)
    target = with_spectrum(rng, 24, 16, 2.0 ** -np.arange(16))
    defects, low, high = worst_defects(FixedRank(), start(rng, 24, 16, 6), target, noise, 10_000)
    assert np.max(defects) < 1e-5
    assert low == high == 6


def test_a_network_at_full_ranks_trains_as_the_full_rank_network():
    """Square kernels: between the bases of any other, the old matrix is first projected."""
    low, full = full_rank_pair(FixedRank(), channels=2, filters=8, units=8)
    compare_step_by_step(low, full)
