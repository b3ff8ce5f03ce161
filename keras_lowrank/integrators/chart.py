r"""A chart of the manifold, in which a step is an addition: the steps between two full steps.

Near a matrix `W0 = U0 D V0^T`, D diagonal, every matrix of rank r is

    W = K C^-1 L^T   with   K = W V0,   C = U0^T W V0,   L = W^T U0,

and a step `W - h A` along a tangent vector `A = K_A V^T + U L_A^T - U S_A V^T` at the bases
`U = K C^-1` and `V = L C^-T` is, up to a term of second order that is normal to the manifold,

    K <- K - h K_A,   C <- C - h S_A,   L <- L - h L_A :

the orthographic retraction (Absil and Malick, SIAM J. Optim. 22, 2012). Nothing is
orthonormalised. A momentum keeps its three parts unchanged: this transports it to first order, as
in a trivialization of the manifold (Lezcano-Casado, arXiv:1909.09501).

A layer always holds factors `U S V^T`; in a chart, `U = K D^-1`, `S = D C^-1 D`, `V = L D^-1`. The
ordinary gradients of U, S and V from any tape give those of K, C and L:

    K-part = G_U D^-1,   L-part = G_V D^-1,   S-part = (S D^-1)^T G_S (S^T D^-1).

Only D is stored beside the factors. U and V are orthonormal at W0; away from it their defect grows
with the square of the angle to W0's spans, and `Step.defect` measures it.

Columns with `D = 0` are frozen: their bases stay, and only their core learns, `S <- S - h G_S`. New
and faint directions grow there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.complement import combine, complement
from keras_lowrank.manifold.decompositions import identity_like, signed_svd
from keras_lowrank.manifold.point import Point, diagonal
from keras_lowrank.manifold.tangent_vector import TangentVector

# Random-sign columns that estimate the defect of a basis.
_PROBES = 4


class Step(NamedTuple):
    """A step inside the chart.

    Attributes:
        factors: `Point`, the new factors of the layer.
        defect: scalar tensor, an estimate of the larger `||U^T U - I||_F` of the two bases, at
            least the squared tangent of the largest angle. NaN if a value is not finite.
    """

    factors: Point
    defect: tf.Tensor


class Chart:
    """The chart of a layer, and its present point there.

    Args:
        factors: `Point`, the factors of the layer.
        scale: tensor, shape `(r,)`, the diagonal of D.

    Attributes:
        U, V: tensors `(n, r)` and `(m, r)`, bases of W, orthonormal up to the defect.
        S: tensor `(r, r)`, the core of `factors`.
        active: tensor, shape `(r,)`, 1 for an active column, 0 for a frozen one.
    """

    def __init__(self, factors: Point, scale: tf.Tensor) -> None:
        self.factors, self.scale = factors, scale
        self.S = factors.S
        self._inverse = tf.math.reciprocal_no_nan(scale)
        self.active = tf.cast(scale > 0.0, scale.dtype)
        self._blocks = (
            self.active[:, None] * self.active,
            (1 - self.active)[:, None] * (1 - self.active),
        )
        self._left, self._right = self._basis_maps(factors.S)

    @property
    def U(self) -> tf.Tensor:
        return tf.matmul(self.factors.U, self._left)

    @property
    def V(self) -> tf.Tensor:
        return tf.matmul(self.factors.V, self._right)

    def tangent(
        self,
        gradients: tuple[row_sparse.Block, tf.Tensor, tf.Tensor],
        factor: tf.Tensor | None = None,
    ) -> TangentVector:
        """The tangent gradient, from the ordinary gradients of U, S and V.

        Args:
            gradients: gradients of the three factors of the layer.
            factor: scalar tensor to multiply with; None for 1.
        """
        g_u, g_s, g_v = gradients
        factor = 1.0 if factor is None else tf.cast(factor, self.scale.dtype)
        scale = factor * self._inverse
        core = tf.matmul(tf.matmul(self._left, g_s, transpose_a=True), self._right)
        both, neither = self._blocks
        core *= both - neither  # frozen columns have only the term -U S V^T
        return TangentVector(
            row_sparse.with_values(g_u, row_sparse.values(g_u) * scale),
            factor * core,
            g_v * scale,
        )

    def in_parts(self, tangent: TangentVector) -> TangentVector:
        """The vector without the blocks of its S-part between frozen and active columns."""
        return tangent._replace(S=tangent.S * tf.add_n(self._blocks))

    def from_pair(self, tangent: TangentVector) -> TangentVector:
        """A vector from `transport` as parts in the chart, like those of a gradient.

        Frozen columns have only the term `-U S V^T`, so that their block of S changes its sign.
        """
        both, neither = self._blocks
        k = row_sparse.with_values(tangent.K, row_sparse.values(tangent.K) * self.active)
        return TangentVector(k, tangent.S * (both - neither), tangent.L * self.active)

    def outer_parts(self, tangent: TangentVector) -> tuple[row_sparse.Block, tf.Tensor]:
        """The parts whose rows are those of W, and those of its transpose: `A V` and `A^T U`."""
        return tangent.K, tangent.L

    def to_tangent(
        self, k: tf.Tensor, l: tf.Tensor, core: tf.Tensor
    ) -> tuple[TangentVector, tf.Tensor]:
        """The tangent vector nearest to a K-part and an L-part from separate formulas.

        Each of the two implies an S-part, and the result has their mean; for frozen columns, that
        of `core`.

        Args:
            k: tensor, shape `(n, r)`.
            l: tensor, shape `(m, r)`.
            core: tensor, shape `(r, r)`.

        Returns:
            `(TangentVector, scalar tensor)`, the second its squared Frobenius norm, without frozen
            columns.
        """
        cores = [
            tf.matmul(self._left, row_sparse.inner(self.factors.U, k), transpose_a=True),
            tf.matmul(tf.matmul(l, self.factors.V, transpose_a=True), self._right),
        ]
        cores = [one * self._blocks[0] for one in cores]
        mean = 0.5 * (cores[0] + cores[1])
        # In one pass over the block, without its squares.
        energies = [2.0 * tf.nn.l2_loss(part) for part in (k, l, mean, *cores)]
        size = energies[0] + energies[1] + energies[2] - energies[3] - energies[4]
        vector = TangentVector(k, mean + core * self._blocks[1], l)
        return vector, tf.maximum(size, 0.0)

    def mapped(
        self, tangent: TangentVector, function: Callable[[tf.Tensor], tf.Tensor]
    ) -> TangentVector:
        """The projection of `f(A)`, for an odd function f of the singular values of a vector A.

        With `A = [U, Q] C [V, Z]^T`, it is `[U, Q] f(C) [V, Z]^T` without the block between Q and
        Z, which is normal to the manifold.

        Args:
            tangent: `TangentVector`.
            function: callable from the core C to f(C), of the same shape.
        """
        # Static, with zeros in place of noise: XLA needs it, and zero columns change nothing.
        left = complement(tangent.K, self.U, static=True)
        right = complement(tangent.L, self.V, static=True)
        rank, sizes = tf.shape(tangent.S)[0], [tf.shape(one.whitening)[1] for one in (left, right)]
        core = function(
            tf.concat(
                [
                    tf.concat([tangent.S, tf.transpose(right.outside)], axis=1),
                    tf.concat([left.outside, tf.zeros(sizes, tangent.S.dtype)], axis=1),
                ],
                axis=0,
            )
        )
        return TangentVector(
            combine(self.U, left, core[:, :rank]),
            core[:rank, :rank],
            combine(self.V, right, tf.transpose(core[:rank])),
        )

    def step(self, direction: TangentVector, step_size: tf.Tensor) -> Step:
        """`W - h A` inside the chart."""
        u, s, v = self.factors
        k, core, l = direction
        h = tf.cast(step_size, s.dtype)
        weights = -h * self._inverse
        u = row_sparse.plus(u, row_sparse.with_values(k, row_sparse.values(k) * weights))
        v += l * weights
        # D (C - h S_A)^-1 D to second order in h, the order of the retraction.
        core *= h
        move = tf.matmul(self._inverse[:, None] * core * self._inverse, s)
        gain = tf.matmul(s, move)
        s += gain + tf.matmul(gain, move) + core * self._blocks[1]
        left, right = self._basis_maps(s)
        defects = [_defect(u, left), _defect(v, right)]
        return Step(Point(u, s, v), tf.maximum(*defects))

    def refreshed(self) -> Point:
        """The same W with orthonormal bases; the core need not be diagonal."""
        (left, core, right), factors = self._orthonormalizers(), self.factors
        return Point(tf.matmul(factors.U, left), core, tf.matmul(factors.V, right))

    def diagonalized(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`(A, s, B)` with `W = (U A) diag(s) (V B)^T`, U A and V B orthonormal, s descending."""
        left, core, right = self._orthonormalizers()
        p, values, q = signed_svd(core)
        return tf.matmul(left, p), values, tf.matmul(right, q)

    def rotated(self, left: tf.Tensor, values: tf.Tensor, right: tf.Tensor) -> Point:
        """`(U A) diag(s) (V B)^T`, for all or the first columns of `diagonalized`."""
        u, _, v = self.factors
        return Point(tf.matmul(u, left), diagonal(values), tf.matmul(v, right))

    def origin(self) -> tuple[Point, tf.Tensor]:
        """`(point, scale)`: the same W at the origin of a chart, with as many active columns."""
        point = self.rotated(*self.diagonalized())
        scale = tf.linalg.diag_part(point.S)
        active = tf.range(tf.size(scale)) < tf.math.count_nonzero(self.scale, dtype=tf.int32)
        return point, tf.where(active, scale, tf.zeros_like(scale))

    def _orthonormalizers(self):
        """`(A, C, B)`, all `(r, r)`, with `W = (U A) C (V B)^T`, U A and V B orthonormal."""
        u, s, v = self.factors
        left, left_inverse = _orthonormalizer(u, self._left)
        right, right_inverse = _orthonormalizer(v, self._right)
        core = tf.matmul(tf.matmul(left_inverse, s), right_inverse, transpose_b=True)
        return left, core, right

    def holds(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Whether W is inside the chart, and whether it is at the origin: bool scalars.

        It checks factors that someone else may have assigned.
        """
        one = identity_like(self.S)
        known = tf.reduce_all(self.scale >= 0.0)
        excesses = [tf.matmul(b, b, transpose_a=True) - one for b in (self.U, self.V)]
        off = tf.reduce_max(tf.abs(tf.stack(excesses)))
        turned = tf.reduce_max(tf.abs(tf.stack([self._left - one, self._right - one])))
        return known & (off <= 0.5), known & (tf.maximum(off, turned) <= 1e-4)

    def _basis_maps(self, s):
        """`C^-1 D` and `C^-T D`, which map the factors U and V of the layer to bases of W."""
        frozen = tf.linalg.diag(1.0 - self.active)
        return s * self._inverse + frozen, tf.transpose(s) * self._inverse + frozen


def signs(n: int | tf.Tensor, count: int, dtype: tf.DType) -> tf.Tensor:
    """A matrix of plus and minus ones without a regular pattern, shape `(n, count)`."""
    places = tf.range(1, n + 1)[:, None] * tf.range(1, count + 1)
    golden_angle = 2.399963
    return tf.sign(tf.cos(golden_angle * tf.cast(places, dtype) + 0.5))


def _defect(basis, turn):
    """An estimate of `||(B T)^T B T - I||_F`, from some columns of random signs."""
    probes = signs(tf.shape(turn)[0], _PROBES, turn.dtype)
    products = tf.matmul(basis, tf.matmul(turn, probes))
    products = tf.matmul(turn, tf.matmul(basis, products, transpose_a=True), transpose_a=True)
    return tf.sqrt(tf.reduce_sum(tf.square(products - probes)) / _PROBES)


def _orthonormalizer(basis, turn):
    """`(A, A^-1)`, `(r, r)`, with orthonormal columns in `B A`, from a Cholesky factor.

    `B T` is almost orthonormal already, so rounding is not amplified.
    """
    gram = tf.matmul(basis, basis, transpose_a=True)
    factor = tf.linalg.cholesky(tf.matmul(tf.matmul(turn, gram, transpose_a=True), turn))
    inverse = tf.linalg.triangular_solve(factor, identity_like(factor))
    turn = tf.matmul(turn, inverse, transpose_b=True)
    return turn, tf.matmul(turn, gram, transpose_a=True)
