"""The gated recurrent unit with low-rank kernels."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.layers.gated_cell import GatedCell
from keras_lowrank.layers.gated_layer import GatedLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankGRUCell(GatedCell, keras.layers.GRUCell):
    r"""`keras.layers.GRUCell` whose kernels are low-rank: one step of a `LowRankGRU`.

    Use it in `keras.layers.RNN` and `StackedRNNCells`. A `LowRankGRU` is faster: it multiplies with
    the inputs of all steps at once. The integrator `"rank_adaptive"` needs the inputs of every
    product, so it needs `unroll=True` around a cell.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer: as in `keras.layers.GRUCell`.
        rank, min_rank, max_rank, truncation, stacked: as in `LowRankGRU`.
        **kwargs: all other arguments of `keras.layers.GRUCell`.

    Input shape:
        `(batch, n)`, and a state of shape `(batch, units)`.

    Output shape:
        `(batch, units)`, and the new state.

    Raises:
        ValueError: an argument outside its range; when built, a rank in a dict above `min(n, m)`.

    Example:

    >>> layer = keras.layers.RNN(LowRankGRUCell(8, rank=2))
    >>> layer(np.ones((2, 5, 6))).shape.as_list()
    [2, 8]
    """

    keras_layer = keras.layers.GRUCell
    gates = "zrh"

    def call(self, inputs: tf.Tensor, states: Any, training: bool = False) -> Any:
        output, new_states = super().call(inputs, states, training)
        return output, new_states if isinstance(states, (list, tuple)) else output

    def step(
        self, projected: tf.Tensor, states: Any, training: bool
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        if self.reset_after:
            return super().step(projected, states, training)
        # The candidate multiplies with the state after the reset gate.
        (h,) = tf.nest.flatten(states)
        z, r = self._opened(self.recurrent_product(h, training) + projected)
        reset = self.recurrent_product(r * h, training)[..., 2 * self.units :]
        return self._mixed(z, h, projected[..., 2 * self.units :] + reset)

    def summands(self, projected: tf.Tensor) -> list[tf.Tensor]:
        # The second one is added to the candidate, after the reset.
        gates, candidate = projected[..., : 2 * self.units], projected[..., 2 * self.units :]
        if self.bias is None:
            return [tf.concat([gates, tf.zeros_like(candidate)], -1), candidate]
        bias = self._own_bias()[1]
        gates += bias[: 2 * self.units]
        return [
            tf.concat([gates, tf.zeros_like(candidate) + bias[2 * self.units :]], -1),
            candidate,
        ]

    def advance(self, parts: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        sums, candidate, h = parts
        z, r = self._opened(sums)
        return self._mixed(z, h, candidate + r * sums[..., 2 * self.units :])

    def _opened(self, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the gates z and r."""
        gates = self.recurrent_activation(sums[..., : 2 * self.units])
        return gates[..., : self.units], gates[..., self.units :]

    def _mixed(
        self, z: tf.Tensor, h: tf.Tensor, candidate: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        h = z * h + (1 - z) * self.activation(candidate)
        return h, [h]

    def _bias_shape(self) -> tuple[int, ...]:
        # As in Keras: with the reset after the product, both products have a bias.
        return (2, 3 * self.units) if self.reset_after else (3 * self.units,)

    def _initial_bias(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        return self.bias_initializer(shape, dtype=dtype)

    def _input_bias(self) -> tf.Tensor:
        bias = self._own_bias()
        return bias[0] if self.reset_after else bias


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankGRU(GatedLayer, keras.layers.GRU):
    r"""`keras.layers.GRU` whose kernels are low-rank matrices `U S V^T`.

    With `p = x_t W + b = [p_z, p_r, p_h]` and `q = h_{t-1} R + b' = [q_z, q_r, q_h]`,

        h_t = z h_{t-1} + (1 - z) tanh(p_h + r q_h),   z = sigma(p_z + q_z),   r = sigma(p_r + q_r),

    where W (n x 3 units) and R (units x 3 units) hold the gates' columns side by side. Each is one
    low-rank matrix or, with `stacked=False`, one for each gate. With `reset_after=False`, `q_h` is
    the product of `r h_{t-1}`, and there is no `b'`. `LowRankModel.ranks` has the ranks under
    `.../gru_cell/kernel` and `.../gru_cell/recurrent_kernel`; with `stacked=False` these paths end
    in `_z`, `_r` and `_h`.

    The layer multiplies with W for the whole sequence at once.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer: as in `keras.layers.GRU`.
        use_cudnn: `"auto"` or `False`; cuDNN is not used: it multiplies with whole kernels.
        rank: int or None, the rank to start with, as in `LowRankLayer`; or a dict with the keys
            `"kernel"` and `"recurrent_kernel"`. A kernel that it leaves out stays plain. The
            attribute `rank` has the present ranks, by the names of the kernels.
        min_rank, max_rank, truncation: as in `LowRankLayer`, for both kernels or as such a dict.
        stacked: bool. `True` (the default) for one matrix for all gates, `False` for one each.
        **kwargs: all other arguments of `keras.layers.GRU`. Kernel regularizers must be L2, and
            kernel constraints None; see `LowRankLayer`.

    Input shape:
        `(batch, steps, n)`.

    Output shape:
        `(batch, units)`, or `(batch, steps, units)` with `return_sequences`; with `return_state`
        followed by a state of shape `(batch, units)`.

    Raises:
        ValueError: an argument outside its range; when built, a rank in a dict above `min(n, m)`.

    Example:

    >>> inputs = keras.Input((5, 16))
    >>> model = LowRankModel(inputs, LowRankGRU(32, rank=4, return_sequences=True)(inputs))
    >>> model.ranks
    {'low_rank_gru/gru_cell/kernel': 4, 'low_rank_gru/gru_cell/recurrent_kernel': 4}
    """

    keras_layer = keras.layers.GRU
    cell_class, cell_name = LowRankGRUCell, "gru_cell"
