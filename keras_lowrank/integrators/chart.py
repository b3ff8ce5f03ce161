r"""Between two full steps: a chart of the manifold, in which a step is an addition.

Near a matrix `W0 = U0 D V0^T`, D diagonal, every matrix of rank r is

    W = K C^-1 L^T   with   K = W V0,   C = U0^T W V0,   L = W^T U0,

and a step `W - h A` along a tangent vector `A = K_A V^T + U L_A^T - U S_A V^T` at the bases
`U = K C^-1` and `V = L C^-T` is, up to a term of second order that is normal to the manifold,

    K <- K - h K_A,   C <- C - h S_A,   L <- L - h L_A :

the orthographic retraction (Absil and Malick, SIAM J. Optim. 22, 2012). Tall blocks are added to,
as the factors of a plain product A B^T are, and nothing is orthonormalised. A momentum keeps its
numbers: to hold the three parts is to carry it along the chart, exact to first order, as a
trivialization of the manifold has it (Lezcano-Casado, arXiv:1909.09501).

A layer holds `U S V^T` all the time, here with `K D^-1`, `D C^-1 D` and `L D^-1` in their places.
Their ordinary gradients, which any tape takes, then are those of K, C and L:

    K-part = G_U D^-1,   L-part = G_V D^-1,   S-part = (S D^-1)^T G_S (S^T D^-1).

Only D has to be kept beside them. U and V are orthonormal at W0 and lose it with the square of the
angle between their present span and the one at W0; `Step.defect` measures that.

Columns with `D = 0` are frozen: their bases stay and only their core learns, `S <- S - h G_S`. What
is new or too faint to be turned gathers strength there.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.decompositions import identity_like, signed_svd
from keras_lowrank.manifold.point import Point, diagonal
from keras_lowrank.manifold.tangent_vector import TangentVector

# Columns of signs that the defect of a basis is measured with.
_PROBES = 4


class Step(NamedTuple):
    """A step inside the chart.

    Attributes:
        factors: `Point`, what the layer holds then.
        defect: scalar tensor, an estimate of the larger of `||U^T U - I||_F` for the two bases:
            no less than the square of the tangent of the largest angle. NaN where a value is not
            finite.
    """

    factors: Point
    defect: tf.Tensor


class Chart:
    """The chart that a layer is in, and where.

    Args:
        factors: `Point`, what the layer holds.
        scale: tensor, shape `(r,)`, the diagonal of D.

    Attributes:
        U, V: tensors `(n, r)` and `(m, r)`, bases of W that are orthonormal up to the defect.
        S: tensor `(r, r)`, what the layer holds.
        active: tensor, shape `(r,)`, 1 for each column that turns, 0 for a frozen one.
    """

    def __init__(self, factors, scale):
        self.factors, self.scale = factors, scale
        self.S = factors.S
        self._inverse = tf.math.reciprocal_no_nan(scale)
        self.active = tf.cast(scale > 0.0, scale.dtype)
        self._blocks = (
            self.active[:, None] * self.active,
            (1 - self.active)[:, None] * (1 - self.active),
        )
        self._left, self._right = self._turns(factors.S)

    @property
    def U(self):
        return tf.matmul(self.factors.U, self._left)

    @property
    def V(self):
        return tf.matmul(self.factors.V, self._right)

    def tangent(self, gradients, factor=None):
        """The gradient as a `TangentVector`, from those of U, S and V as any tape has them."""
        g_u, g_s, g_v = gradients
        factor = 1.0 if factor is None else tf.cast(factor, self.scale.dtype)
        scale = factor * self._inverse
        core = tf.matmul(tf.matmul(self._left, g_s, transpose_a=True), self._right)
        both, neither = self._blocks
        core *= both - neither  # what is frozen is in no other part
        return TangentVector(
            row_sparse.with_values(g_u, row_sparse.values(g_u) * scale),
            factor * core,
            g_v * scale,
        )

    def in_parts(self, tangent):
        """The same vector with an S-part that has nothing between frozen columns and others."""
        return tangent._replace(S=tangent.S * tf.add_n(self._blocks))

    def to_tangent(self, k, l):
        """The tangent vector of a K-part and an L-part that were worked out apart, and its size.

        Each implies an S-part. Their mean gives the vector whose K- and L-part, as they then are,
        are nearest to the given ones. It has nothing of what is frozen.

        Args:
            k: tensor, shape `(n, r)`.
            l: tensor, shape `(m, r)`.

        Returns:
            `(TangentVector, scalar tensor)`, the second its squared Frobenius norm.
        """
        cores = [
            tf.matmul(self._left, row_sparse.inner(self.factors.U, k), transpose_a=True),
            tf.matmul(tf.matmul(l, self.factors.V, transpose_a=True), self._right),
        ]
        cores = [core * self._blocks[0] for core in cores]
        core = 0.5 * (cores[0] + cores[1])
        inside, outside = ([tf.reduce_sum(x**2) for x in xs] for xs in ([core], cores))
        size = tf.reduce_sum(k**2) + tf.reduce_sum(l**2) - sum(outside) + inside[0]
        return TangentVector(k, core, l), tf.maximum(size, 0.0)

    def frozen(self, core):
        """The part of an S-part that is of frozen columns alone."""
        return core * self._blocks[1]

    def step(self, direction, step_size):
        """`W - h A` inside the chart, a `Step`."""
        u, s, v = self.factors
        k, core, l = direction
        h = tf.cast(step_size, s.dtype)
        turn = -h * self._inverse
        u = row_sparse.plus(u, row_sparse.with_values(k, row_sparse.values(k) * turn))
        v += l * turn
        # D (C - h S_A)^-1 D, to second order in h: what is left out is beyond the retraction's.
        core *= h
        move = tf.matmul(self._inverse[:, None] * core * self._inverse, s)
        gain = tf.matmul(s, move)
        s += gain + tf.matmul(gain, move) + core * self._blocks[1]
        left, right = self._turns(s)
        defects = [_defect(u, left), _defect(v, right)]
        return Step(Point(u, s, v), tf.maximum(*defects))

    def refreshed(self):
        """The same W with orthonormal bases, a `Point` with any core."""
        (left, core, right), factors = self._orthonormalizers(), self.factors
        return Point(tf.matmul(factors.U, left), core, tf.matmul(factors.V, right))

    def diagonalized(self):
        """`(A, s, B)` with `W = (U A) diag(s) (V B)^T`, U A and V B orthonormal, s descending."""
        left, core, right = self._orthonormalizers()
        p, values, q = signed_svd(core)
        return tf.matmul(left, p), values, tf.matmul(right, q)

    def rotated(self, left, values, right):
        """`(U A) diag(s) (V B)^T`, a `Point`: of what `diagonalized` returns, or first columns."""
        u, _, v = self.factors
        return Point(tf.matmul(u, left), diagonal(values), tf.matmul(v, right))

    def origin(self):
        """The same W at the origin of another chart, `(Point, scale)`; as many columns turn."""
        point = self.rotated(*self.diagonalized())
        scale = tf.linalg.diag_part(point.S)
        turns = tf.range(tf.size(scale)) < tf.math.count_nonzero(self.scale, dtype=tf.int32)
        return point, tf.where(turns, scale, tf.zeros_like(scale))

    def _orthonormalizers(self):
        """`(A, C, B)`, all `(r, r)`, with `W = (U A) C (V B)^T`, U A and V B orthonormal."""
        u, s, v = self.factors
        left, left_inverse = _orthonormalizer(u, self._left)
        right, right_inverse = _orthonormalizer(v, self._right)
        core = tf.matmul(tf.matmul(left_inverse, s), right_inverse, transpose_b=True)
        return left, core, right

    def holds(self):
        """Whether W is where the chart can be used, and whether it is at the origin; bool scalars.

        For factors of which it is not known who has assigned them.
        """
        one = identity_like(self.S)
        known = tf.reduce_all(self.scale >= 0.0)
        excesses = [tf.matmul(b, b, transpose_a=True) - one for b in (self.U, self.V)]
        off = tf.reduce_max(tf.abs(tf.stack(excesses)))
        turned = tf.reduce_max(tf.abs(tf.stack([self._left - one, self._right - one])))
        return known & (off <= 0.5), known & (tf.maximum(off, turned) <= 1e-4)

    def _turns(self, s):
        """What takes U and V as they are held to bases of W: `C^-1 D` and `C^-T D`."""
        frozen = tf.linalg.diag(1.0 - self.active)
        return s * self._inverse + frozen, tf.transpose(s) * self._inverse + frozen


def signs(n, count, dtype):
    """A matrix of plus and minus ones, shape `(n, count)`, that repeat in no pattern."""
    places = tf.range(1, n + 1)[:, None] * tf.range(1, count + 1)
    golden_angle = 2.399963
    return tf.sign(tf.cos(golden_angle * tf.cast(places, dtype) + 0.5))


def _defect(basis, turn):
    """An estimate of `||(B T)^T B T - I||_F`, by some columns of signs."""
    probes = signs(tf.shape(turn)[0], _PROBES, turn.dtype)
    seen = tf.matmul(basis, tf.matmul(turn, probes))
    seen = tf.matmul(turn, tf.matmul(basis, seen, transpose_a=True), transpose_a=True)
    return tf.sqrt(tf.reduce_sum(tf.square(seen - probes)) / _PROBES)


def _orthonormalizer(basis, turn):
    """`(A, A^-1)`, `(r, r)`, with orthonormal columns in `B A`, by a Cholesky factor.

    `B T` is almost orthonormal already, so that rounding is not enlarged.
    """
    gram = tf.matmul(basis, basis, transpose_a=True)
    factor = tf.linalg.cholesky(tf.matmul(tf.matmul(turn, gram, transpose_a=True), turn))
    inverse = tf.linalg.triangular_solve(factor, identity_like(factor))
    turn = tf.matmul(turn, inverse, transpose_b=True)
    return turn, tf.matmul(turn, gram, transpose_a=True)
