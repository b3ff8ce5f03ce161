"""The LSTM with low-rank kernels."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.layers.gated_cell import GatedCell
from keras_lowrank.layers.gated_layer import GatedLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankLSTMCell(GatedCell, keras.layers.LSTMCell):
    r"""`keras.layers.LSTMCell` whose kernels are low-rank: one step of a `LowRankLSTM`.

    Use it in `keras.layers.RNN` and `StackedRNNCells`. A `LowRankLSTM` is faster: it multiplies
    with the inputs of all steps at once. The integrator `"rank_adaptive"` needs the inputs of every
    product, so it needs `unroll=True` around a cell.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer: as in `keras.layers.LSTMCell`.
        rank, min_rank, max_rank, truncation, stacked: as in `LowRankLSTM`.
        **kwargs: all other arguments of `keras.layers.LSTMCell`.

    Input shape:
        `(batch, n)`, and two states of shape `(batch, units)`.

    Output shape:
        `(batch, units)`, and the new states.

    Raises:
        ValueError: an argument outside its range; when built, a rank in a dict above `min(n, m)`.

    Example:

    >>> layer = keras.layers.RNN(LowRankLSTMCell(8, rank=2))
    >>> layer(np.ones((2, 5, 6))).shape.as_list()
    [2, 8]
    """

    keras_layer = keras.layers.LSTMCell
    gates = "ifco"

    def summands(self, projected: tf.Tensor) -> list[tf.Tensor]:
        return [projected]

    def advance(self, parts: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        sums, h, c = parts
        i, f, candidate, o = keras.ops.split(sums, 4, axis=-1)
        kept = self.recurrent_activation(f) * c
        c = kept + self.recurrent_activation(i) * self.activation(candidate)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]

    def _bias_shape(self) -> tuple[int, ...]:
        return (4 * self.units,)

    def _initial_bias(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        if not self.unit_forget_bias:
            return self.bias_initializer(shape, dtype=dtype)
        draw = [self.bias_initializer((k * self.units,), dtype=dtype) for k in (1, 2)]
        ones = keras.ops.ones((self.units,), dtype=dtype)
        return keras.ops.concatenate([draw[0], ones, draw[1]])

    def _input_bias(self) -> tf.Tensor:
        return self._own_bias()


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankLSTM(GatedLayer, keras.layers.LSTM):
    r"""`keras.layers.LSTM` whose kernels are low-rank matrices `U S V^T`.

    With `s = x_t W + h_{t-1} R + b = [s_i, s_f, s_c, s_o]`,

        c_t = sigma(s_f) c_{t-1} + sigma(s_i) tanh(s_c),    h_t = sigma(s_o) tanh(c_t),

    where W (n x 4 units) and R (units x 4 units) hold the gates' columns side by side. Each is one
    low-rank matrix or, with `stacked=False`, one for each gate. `LowRankModel.ranks` has the ranks
    under `.../lstm_cell/kernel` and `.../lstm_cell/recurrent_kernel`; with `stacked=False` these
    paths end in `_i`, `_f`, `_c` and `_o`.

    The layer multiplies with W for the whole sequence at once.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer: as in `keras.layers.LSTM`.
        use_cudnn: `"auto"` or `False`; cuDNN is not used: it multiplies with whole kernels.
        rank: int or None, the rank to start with, as in `LowRankLayer`; or a dict with the keys
            `"kernel"` and `"recurrent_kernel"`. A kernel that it leaves out stays plain. The
            attribute `rank` has the present ranks, by the names of the kernels.
        min_rank, max_rank, truncation: as in `LowRankLayer`, for both kernels or as such a dict.
        stacked: bool. `True` (the default) for one matrix for all gates, `False` for one each.
        **kwargs: all other arguments of `keras.layers.LSTM`. Kernel regularizers must be L2, and
            kernel constraints None; see `LowRankLayer`.

    Input shape:
        `(batch, steps, n)`.

    Output shape:
        `(batch, units)`, or `(batch, steps, units)` with `return_sequences`; with `return_state`
        followed by two states of shape `(batch, units)`.

    Raises:
        ValueError: an argument outside its range; when built, a rank in a dict above `min(n, m)`.

    Example:

    >>> inputs = keras.Input((5, 16))
    >>> outputs = LowRankLSTM(32, rank={"kernel": 4, "recurrent_kernel": 8})(inputs)
    >>> LowRankModel(inputs, outputs).ranks
    {'low_rank_lstm/lstm_cell/kernel': 4, 'low_rank_lstm/lstm_cell/recurrent_kernel': 8}
    """

    keras_layer = keras.layers.LSTM
    cell_class, cell_name = LowRankLSTMCell, "lstm_cell"
