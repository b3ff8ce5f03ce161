"""The arithmetic of tangent vectors, against full matrices."""

import numpy as np
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from reference import optimizers as reference
from reference.cases import few, seeds, shapes, start
from reference.closed_form import orthonormal
from reference.trajectories import tangent_of, to_tensors

from keras_lowrank.tangent_vector import core_in, paired, projected


@few
@given(shapes(), seeds, st.booleans())
@example((6, 6, 6), 0, True)
@example((1, 5, 1), 0, True)
@example((5, 1, 1), 0, False)
def test_projection_is_that_of_the_full_matrix(shape, seed, scaled):
    """Carried between two matrices of different ranks, and scaled by rows and columns."""
    rng = np.random.default_rng(seed)
    n, m, r = shape
    old, new = start(rng, n, m, r), start(rng, n, m, rng.integers(1, min(n, m) + 1))
    A = reference.project(rng.standard_normal((n, m)), old)
    p, q = (rng.uniform(0.1, 10, size) for size in (n, m))
    points = [to_tensors(factors, "float64") for factors in (old, new)]
    tangent = tangent_of(A, old)
    scales = [tf.constant(p), tf.constant(q)] if scaled else []
    result = projected(tangent, *points, *scales)
    expected = p[:, None] * A * q if scaled else A
    for part, right in zip(result, tangent_of(expected, new)):
        np.testing.assert_allclose(part, right, atol=1e-11)
    np.testing.assert_allclose(core_in(tangent, *points), new[0].T @ A @ new[2], atol=1e-12)
    np.testing.assert_allclose(tangent.squared_norm(), np.sum(A**2), rtol=1e-10)


@few
@given(shapes(), seeds)
def test_a_pair_is_mended_to_the_nearest_one(shape, seed):
    rng = np.random.default_rng(seed)
    n, m, r = shape
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    k, l = rng.standard_normal((n, r)), rng.standard_normal((m, r))
    K, S, L = (part.numpy() for part in paired(*map(tf.constant, (k, l, u, v))))
    for part in (u.T @ K, (v.T @ L).T):
        np.testing.assert_allclose(part, S, atol=1e-12)
    np.testing.assert_allclose(S, (u.T @ k + l.T @ v) / 2, atol=1e-12)
    np.testing.assert_allclose(K - u @ S, k - u @ (u.T @ k), atol=1e-12)
    np.testing.assert_allclose(L - v @ S.T, l - v @ (v.T @ l), atol=1e-12)
