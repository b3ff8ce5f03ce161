r"""Adam for every coordinate of U, S and V, with U and V on Stiefel manifolds.

`W = U S V^T` moves along `dU S V^T + U dS V^T + U S dV^T`. The S-part of a gradient G moves S, so
that dU and dV are orthogonal to U and V (horizontal). At the last full step S was diagonal, and up
to the factors `s_k` of their columns, which no ratio of Adam depends on, the gradients of U, S and
V are

    K_o = (I - U U^T) G V,   U^T G V,   L_o = (I - V V^T) G^T U.

Adam scales every entry of the three by its own second moment v, here for K_o:

    dU = (I - U U^T) (m / (v^(1/2) + eps)).

So every coordinate of U, S and V moves by about the learning rate, as weights do in Keras.

The momentum m is a tangent vector, and is carried to the next bases by projection. The second
moments belong to the coordinates: a full step turns them with its bases, as `manifold.Squares`
says. By Cauchy and Schwarz no `m^2` in fixed coordinates is more than `1 / ((1 - beta_2) (1 -
beta_1^2 / beta_2))` times v; m is cut to that where bases have turned.

The way from gradient to step is that of StelLA (Li, Sajadmanesh, Li and Lyu, arXiv:2510.01938):
Riemannian gradient, Adam on its entries, projection, retraction. The retraction is the
integrator's, and the coordinates are those of the singular vectors of W, so that a step depends on
W alone, not on how it was factorised.
"""

import keras
import tensorflow as tf

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.adam import AdamRule
from keras_lowrank.optimizers.rule import (
    SQUARES,
    TANGENT,
    Direction,
    Float,
    State,
    register_rule,
)


@keras.saving.register_keras_serializable("keras_lowrank")
class StiefelAdam(keras.optimizers.Adam):
    r"""Adam that treats the entries of U, S and V of a low-rank layer as its coordinates.

    With the gradient G of W, and moments m and v of every entry of `(I - U U^T) G V`, `U^T G V` and
    `(I - V V^T) G^T U`, the step is `W - h (dU S V^T + U dS V^T + U S dV^T)`,

        dU = (I - U U^T) (m / (v^(1/2) + eps)),   dS and dV alike.

    After StelLA (Li, Sajadmanesh, Li and Lyu, arXiv:2510.01938). `keras.optimizers.Adam` in a
    low-rank model keeps second moments of the rows and columns of W instead, and rescales updates
    to the size of Keras's. Here every coordinate moves by about the learning rate, and a layer
    holds twice the numbers of a momentum. All other variables are updated as with Keras's Adam.

    It trains matrices, not Tucker-2 kernels.

    Args:
        learning_rate, beta_1, beta_2, epsilon, kwargs: as in `keras.optimizers.Adam`, with
            `weight_decay` as in AdamW. `amsgrad` is refused.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    >>> model.compile(optimizers.StiefelAdam(0.002, weight_decay=0.01), "mse")
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0)
    """


@register_rule(StiefelAdam)
class StiefelAdamRule(AdamRule):
    """`StiefelAdam`. The state leaves out the factor `1 - beta_1`, as that of `AdamRule`."""

    takes_rows = takes_tucker = False

    def __init__(self, optimizer: StiefelAdam) -> None:
        super().__init__(optimizer)
        self.state = {"momentum": TANGENT, "squares": SQUARES}

    def direction(
        self, gradient: TangentVector, state: State, point: Chart, learning_rate: Float, step: Float
    ) -> tuple[Direction, State]:
        momentum = state["momentum"].plus(gradient)
        squares = state["squares"].averaged(_coordinates(gradient, point), self.betas[1])
        parts = zip(_coordinates(momentum, point), squares)
        u, s, v = (self._ratios(entries, means) for entries, means in parts)
        tangent = TangentVector(
            _outer_part(u, s, point.U, point), s, _outer_part(v, tf.transpose(s), point.V, point)
        )
        new = {"momentum": momentum, "squares": squares}
        return Direction(tangent, gradient_weight=None), new

    def _ratios(self, entries, squares):
        roots = tf.sqrt(squares)
        most = self.limit**0.5 * roots
        return tf.clip_by_value(entries, -most, most) / (roots + self.floor)


def _coordinates(vector, point):
    """The entries of `(I - U U^T) A V`, `U^T A V` and `(I - V V^T) A^T U`, none of them frozen."""
    k, s, l = point.in_parts(vector)
    return (
        (k - tf.matmul(point.U, s)) * point.active,
        s,
        (l - tf.matmul(point.V, s, transpose_b=True)) * point.active,
    )


def _outer_part(move, core, basis, point):
    """`(I - U U^T) dU S + U dS`, for the moves of the coordinates of U and S."""
    # A frozen column may be what an active one turns to.
    inside = point.active[:, None] * tf.matmul(basis, move, transpose_a=True)
    outside = move - tf.matmul(basis, inside)
    return outside * point.scale + tf.matmul(basis, core) * point.active
