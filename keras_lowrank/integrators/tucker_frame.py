r"""The tangent space at a Tucker-2 kernel, and the steps that leave from there.

At `W_k = U S_k V^T`, with `A_k` and `B_k` as in `manifold.tucker`, the ordinary gradients of U and
V from any tape give the outer parts of the tangent gradient, and that of S is its middle part:

    K = (I - U U^T) G_U L_1^-T,   C = G_S,   L = (I - V V^T) G_V L_2^-T.

`step` is the orthographic retraction. With `S' = S - h C`,

    U' = U - h K (S'_(1) A_(1)^T)^-1,   V' = V - h L (S'_(2) B_(2)^T)^-1,

and `U' S'_k V'^T` differs from `W_k - h X_k` by a normal vector of second order. `augmented` has
`W - h X` exactly, in bases with up to twice as many columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold.complement import Complement, complement, rotate
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.manifold.tucker import (
    TuckerPoint,
    TuckerVector,
    orthonormal,
    product_of_columns,
    product_of_rows,
    whitening,
)


class AugmentedTucker(NamedTuple):
    """A kernel in the bases `[U, Q]` and `[V, Z]`.

    Attributes:
        left: `Complement` of the K-part to U; its basis is Q.
        core: tensor, shape `(K, p + a, q + b)`.
        right: `Complement` of the L-part to V; its basis is Z.
    """

    left: Complement
    core: tf.Tensor
    right: Complement


class TuckerFrame:
    """The tangent space at a Tucker-2 kernel, as an optimizer rule sees it, like a `Chart`.

    Args:
        factors: `TuckerPoint`.

    Attributes:
        U, V: tensors `(n, p)` and `(m, q)`, its bases.
        S: tensor `(K, p, q)`, its core.
    """

    def __init__(self, factors: Point) -> None:
        self.factors = factors
        self.U, self.S, self.V = factors
        self._left = whitening(product_of_rows(self.S, self.S))
        self._right = whitening(product_of_columns(self.S, self.S))
        self._a = tf.matmul(self._left, self.S)
        self._b = tf.matmul(self.S, self._right, transpose_b=True)

    def tangent(
        self, gradients: tuple[tf.Tensor, tf.Tensor, tf.Tensor], factor: tf.Tensor | None = None
    ) -> TangentVector:
        """The tangent gradient, from the ordinary gradients of U, S and V, times a scalar."""
        g_u, g_s, g_v = gradients
        k = _outside(tf.matmul(g_u, self._left, transpose_b=True), self.U)
        l = _outside(tf.matmul(g_v, self._right, transpose_b=True), self.V)
        vector = TuckerVector(k, g_s, l)
        return vector if factor is None else vector.scaled(factor)

    def outer_parts(self, tangent: TangentVector) -> tuple[tf.Tensor, tf.Tensor]:
        """`X_(1) (I x V) A_(1)^T` and its mirror, whose rows are those of the channels."""
        k, core, l = tangent
        return (
            k + tf.matmul(self.U, product_of_rows(core, self._a)),
            l + tf.matmul(self.V, product_of_columns(core, self._b)),
        )

    def to_tangent(
        self, k: tf.Tensor, l: tf.Tensor, core: tf.Tensor
    ) -> tuple[TuckerVector, tf.Tensor]:
        """The tangent vector with outer parts from separate formulas, as in `Chart.to_tangent`.

        Each of the two implies a share of the middle part, in the row space of the core, and the
        result has their mean; the rest is that of `core`.
        """
        left = tf.matmul(self.U, k, transpose_a=True) - product_of_rows(core, self._a)
        right = tf.matmul(l, self.V, transpose_a=True)
        right -= tf.transpose(product_of_columns(core, self._b))
        core += 0.5 * (tf.matmul(left, self._a) + tf.matmul(self._b, right))
        vector = TuckerVector(_outside(k, self.U), core, _outside(l, self.V))
        return vector, vector.squared_norm()

    def mapped(
        self, tangent: TangentVector, function: Callable[[tf.Tensor], tf.Tensor]
    ) -> TuckerVector:
        """The projection of `f(X)`, for an odd function f of the singular values, as in `Chart`.

        X is the matrix of all `X_k`, one below the other.
        """
        k, core, l = tangent
        left, right = complement(k, self.U, static=True), complement(l, self.V, static=True)
        p, q = tf.unstack(tf.shape(core)[1:])
        top = tf.concat([core, tf.matmul(self._b, right.outside, transpose_b=True)], axis=2)
        bottom = tf.matmul(left.outside, self._a)
        bottom = tf.pad(bottom, [[0, 0], [0, 0], [0, tf.shape(top)[2] - q]])
        core = tf.concat([top, bottom], axis=1)
        shape = tf.shape(core)
        core = tf.reshape(function(tf.reshape(core, [-1, shape[2]])), shape)
        k = tf.matmul(left.formed(self.U), product_of_rows(core[:, p:, :q], self._a))
        l = tf.matmul(right.formed(self.V), product_of_columns(core[:, :p, q:], self._b))
        return TuckerVector(k, core[:, :p, :q], l)

    def step(self, direction: TangentVector, step_size: tf.Tensor) -> tuple[TuckerPoint, tf.Tensor]:
        """`(point, defect)`: W after `h X`, and the squared tangent of the largest angle, at least.

        NaN if a value is not finite.
        """
        k, core, l = direction
        h = tf.cast(step_size, core.dtype)
        inner = [
            h * tf.matmul(tf.matmul(root, moved), root, transpose_b=True)
            for root, moved in (
                (self._left, product_of_rows(core, self.S)),
                (self._right, product_of_columns(core, self.S)),
            )
        ]
        # The inverses to second order, the order of the retraction.
        roots = [root + tf.matmul(x, root) for x, root in zip(inner, (self._left, self._right))]
        u, v = (h * tf.matmul(part, root) for part, root in zip((k, l), roots))
        sizes = [tf.reduce_sum(tf.square(part)) for part in (u, v, *inner)]
        defect = tf.reduce_max(tf.stack(sizes))
        near = tf.cast(defect < 1.0, h.dtype)  # the caller takes no longer step
        point = orthonormal(self.U - near * u, self.S - h * core, self.V - near * v)
        return point, defect

    def augmented(
        self, direction: TangentVector, step_size: tf.Tensor, static: bool = False
    ) -> AugmentedTucker:
        """`W - h X` in augmented bases: stages 2 and 3. Arguments as in `complement`."""
        k, core, l = direction
        h = tf.cast(step_size, core.dtype)
        left, right = complement(k, self.U, static), complement(l, self.V, static)
        new = tf.shape(left.whitening)[1], tf.shape(right.whitening)[1]
        zero = tf.zeros([tf.shape(core)[0], *new], core.dtype)
        top = [self.S - h * core, -h * tf.matmul(self._b, right.outside, transpose_b=True)]
        bottom = [-h * tf.matmul(left.outside, self._a), zero]
        rows = [tf.concat(row, axis=2) for row in (top, bottom)]
        return AugmentedTucker(left, tf.concat(rows, axis=1), right)

    def rotated(
        self, augmented: AugmentedTucker, p: tf.Tensor, core: tf.Tensor, q: tf.Tensor
    ) -> TuckerPoint:
        """The kernel with the bases `[U, Q] P` and `[V, Z] R` and a core."""
        return orthonormal(
            rotate(self.U, augmented.left, p), core, rotate(self.V, augmented.right, q)
        )

    def transport(
        self, tangent: TangentVector, new: TuckerFrame, factor: float = 1.0
    ) -> TuckerVector:
        """Projects `c X` onto the tangent space of another `TuckerFrame`, exactly."""
        k, core, l = (factor * part for part in tangent)
        v_v = tf.matmul(self.V, new.V, transpose_a=True)
        u_u = tf.matmul(self.U, new.U, transpose_a=True)
        k_u = tf.matmul(k, new.U, transpose_a=True)
        l_v = tf.matmul(l, new.V, transpose_a=True)
        # X_k V1 = K a_k + U inner_k, and X_k^T U1 = V outer_k + L b_k^T.
        a = tf.matmul(self._a, v_v)
        inner = tf.matmul(core, v_v) + tf.matmul(self._b, l_v)
        b = tf.matmul(u_u, self._b, transpose_a=True)
        outer = tf.matmul(k_u, self._a, transpose_a=True) + tf.matmul(u_u, core, transpose_a=True)
        k = tf.matmul(k, product_of_rows(a, new._a))
        k += tf.matmul(self.U, product_of_rows(inner, new._a))
        l = tf.matmul(l, product_of_columns(b, new._b))
        l += tf.matmul(self.V, product_of_columns(outer, new._b))
        core = tf.matmul(k_u, a, transpose_a=True) + tf.matmul(u_u, inner, transpose_a=True)
        return TuckerVector(_outside(k, new.U), core, _outside(l, new.V))


def _outside(block, basis):
    """The block without its part in the span of a basis."""
    return block - tf.matmul(basis, tf.matmul(basis, block, transpose_a=True))
