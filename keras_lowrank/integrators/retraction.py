r"""Back to rank r by r x r products alone, where a step is small beside the singular values kept.

A step changes W little, so the best approximation of `W^` at its old rank lies close to W: its
column space is the graph `U + R X` over U, and its row space `V + Q Y` over V, with the blocks

    R = -h (D V - U U^T D V),    Q = -h (D^T U - V V^T D^T U)

that the direction D adds outside of U and V, and small X and Y. In them

    W^ = U A V^T + R V^T + U Q^T (+ R M Q^T),    A = S - h U^T D V,

and the spaces are singular ones where, with `F = A + Q^T Q Y` and `H = A^T + R^T R X`,

    X F = I + M Q^T Q Y,    Y H = I + M^T R^T R X.

Solved by turns, from `Y = A^-T`, these are the subspace iteration for `W^` warm-started at U and V,
and contract by `s_{r+1} / s_r`. No orthonormal basis of R or Q is needed, no direction has to be
told from noise, and no matrix larger than r x r is factorised.

Everything assumed is checked: that X and Y solve their equations to rounding, so that the result
is the truncation of a matrix that differs from `W^` by rounding; that all singular values kept
are above the whole tail; and that the tail is too small to have a say on the rank.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_lowrank.factors import Factorization
from keras_lowrank.linalg import fix_signs, identity_like, orthonormalized, signed_svd

# What X and Y may leave of their equations, in units of rounding relative to ||A||_F: as much as
# the singular value decomposition of W^ would.
_RESIDUAL_UNITS = 16.0

# tr(X^T R^T R X), the squared tangent of the angle, up to which the series below are exact.
_LARGEST_ANGLE = 0.1

# Below this ratio of the smallest to the largest singular value a Gram matrix loses too much.
_SMALLEST_VALUE = 1e-4

# Newton's steps square an error: twice as many give twice the digits.
_ROUNDS = {tf.float32: 1, tf.float64: 2}


class Near(NamedTuple):
    """The best approximation of `W^` near W, before anything tall is multiplied.

    Attributes:
        valid: scalar bool tensor, whether everything that was assumed holds.
        rank: int32 scalar tensor, the rank that the policy chooses.
        left: `(a, b)`, shapes `(r, r)`: the new U is `U a + (D V) b`.
        values: tensor, shape `(r,)`, the singular values, descending.
        right: `(a, b)`: the new V is `V a + (D^T U) b`.
    """

    valid: tf.Tensor
    rank: tf.Tensor
    left: tuple
    values: tf.Tensor
    right: tuple


def retract(factors, direction, step_size, policy, check_bases, otherwise):
    """Returns the truncation of `W - h P(D)` at the rank that the policy chooses.

    Args:
        factors: `Factorization` of W.
        direction: `TangentVector` D.
        step_size: scalar tensor h.
        policy: `Policy`.
        check_bases: scalar bool tensor, whether to see to it that the new bases are orthonormal.
        otherwise: callable that returns a `Factorization`, the same by the general way.
    """
    if not policy.by_tail:
        return otherwise()
    near = nearest(factors, direction, step_size, policy)

    def finished():
        rank = near.rank
        u, v = (
            tf.matmul(basis, a[:, :rank]) + tf.matmul(part, b[:, :rank])
            for basis, part, (a, b) in (
                (factors.U, direction.K, near.left),
                (factors.V, direction.L, near.right),
            )
        )
        new = Factorization(u, tf.linalg.diag(near.values[:rank]), v)
        return tf.cond(check_bases, lambda: Factorization(*orthonormalized(*new)), lambda: new)

    return tf.cond(near.valid, finished, otherwise)


def nearest(factors, direction, step_size, policy):
    """Returns the `Near` of `W - h P(D)`: r x r products and one r x r eigenvalue problem."""
    s, (k, inside, l) = factors.S, direction  # noqa: E741 (the papers' letter)
    h = tf.cast(step_size, s.dtype)
    one = identity_like(s)
    a = s - h * inside
    # R^T R and Q^T Q. The difference may cancel; what it is off by is rounding beside A^T A.
    gram_r = h * h * (_gram(k) - _gram(inside))
    gram_q = h * h * (_gram(l) - tf.matmul(inside, inside, transpose_b=True))

    # The transpose of Y is kept, so that nothing is ever transposed.
    x = tf.linalg.diag(tf.math.divide_no_nan(tf.ones_like(s[0]), tf.linalg.diag_part(a)))
    for _ in range(2):
        x = _improved_inverse(x, a, one)
    y_t = x
    for _ in range(2 * _ROUNDS[s.dtype]):
        f = a + tf.matmul(gram_q, y_t, transpose_b=True)
        x = _improved_inverse(x, f, one)
        x_gram = tf.matmul(x, gram_r, transpose_a=True)
        h_t = a + x_gram
        y_t = _improved_inverse(y_t, h_t, one)
    gram_y = tf.matmul(gram_q, y_t, transpose_b=True)
    f = a + gram_y
    left_gap, right_gap = tf.matmul(x, f) - one, tf.matmul(h_t, y_t) - one
    residual = _inner(tf.matmul(gram_r, left_gap), left_gap) + _inner(
        tf.matmul(right_gap, gram_q), right_gap
    )
    unit = np.finfo(s.dtype.as_numpy_dtype).eps
    scale = tf.reduce_sum(tf.square(a))
    solved = residual <= (_RESIDUAL_UNITS * unit) ** 2 * scale

    # U + R X has the Gram matrix I + E_left, and V + Q Y has I + E_right.
    e_left, e_right = tf.matmul(x_gram, x), tf.matmul(y_t, gram_y)
    near = tf.maximum(tf.linalg.trace(e_left), tf.linalg.trace(e_right)) <= _LARGEST_ANGLE
    n_left, n_right = _inverse_root(e_left, one), _inverse_root(e_right, one)
    # What is cut is (I + X X^T)^(1/2) X F Y^T (I + Y Y^T)^(-1/2), in orthonormal coordinates.
    tail = tf.sqrt(
        tf.maximum(_inner(tf.matmul(e_left, f), tf.matmul(f, e_right)), 0.0)
        * (1 + tf.linalg.trace(e_left))
    )
    core = tf.matmul(tf.matmul(n_left, tf.matmul(one + e_left, f)), n_right)
    # What has diverged may be too large for an eigenvalue problem, which raises on a CPU.
    p, values, q = _moderate_svd(tf.where(solved & near, core, one))
    ranks = [
        policy.rank(tf.concat([values, [rest]], axis=0), current=tf.shape(s)[0])
        for rest in (tail, tf.zeros_like(tail))
    ]
    decided = (ranks[0] == ranks[1]) & (ranks[0] <= tf.shape(s)[0])
    kept = values[-1] > tf.maximum(tail, _SMALLEST_VALUE * values[0])

    # U + R X = U (I + h S_D X) - h D V X.
    left = tf.matmul(n_left, p)
    left_k = -h * tf.matmul(x, left)
    right = tf.matmul(n_right, q)
    right_k = -h * tf.matmul(y_t, right, transpose_a=True)
    return Near(
        solved & near & decided & kept,
        ranks[0],
        (left - tf.matmul(inside, left_k), left_k),
        values,
        (right - tf.matmul(inside, right_k, transpose_a=True), right_k),
    )


def _gram(block):
    return tf.matmul(block, block, transpose_a=True)


def _inner(a, b):
    return tf.reduce_sum(a * b)


def _improved_inverse(inverse, matrix, one):
    """A step of Newton and Schulz: the error `I - M Z` is squared. Diverges in silence."""
    return tf.matmul(inverse, 2.0 * one - tf.matmul(matrix, inverse))


def _inverse_root(e, one):
    """`(I + E)^(-1/2)` for a small symmetric E: three terms of the series, then Newton's steps."""
    root = one - 0.5 * e + 0.375 * tf.matmul(e, e)
    for _ in range(_ROUNDS[e.dtype]):
        root = 0.5 * tf.matmul(root, 3.0 * one - tf.matmul(tf.matmul(root, root), one + e))
    return root


def _moderate_svd(matrix):
    """`signed_svd` of a square matrix of moderate condition.

    For float32 by the eigenvectors of `M^T M` in float64: half the time of a singular value
    decomposition, and orthonormal to one rounding.
    """
    if matrix.dtype == tf.float64:
        return signed_svd(matrix)
    wide = tf.cast(matrix, tf.float64)
    energies, q = tf.linalg.eigh(_gram(wide))
    values, q = tf.sqrt(tf.maximum(energies, 0.0))[::-1], q[:, ::-1]
    p = tf.math.divide_no_nan(tf.matmul(wide, q), values)
    p, q = fix_signs(p, q)
    return tuple(tf.cast(part, matrix.dtype) for part in (p, values, q))
