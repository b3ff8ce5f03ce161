r"""Adam and its kin: a momentum divided by the size of the gradient, on the manifold.

Keras's optimizers keep the mean square of every entry of the gradient. Entries of U, S and V, or
of a K-part, mean nothing by themselves: another basis of the same matrix has others. What no
change of basis touches are the rows of the K-part `G V` and of the L-part `G^T U`, so their mean
squares are kept,

    p_i = mean_k (G V)_ik^2,    q_j = mean_k (G^T U)_jk^2,

n + m numbers a matrix. The mean square of an entry (i, j) is taken for `p_i q_j / e`, e their mean,
as Adafactor has it (Shazeer and Stern, arXiv:1804.04235), and the scaled matrix is

    N = diag(a) M diag(b),   a_i = p_i^(-1/2),   b_j = q_j^(-1/2)   (times a number).

Of N V the columns are summed over, so that b comes into it as a mean, weighted with the energy of
the momentum in each column: the K-part is `c_b diag(a) M V`, with `c_b^2 = sum(b^2 |L_j|^2) /
sum |L_j|^2`, the L-part likewise, and the pair of the two is mended where they meet (`to_tangent`).

The length of all of it is that of the step which Keras's rule makes of the whole matrix,
`||M / v^(1/2)||_F`. With `A = sum(a_i^2 |K_i|^2) / r` and B, its like for L, and with n' and m' the
numbers of rows and of columns that ever had a gradient, it is `(min(n' B, m' A))^(1/2)`: a row that
does not move makes A smaller and not n', a column B. So rows without a gradient make no difference,
however many they are: steps of a bag of words, of an embedding of which a twentieth is used, and of
an image classifier have 1.0 to 1.5 times the length of Keras's (benchmarks/step_lengths.py).

By Cauchy and Schwarz, the square of a momentum is at most `1 / ((1 - beta_2) (1 - beta_1^2 /
beta_2))` times the mean square of its gradients. A row of a momentum that was projected may have
more, from other rows, up to where it never had a gradient; a is smaller there.
"""

import keras
import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.rule import COLUMNS, ROWS, TANGENT, Direction, Rule, register_rule


def mean_squares(gradient):
    """The mean squares of the rows of the K-part and of the L-part: shapes `(n,)`, `(m,)`."""
    return (row_sparse.mean_squares(part) for part in (gradient.K, gradient.L))


class _Adaptive(Rule):
    """What the rules of this file share: the running squares, and the scaling of a momentum."""

    floor = 0.0
    # The most that the square of a momentum can be of the mean square of its gradients.
    limit = 1.0
    takes_rows = True

    def scaled_direction(self, momentum, rows, columns, point, share):
        blocks = row_sparse.dense(momentum.K), momentum.L
        counts = [tf.math.count_nonzero(part, dtype=part.dtype) for part in (rows, columns)]
        means = [
            tf.math.divide_no_nan(tf.reduce_sum(part), count)
            for part, count in zip((rows, columns), counts)
        ]
        # In the unit of the entries of the gradient, of which the smaller part has captured less.
        floors = [tf.math.divide_no_nan(self.floor**2 * one, tf.reduce_max(means)) for one in means]
        a, size_k, c = self._scales(blocks[0], rows, floors[0])
        b, size_l, d = self._scales(blocks[1], columns, floors[1])
        pair, present = point.to_tangent((d * a)[:, None] * blocks[0], (c * b)[:, None] * blocks[1])
        wanted = tf.minimum(counts[0] * size_l, counts[1] * size_k)
        length = tf.sqrt(tf.math.divide_no_nan(wanted, present))
        core = length * (pair.S + c * d * point.frozen(momentum.S))
        tangent = TangentVector(length * pair.K, core, length * pair.L)
        return Direction(tangent, share, length * a, b)

    def _scales(self, block, squares, floor):
        """What the rows of a block are multiplied by, and three sums of it."""
        present = row_sparse.mean_squares(block)
        most = tf.math.divide_no_nan(self.limit * squares, present)
        scales = tf.math.rsqrt(squares + floor + 1e-37) * tf.minimum(most, 1.0)
        size = tf.reduce_sum(tf.square(scales) * present)
        return scales, size, tf.sqrt(tf.math.divide_no_nan(size, tf.reduce_sum(present)))

    def averages(self, state, gradient, rate):
        """The running means of the mean squares, which forget by `rate` a step."""
        old = state["rows"], state["columns"]
        return (rate * a + (1.0 - rate) * b for a, b in zip(old, mean_squares(gradient)))


@register_rule(keras.optimizers.Adam, keras.optimizers.AdamW)
class AdamRule(_Adaptive):
    """`keras.optimizers.Adam` and `AdamW`: `M <- beta_1 P(M) + (1 - beta_1) G`, scaled.

    M is kept without the factor `1 - beta_1`, which is in the step size.

    Args:
        optimizer: the Keras optimizer.
        prefix: str, what its options `beta_1` and `beta_2` have before their names.
    """

    def __init__(self, optimizer, prefix=""):
        super().__init__(optimizer)
        self.betas = [getattr(optimizer, f"{prefix}beta_{number}") for number in (1, 2)]
        self.state = {"momentum": TANGENT, "rows": ROWS, "columns": COLUMNS}
        self.decay = self.betas[0]
        self.floor = optimizer.epsilon
        first, second = self.betas
        kept = max(1.0 - first**2 / second, 1e-6)
        self.limit = 1.0 / ((1.0 - second) * kept)

    def check(self):
        if self.optimizer.amsgrad:
            raise ValueError(
                "`amsgrad` has no meaning for a low-rank layer, whose second moments are those of "
                "rows and columns. Use Adam without it. Received: amsgrad=True"
            )

    def step_size(self, learning_rate, step):
        # In float32 the first of them would be off by 1e-4.
        wide = tf.cast(step, tf.float64)
        rest_1, rest_2 = (1.0 - tf.constant(beta, tf.float64) ** wide for beta in self.betas)
        unit = 1.0 - self.betas[0]
        return tf.cast(learning_rate, tf.float64) * unit * tf.sqrt(rest_2) / rest_1

    def direction(self, gradient, state, point, learning_rate, step):
        momentum = state["momentum"].plus(gradient)
        rows, columns = self.averages(state, gradient, self.betas[1])
        new = {"momentum": momentum, "rows": rows, "columns": columns}
        return self.scaled_direction(momentum, rows, columns, point, 1.0), new


@register_rule(keras.optimizers.RMSprop)
class RMSpropRule(_Adaptive):
    """`keras.optimizers.RMSprop`, not centered: scaled first, then the momentum."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.floor = optimizer.epsilon**0.5  # Keras adds epsilon to the mean square itself
        self.limit = 1.0 / (1.0 - optimizer.rho)
        self.state = {"rows": ROWS, "columns": COLUMNS}
        if optimizer.momentum:
            self.state["momentum"] = TANGENT
            self.decay = optimizer.momentum

    def check(self):
        if self.optimizer.centered:
            raise ValueError(
                "`centered` has no meaning for a low-rank layer, whose second moments are those "
                "of rows and columns. Use RMSprop without it, or Adam. Received: centered=True"
            )

    def step_size(self, learning_rate, step):
        return 1.0 if self.optimizer.momentum else learning_rate

    def direction(self, gradient, state, point, learning_rate, step):
        rows, columns = self.averages(state, gradient, self.optimizer.rho)
        new = {"rows": rows, "columns": columns}
        scaled = self.scaled_direction(gradient, rows, columns, point, 1.0)
        if not self.optimizer.momentum:
            return scaled, new
        new["momentum"] = state["momentum"].plus(scaled.tangent.scaled(learning_rate))
        return scaled._replace(tangent=new["momentum"], gradient_weight=learning_rate), new


@register_rule(keras.optimizers.Adagrad)
class AdagradRule(_Adaptive):
    """`keras.optimizers.Adagrad`: the squares of rows and columns are summed over all steps."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.state = {"rows": ROWS, "columns": COLUMNS}
        self.floor = optimizer.epsilon**0.5

    def direction(self, gradient, state, point, learning_rate, step):
        rows, columns = (
            old + new for old, new in zip((state["rows"], state["columns"]), mean_squares(gradient))
        )
        # Keras starts its sums there; it is in all of them for good.
        start = self.optimizer.initial_accumulator_value
        direction = self.scaled_direction(gradient, rows + start, columns + start, point, 1.0)
        return direction, {"rows": rows, "columns": columns}
