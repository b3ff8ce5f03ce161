"""The arithmetic of tangent vectors, against full matrices."""

import numpy as np
from hypothesis import example, given
from reference import optimizers as reference
from reference.cases import few, seeds, shapes, start
from reference.trajectories import tangent_of, to_tensors

from keras_lowrank.manifold.tangent_vector import core_in, transport


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((1, 5, 1), 0)
@example((5, 1, 1), 0)
def test_transport_projects_the_full_matrix(shape, seed):
    """Between two matrices of different ranks."""
    rng = np.random.default_rng(seed)
    n, m, r = shape
    old, new = start(rng, n, m, r), start(rng, n, m, rng.integers(1, min(n, m) + 1))
    A = reference.project(rng.standard_normal((n, m)), old)
    points = [to_tensors(factors, "float64") for factors in (old, new)]
    tangent = tangent_of(A, old)
    for part, right in zip(transport(tangent, *points, 0.5), tangent_of(0.5 * A, new)):
        np.testing.assert_allclose(part, right, atol=1e-11)
    np.testing.assert_allclose(core_in(tangent, *points), new[0].T @ A @ new[2], atol=1e-12)
    np.testing.assert_allclose(tangent.squared_norm(), np.sum(A**2), rtol=1e-10)
