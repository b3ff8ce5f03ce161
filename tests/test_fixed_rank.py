import numpy as np
from hypothesis import assume, example, given
from reference.cases import few, seeds, shapes, start
from reference.closed_form import (
    matrix,
    with_spectrum,
)
from reference.trajectories import (
    one_step,
)

from keras_lowrank import FixedRank


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
