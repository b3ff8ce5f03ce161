"""Second moments of coordinates in other bases, against samples and their invariants."""

import numpy as np
import tensorflow as tf
from hypothesis import example, given
from reference.cases import few, seeds, shapes, start
from reference.closed_form import orthonormal

from keras_lowrank.manifold import Squares, TangentVector


def squares_of(rng, n, m, r):
    return Squares(*(tf.constant(rng.random(shape)) for shape in ((n, r), (r, r), (m, r))))


def test_a_rotation_gives_the_second_moments_of_uncorrelated_entries():
    rng = np.random.default_rng(0)
    n, m, r = 3, 4, 2
    old = [orthonormal(rng, extent, r) for extent in (n, m)]
    p, q = (orthonormal(rng, r, r) for _ in range(2))
    squares = squares_of(rng, n, m, r)
    k, s, l = (np.sqrt(part) * rng.standard_normal((100_000, *part.shape)) for part in squares)
    found = squares.transported(old, (old[0] @ p, old[1] @ q))
    for part, samples in zip(found, (k @ q, p.T @ s @ q, l @ p)):
        np.testing.assert_allclose(part, np.mean(samples**2, axis=0), rtol=0.03)


@few
@given(shapes(), seeds)
@example((5, 1, 1), 0)
def test_rows_keep_their_mean_and_what_is_new_gets_it(shape, seed):
    """Between matrices of different ranks, no square is outside of those of its row."""
    rng = np.random.default_rng(seed)
    n, m, r = shape
    old, new = start(rng, n, m, r), start(rng, n, m, rng.integers(1, min(n, m) + 1))
    squares, rank = squares_of(rng, n, m, r), len(new[1])
    found = squares.transported(old, new)
    assert [part.shape for part in found] == [(n, rank), (rank, rank), (m, rank)]
    for before, after in zip(squares, found):
        assert np.min(after) >= np.min(before) - 1e-12
        assert np.max(after) <= np.max(before) + 1e-12
    turned = squares.transported(old, (old[0] @ orthonormal(rng, r, r), old[2]))
    np.testing.assert_allclose(np.sum(turned.L, axis=1), np.sum(squares.L, axis=1), rtol=1e-10)
    unknown = squares.spread(rank)
    means = np.mean(squares.K, axis=1, keepdims=True) * np.ones((1, rank))
    np.testing.assert_allclose(unknown.K, means, rtol=1e-10)
    np.testing.assert_allclose(unknown.S, np.full((rank, rank), np.mean(squares.S)), rtol=1e-10)


def test_averages():
    rng = np.random.default_rng(0)
    squares = squares_of(rng, 3, 4, 2)
    vector = TangentVector(*(tf.constant(rng.standard_normal(part.shape)) for part in squares))
    for old, new, found in zip(squares, vector, squares.averaged(vector, 0.9)):
        np.testing.assert_allclose(found, 0.9 * old + 0.1 * np.square(new), rtol=1e-12)
