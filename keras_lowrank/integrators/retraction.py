r"""Back to rank r by r x r products alone, where a step is small beside the singular values kept.

A step changes W little, so the best approximation of `W^` at its old rank lies close to W: its
column space is the graph `U + R X` over U, and its row space `V + Q Y` over V, with the blocks

    R = -h (D V - U U^T D V),    Q = -h (D^T U - V V^T D^T U)

that the direction D adds outside of U and V, and small X and Y. In them

    W^ = U A V^T + R V^T + U Q^T (+ R M Q^T),    A = S - h U^T D V,

and the spaces are singular ones where, with `F = A + Q^T Q Y` and `H = A^T + R^T R X`,

    X F = I + M Q^T Q Y,    Y H = I + M^T R^T R X.

M is what an integrator has in the corner, zero in the parallel one.

Solved by turns, from `Y = A^-T`, these are the subspace iteration for `W^` warm-started at U and V,
and contract by `s_{r+1} / s_r`. No orthonormal basis of R or Q is needed, no direction has to be
told from noise, and no matrix larger than r x r is factorised.

The new core need not be diagonal. Written `M = (I + E) D` with its diagonal D, its singular values
are those of D within factors `1 +- ||E||` (Ostrowski). While that is little and the policy is sure
that no rank changes, M is kept as it is; only where `||E||` is too large or a rank may change is it
diagonalised.

Everything assumed is checked: that X and Y solve their equations to rounding, so that the result
is the truncation of a matrix that differs from `W^` by rounding; that all singular values kept
are above the whole tail; and that the tail is too small to have a say on the rank.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_lowrank import row_slices
from keras_lowrank.factors import Factorization
from keras_lowrank.integrators.integrator import Moved
from keras_lowrank.linalg import (
    Complement,
    fix_signs,
    identity_like,
    orthonormalized,
    roots,
    signed_svd,
    spectral_norm,
)
from keras_lowrank.tangent_vector import Overlap, overlap
from keras_lowrank.traces import rare

# What X and Y may leave of their equations, in units of rounding relative to ||A||_F: less than
# the singular value decomposition of W^ would, since a remainder of one sign adds up over steps.
_RESIDUAL_UNITS = 8.0

# ||X F - I||_F^2, and the same for Y, whatever R and Q are.
_LARGEST_GAP = 1e-2

# ||X^T R^T R X||_F, the squared tangent of the angle, up to which the series below are exact.
_LARGEST_ANGLE = 7e-3

# Defects of the new bases, by the roundings of Gram matrices that are differences.
_LARGEST_ROUNDING = 1e-5

# Below this ratio of the smallest to the largest singular value a Gram matrix loses too much.
_SMALLEST_VALUE = 1e-4

# ||E|| up to which a core stays as it is. Its square is what the first inverse is off by.
_LARGEST_SLACK = 0.05

# How often X and Y take turns. Without a corner each turn gains four orders of the angle, with one
# only the ratio of what is cut to what is kept.
_TURNS, _TURNS_WITH_CORNER = 1, 2


class Corner(NamedTuple):
    """The block `P^T D Z` of a step, P and Z the bases that D adds to U and to V.

    Attributes:
        left: `Complement` of `D V` to U, with the basis P of a columns.
        right: `Complement` of `D^T U` to V, with the basis Z of b columns.
        block: tensor, shape `(a, b)`.
    """

    left: Complement
    right: Complement
    block: tf.Tensor


class Near(NamedTuple):
    """The best approximation of `W^` near W, before anything tall is multiplied.

    Attributes:
        valid: scalar bool tensor, whether everything that was assumed holds.
        rank: int32 scalar tensor, the rank that the policy chooses.
        left: `(a, b)`, shapes `(r, r)`: the new U is `U a + (D V) b`.
        core: tensor, shape `(r, r)`, the new S: diagonal, or with all ranks kept nearly so.
        right: `(a, b)`: the new V is `V a + (D^T U) b`.
        overlap: `Overlap` of D with the new bases, shapes `(r, r)`.
    """

    valid: tf.Tensor
    rank: tf.Tensor
    left: tuple
    core: tf.Tensor
    right: tuple
    overlap: Overlap


def retract(problem, factors, direction, policy, otherwise, near=None):
    """Returns the truncation of `W - h D` at the rank that the policy chooses.

    What a step has outside of the tangent space is in both `otherwise` and `near`, or in neither.

    Args:
        problem: `Problem`, for what is common to all its matrices: h, whether to see to it that
            the new bases are orthonormal, whether their overlap is wanted.
        factors: `Factorization` of W.
        direction: `TangentVector` D.
        policy: `Policy`.
        otherwise: callable that returns a `Factorization`, the same by the general way.
        near: callable that returns the `Near` of the step, or None: what `nearest` has of
            `W - h P(D)`.

    Returns:
        `Moved`.
    """

    def measured(new):
        return Moved(new, overlap(direction, factors, new) if problem.wants_overlap else ())

    if not policy.by_tail:
        return measured(otherwise())
    near = near() if near else nearest(factors, direction, policy, problem.step_size)

    def finished():
        rank = near.rank
        u, v = (
            row_slices.combined(basis, a[:, :rank], part, b[:, :rank])
            for basis, part, (a, b) in (
                (factors.U, direction.K, near.left),
                (factors.V, direction.L, near.right),
            )
        )
        new = Factorization(u, near.core[:rank, :rank], v)
        lies = tuple(part[:, :rank] for part in near.overlap)
        return tf.cond(
            problem.check_bases,
            rare(lambda: measured(Factorization(*orthonormalized(*new)))),
            lambda: Moved(new, Overlap(*lies) if problem.wants_overlap else ()),
        )

    return tf.cond(near.valid, finished, rare(lambda: measured(otherwise())))


def grams(direction):
    """The Gram matrices `(r, r)` of what `D V` adds to U, and `D^T U` to V."""
    k, inside, l = direction
    # These differences may cancel; what they are off by is rounding beside A^T A.
    return _gram(k) - _gram(inside), _gram(l) - tf.matmul(inside, inside, transpose_b=True)


def nearest(factors, direction, policy, step_size, corner=None, known_grams=None):
    """Returns the `Near` of a step: r x r products and, in few steps, an eigenvalue problem.

    Args:
        factors: `Factorization` of W.
        direction: `TangentVector` D.
        policy: `Policy`.
        step_size: scalar tensor h.
        corner: `Corner`, what the step has outside of the tangent space, or None. It enters in
            second order, so its bases may be rough.
        known_grams: what `grams` returns, where the caller has it.
    """
    s, inside = factors.S, direction.S
    h = tf.cast(step_size, s.dtype)
    one = identity_like(s)
    a = s - h * inside
    gram_k, gram_l = known_grams or grams(direction)
    gram_r, gram_q = h * h * gram_k, h * h * gram_l

    m_q = m_r_t = None
    rest = tf.zeros([], s.dtype)
    if corner is not None:
        # With R = -h (D V)_new: M Q^T Q and (M^T R^T R)^T, and the norm of R M Q^T.
        left, right, block = corner
        m_q = -h * tf.matmul(left.root, tf.matmul(block, right.outside))
        m_r_t = -h * tf.matmul(
            tf.matmul(left.outside, block, transpose_a=True), right.root, transpose_b=True
        )
        rest = h * tf.norm(block)

    # The transpose of Y is kept, so that next to nothing is ever transposed.
    f_inverse = _first_inverse(a)
    f_inverse, _ = _improved_inverse(f_inverse, a, one)
    h_inverse = y_t = f_inverse
    turns = _TURNS if corner is None else _TURNS_WITH_CORNER
    for _ in range(turns if s.dtype == tf.float32 else 3 * turns):
        f = a + tf.matmul(gram_q, y_t, transpose_b=True)
        f_inverse, _ = _improved_inverse(f_inverse, f, one)
        x_right = _plus_one(m_q, y_t, one, transpose_b=True)
        x = f_inverse if corner is None else tf.matmul(x_right, f_inverse)
        x_gram = tf.matmul(x, gram_r, transpose_a=True)
        h_t = a + x_gram
        h_inverse, right_gap = _improved_inverse(h_inverse, h_t, one)
        y_t_right = _plus_one(x, m_r_t, one, transpose_a=True)
        y_t = h_inverse if corner is None else tf.matmul(h_inverse, y_t_right)
    gram_y = tf.matmul(gram_q, y_t, transpose_b=True)
    x_right = _plus_one(m_q, y_t, one, transpose_b=True)
    left_gap = _energy(tf.matmul(x, a + gram_y) - x_right)
    residual = tf.linalg.trace(gram_r) * left_gap + tf.linalg.trace(gram_q) * right_gap
    unit = np.finfo(s.dtype.as_numpy_dtype).eps
    solved = residual <= (_RESIDUAL_UNITS * unit) ** 2 * _energy(a)
    # Also where D adds nothing: an X that is no inverse would be large, and cancel in vain.
    solved &= tf.maximum(left_gap, right_gap) <= _LARGEST_GAP

    # U + R X has the Gram matrix I + E_left, and V + Q Y has I + E_right.
    e_left, e_right = tf.matmul(x_gram, x), tf.matmul(y_t, gram_y)
    angle = tf.sqrt(tf.maximum(_energy(e_left), _energy(e_right)))
    # Gram matrices are off by roundings of all of D, which X and Y may magnify.
    moved = tf.linalg.trace(gram_r + gram_q) + _energy(h * inside)
    rounding = unit * moved * tf.maximum(_energy(x), _energy(y_t))
    near = (angle <= _LARGEST_ANGLE) & (rounding <= _LARGEST_ROUNDING)
    n_left, _ = roots(e_left)
    n_right, root_right = roots(e_right)
    # What is cut is, in orthonormal coordinates, with the corner D, and R for its coordinates,
    # (I + X X^T)^(1/2) (D - R Y^T) (I + Y Y^T)^(-1/2).
    tail = (rest + tf.sqrt(tf.maximum(tf.reduce_sum(gram_r * e_right), 0.0))) * (1.0 + angle)
    # Since H^T Y^T = I + ..., W^^T (U + R X) = (V + Q Y) H.
    core = tf.matmul(tf.matmul(n_left, h_t), root_right)
    current = tf.shape(s)[0]
    diagonal = tf.abs(tf.linalg.diag_part(core))
    off = tf.linalg.set_diag(core, tf.zeros_like(diagonal))
    slack = tf.sqrt(spectral_norm(_gram(tf.math.divide_no_nan(off, diagonal))))
    steady = policy.keeps(diagonal, tail, slack, current)
    steady &= slack <= _LARGEST_SLACK
    steady &= (1.0 - slack) * tf.reduce_min(diagonal) > _least_value(
        tail, (1.0 + slack) * tf.reduce_max(diagonal)
    )

    def diagonalized():
        # What has diverged may be too large for an eigenvalue problem, which raises on a CPU.
        p, values, q = _moderate_svd(tf.where(solved & near, core, one))
        ranks = [
            policy.rank(tf.concat([values, [cut]], axis=0), current)
            for cut in (tail, tf.zeros_like(tail))
        ]
        sure = (ranks[0] == ranks[1]) & (ranks[0] <= current)
        sure &= values[-1] > _least_value(tail, values[0])
        return sure, ranks[0], tf.matmul(n_left, p), tf.linalg.diag(values), tf.matmul(n_right, q)

    sure, rank, left, core, right = tf.cond(
        steady, lambda: (steady, current, n_left, core, n_right), rare(diagonalized)
    )
    if policy.keeps_rank:  # the same number, but one that XLA can see before the branch is taken
        rank = policy.rank(diagonal, current)

    # U + R X = U (I + h S_D X) - h D V X.
    left_k = -h * tf.matmul(x, left)
    right_k = -h * tf.matmul(y_t, right, transpose_a=True)
    return Near(
        solved & near & sure,
        rank,
        (left - tf.matmul(inside, left_k), left_k),
        core,
        (right - tf.matmul(inside, right_k, transpose_a=True), right_k),
        # (D V)^T R = -h gram_k, and what is in U.
        Overlap(
            left,
            right,
            tf.matmul(inside, left, transpose_a=True) + tf.matmul(gram_k, left_k),
            tf.matmul(inside, right) + tf.matmul(gram_l, right_k),
        ),
    )


def _least_value(tail, largest):
    """What all singular values that are kept must exceed."""
    return tf.maximum(tail, _SMALLEST_VALUE * largest)


def _gram(block):
    return row_slices.inner(block, block)


def _energy(matrix):
    """The squared Frobenius norm."""
    return tf.reduce_sum(tf.square(matrix))


def _plus_one(a, b, one, **transpose):
    """`I + A B`, or I where there is no corner."""
    return one if a is None or b is None else one + tf.matmul(a, b, **transpose)


def _first_inverse(matrix):
    """`(D + O)^-1` to first order in O, for a diagonal D: S nearly is, and a step is short."""
    scale = tf.math.reciprocal_no_nan(tf.linalg.diag_part(matrix))
    return tf.linalg.diag(2.0 * scale) - scale[:, None] * matrix * scale


def _improved_inverse(inverse, matrix, one):
    """A step of Newton and Schulz, which squares the error. Diverges in silence.

    Returns the new inverse and a bound of `||I - M Z||_F^2` for it, up to rounding.
    """
    gap = one - tf.matmul(matrix, inverse)
    return inverse + tf.matmul(inverse, gap), tf.square(_energy(gap))


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
