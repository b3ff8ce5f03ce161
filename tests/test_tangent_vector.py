"""The arithmetic of tangent vectors, against full matrices."""

import numpy as np
import tensorflow as tf
from hypothesis import example, given
from reference import optimizers as reference
from reference.cases import few, seeds, shapes, start
from reference.closed_form import orthonormal
from reference.trajectories import tangent_of, to_tensors

from keras_lowrank import row_slices
from keras_lowrank.tangent_vector import carried, core_in, overlap, paired


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((1, 5, 1), 0)
@example((5, 1, 1), 0)
def test_carrying_projects_the_full_matrix(shape, seed):
    """Between two matrices of different ranks."""
    rng = np.random.default_rng(seed)
    n, m, r = shape
    old, new = start(rng, n, m, r), start(rng, n, m, rng.integers(1, min(n, m) + 1))
    A = reference.project(rng.standard_normal((n, m)), old)
    points = [to_tensors(factors, "float64") for factors in (old, new)]
    tangent = tangent_of(A, old)
    lies = overlap(tangent, *points)
    for part, right in zip(carried(tangent, points[0], lies, 0.5), tangent_of(0.5 * A, new)):
        np.testing.assert_allclose(part, right, atol=1e-11)
    other = overlap(tangent.scaled(2.0), *points, known=lies)
    np.testing.assert_allclose(other.K, 2.0 * lies.K, atol=1e-11)
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
    # Given by its rows, the K-part is left alone.
    slices = tf.IndexedSlices(tf.constant(k), tf.range(n), tf.constant([n, r]))
    found, S, L = paired(slices, *map(tf.constant, (l, u, v)))
    np.testing.assert_array_equal(row_slices.dense(found), k)
    np.testing.assert_allclose(S, u.T @ k, atol=1e-12)
    np.testing.assert_allclose(v.T @ L, np.transpose(S), atol=1e-12)
    np.testing.assert_allclose(L - v @ (v.T @ L), l - v @ (v.T @ l), atol=1e-12)
