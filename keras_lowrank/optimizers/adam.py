r"""Adam, RMSprop and Adagrad on the manifold: a momentum scaled by the size of the gradient.

Keras keeps a mean square for every entry of the gradient. Entries of U, S and V, or of a K-part,
depend on the basis. The row norms of the K-part `G V` and of the L-part `G^T U` do not, so their
mean squares are the second moments here, n + m numbers a matrix:

    p_i = mean_k (G V)_ik^2,    q_j = mean_k (G^T U)_jk^2.

As in Adafactor (Shazeer and Stern, arXiv:1804.04235), `p_i q_j / e` with the mean e approximates
the mean square of the entry (i, j), and the scaled momentum is

    N = diag(a) M diag(b),   a_i = p_i^(-1/2),   b_j = q_j^(-1/2)   (up to a factor).

N V sums over the columns, so b enters as a mean, weighted with the energy of the momentum in each
column: the K-part is `c_b diag(a) M V`, with `c_b^2 = sum(b^2 |L_j|^2) / sum |L_j|^2`. The L-part
follows likewise, and `to_tangent` makes the two parts one tangent vector.

The update is rescaled to the length of Keras's update of the whole matrix, `||M / v^(1/2)||_F`:
one learning rate gives about the same update size as in Keras, at any rank. The estimate is
`(min(n' B, m' A))^(1/2)`, with `A = sum(a_i^2 |K_i|^2) / r`, B likewise for L, and n' and m' the
numbers of rows and columns that ever had a gradient. Rows without one do not change it.

By Cauchy and Schwarz, the square of a momentum is at most `1 / ((1 - beta_2) (1 - beta_1^2 /
beta_2))` times the mean square of its gradients. Projection may put more into a row, even one that
never had a gradient; a is reduced to that limit.
"""

from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.rule import (
    COLUMNS,
    ROWS,
    TANGENT,
    Direction,
    Float,
    Rule,
    State,
    register_rule,
)


def mean_squares(gradient: TangentVector, point: Chart) -> Iterator[tf.Tensor]:
    """The mean squares of the rows of the K-part and of the L-part: shapes `(n,)`, `(m,)`."""
    return (row_sparse.mean_squares(part) for part in point.outer_parts(gradient))


class _Adaptive(Rule):
    """Running mean squares, and the scaling of a momentum."""

    floor = 0.0
    # The largest ratio of the square of a momentum to the mean square of its gradients.
    limit = 1.0
    takes_rows = takes_tucker = True

    def scaled_direction(self, momentum, rows, columns, point, weight):
        k, l = point.outer_parts(momentum)
        blocks = row_sparse.dense(k), l
        counts = [tf.math.count_nonzero(part, dtype=part.dtype) for part in (rows, columns)]
        means = [
            tf.math.divide_no_nan(tf.reduce_sum(part), count)
            for part, count in zip((rows, columns), counts)
        ]
        # In the unit of a gradient entry: the smaller part has captured less of the gradient.
        floors = [tf.math.divide_no_nan(self.floor**2 * one, tf.reduce_max(means)) for one in means]
        a, size_k, c = self._scales(blocks[0], rows, floors[0])
        b, size_l, d = self._scales(blocks[1], columns, floors[1])
        scaled = (d * a)[:, None] * blocks[0], (c * b)[:, None] * blocks[1]
        tangent, present = point.to_tangent(*scaled, c * d * momentum.S)
        wanted = tf.minimum(counts[0] * size_l, counts[1] * size_k)
        length = tf.sqrt(tf.math.divide_no_nan(wanted, present))
        return Direction(tangent.scaled(length), weight, length * a, b)

    def _scales(self, block, squares, floor):
        """The factors for the rows of a block, the scaled energy, and the root mean factor."""
        present = row_sparse.mean_squares(block)
        most = tf.math.divide_no_nan(self.limit * squares, present)
        scales = tf.math.rsqrt(squares + floor + 1e-37) * tf.minimum(most, 1.0)
        size = tf.reduce_sum(tf.square(scales) * present)
        return scales, size, tf.sqrt(tf.math.divide_no_nan(size, tf.reduce_sum(present)))

    def averages(self, state, gradient, point, rate):
        """The running means of the mean squares, with decay `rate`."""
        old = state["rows"], state["columns"]
        return (rate * a + (1.0 - rate) * b for a, b in zip(old, mean_squares(gradient, point)))


@register_rule(keras.optimizers.Adam, keras.optimizers.AdamW)
class AdamRule(_Adaptive):
    """`keras.optimizers.Adam` and `AdamW`: `M <- beta_1 P(M) + (1 - beta_1) G`, scaled.

    The state leaves out the factor `1 - beta_1`, which is in the step size.

    Args:
        optimizer: the Keras optimizer.
        prefix: str, the prefix of its options `beta_1` and `beta_2`.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, prefix: str = "") -> None:
        super().__init__(optimizer)
        self.betas = [getattr(optimizer, f"{prefix}beta_{number}") for number in (1, 2)]
        self.state = {"momentum": TANGENT, "rows": ROWS, "columns": COLUMNS}
        self.decay = self.betas[0]
        self.floor = optimizer.epsilon
        first, second = self.betas
        rest = max(1.0 - first**2 / second, 1e-6)
        self.limit = 1.0 / ((1.0 - second) * rest)

    def check(self) -> None:
        if self.optimizer.amsgrad:
            raise ValueError(
                "`amsgrad` has no meaning for a low-rank layer, whose second moments change "
                "with its bases. Use Adam without it. Received: amsgrad=True"
            )

    def step_size(self, learning_rate: Float, step: Float) -> Float:
        # In float32 the first step would have an error of 1e-4.
        wide = tf.cast(step, tf.float64)
        rest_1, rest_2 = (1.0 - tf.constant(beta, tf.float64) ** wide for beta in self.betas)
        unit = 1.0 - self.betas[0]
        return tf.cast(learning_rate, tf.float64) * unit * tf.sqrt(rest_2) / rest_1

    def direction(
        self, gradient: TangentVector, state: State, point: Chart, learning_rate: Float, step: Float
    ) -> tuple[Direction, State]:
        momentum = state["momentum"].plus(gradient)
        rows, columns = self.averages(state, gradient, point, self.betas[1])
        new = {"momentum": momentum, "rows": rows, "columns": columns}
        return self.scaled_direction(momentum, rows, columns, point, 1.0), new


@register_rule(keras.optimizers.RMSprop)
class RMSpropRule(_Adaptive):
    """`keras.optimizers.RMSprop`, not centered: scaled first, then the momentum."""

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        super().__init__(optimizer)
        self.floor = optimizer.epsilon**0.5  # Keras adds epsilon to the mean square itself
        self.limit = 1.0 / (1.0 - optimizer.rho)
        self.state = {"rows": ROWS, "columns": COLUMNS}
        if optimizer.momentum:
            self.state["momentum"] = TANGENT
            self.decay = optimizer.momentum

    def check(self) -> None:
        if self.optimizer.centered:
            raise ValueError(
                "`centered` has no meaning for a low-rank layer, whose second moments are those "
                "of rows and columns. Use RMSprop without it, or Adam. Received: centered=True"
            )

    def step_size(self, learning_rate: Float, step: Float) -> Float:
        return 1.0 if self.optimizer.momentum else learning_rate

    def direction(
        self, gradient: TangentVector, state: State, point: Chart, learning_rate: Float, step: Float
    ) -> tuple[Direction, State]:
        rows, columns = self.averages(state, gradient, point, self.optimizer.rho)
        new = {"rows": rows, "columns": columns}
        scaled = self.scaled_direction(gradient, rows, columns, point, 1.0)
        if not self.optimizer.momentum:
            return scaled, new
        new["momentum"] = state["momentum"].plus(scaled.tangent.scaled(learning_rate))
        return scaled._replace(tangent=new["momentum"], gradient_weight=learning_rate), new


@register_rule(keras.optimizers.Adagrad)
class AdagradRule(_Adaptive):
    """`keras.optimizers.Adagrad`: the squares of rows and columns are summed over all steps."""

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        super().__init__(optimizer)
        self.state = {"rows": ROWS, "columns": COLUMNS}
        self.floor = optimizer.epsilon**0.5

    def direction(
        self, gradient: TangentVector, state: State, point: Chart, learning_rate: Float, step: Float
    ) -> tuple[Direction, State]:
        rows, columns = (
            old + new
            for old, new in zip((state["rows"], state["columns"]), mean_squares(gradient, point))
        )
        # Keras starts its sums there, and they never lose it.
        start = self.optimizer.initial_accumulator_value
        direction = self.scaled_direction(gradient, rows + start, columns + start, point, 1.0)
        return direction, {"rows": rows, "columns": columns}
