import numpy as np
import pytest
from hypothesis import example, given
from reference import parallel
from reference.cases import few, partly_slow, problems, seeds, shapes, start
from reference.closed_form import LeastSquares, matrix
from reference.trajectories import (
    compare_trajectories,
    one_step,
)

from keras_lowrank import Parallel


@pytest.mark.parametrize("dtype", partly_slow(["float32"], ["float64"]))
def test_ranks_grow_and_fall_as_the_paper_says(dtype):
    rng = np.random.default_rng(0)
    problem = LeastSquares.random(rng, 14, 10)
    up, down = (
        compare_trajectories(
            Parallel(adapt_every=1), parallel, problem, start(rng, 14, 10, r), tau, dtype, scale=1.0
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
        factors = one_step(Parallel(adapt_every=1), factors, problem.gradient, h)
        assert len(factors[1]) == shape[2]
        np.testing.assert_allclose(matrix(factors), matrix(expected), atol=1e-9)
