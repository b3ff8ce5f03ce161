"""Long short-term memory with low-rank kernels."""

import keras

from keras_lowrank.layers.recurrent import GatedCell, GatedLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankLSTMCell(GatedCell, keras.layers.LSTMCell):
    r"""`keras.layers.LSTMCell` whose kernels are low-rank: one step of a `LowRankLSTM`.

    For `keras.layers.RNN` and `StackedRNNCells`. A `LowRankLSTM` is faster: it multiplies with the
    inputs of all steps at once. Inside their loop an integrator that needs the inputs of every
    product (`"rank_adaptive"`) is refused, unless `unroll=True`.

    Args:
        units, activation, recurrent_activation, use_bias: as in `keras.layers.LSTMCell`.
        rank, min_rank, max_rank, truncation, stacked: as in `LowRankLSTM`.
        **kwargs: all other arguments of `keras.layers.LSTMCell`.

    Input shape:
        `(batch, n)`, and two states of shape `(batch, units)`.

    Output shape:
        `(batch, units)`, and the new states.

    Raises:
        ValueError: an argument outside its range; a rank in a dict above `min(n, m)` when
            built.

    Example:

    >>> layer = keras.layers.RNN(LowRankLSTMCell(8, rank=2))
    >>> layer(np.ones((2, 5, 6))).shape.as_list()
    [2, 8]
    """

    keras_layer = keras.layers.LSTMCell
    gates = "ifco"

    def summands(self, projected):
        """What is added to the recurrent product, and what else `advance` takes: nothing."""
        return [projected]

    def advance(self, sums, h, c):
        """One step from the sums of both products: `(output, new states)`."""
        i, f, candidate, o = keras.ops.split(sums, 4, axis=-1)
        kept = self.recurrent_activation(f) * c
        c = kept + self.recurrent_activation(i) * self.activation(candidate)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]

    def _bias_shape(self):
        return (4 * self.units,)

    def _initial_bias(self, shape, dtype=None):
        if not self.unit_forget_bias:
            return self.bias_initializer(shape, dtype=dtype)
        draw = [self.bias_initializer((k * self.units,), dtype=dtype) for k in (1, 2)]
        ones = keras.ops.ones((self.units,), dtype=dtype)
        return keras.ops.concatenate([draw[0], ones, draw[1]])

    def _input_bias(self):
        return self._own_bias()


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankLSTM(GatedLayer, keras.layers.LSTM):
    r"""`keras.layers.LSTM` whose kernels are low-rank matrices `U S V^T`.

    With `s = x_t W + h_{t-1} R + b = [s_i, s_f, s_c, s_o]`,

        c_t = sigma(s_f) c_{t-1} + sigma(s_i) tanh(s_c),    h_t = sigma(s_o) tanh(c_t),

    where W (n x 4 units) and R (units x 4 units) hold the gates' columns side by side and each is
    one low-rank matrix; or, with `stacked=False`, each gate's columns are one. The ranks are found
    under the paths `.../lstm_cell/kernel` and `.../lstm_cell/recurrent_kernel`, and with
    `stacked=False` under those with `_i`, `_f`, `_c` and `_o` at the end.

    The product with W is one for the whole sequence.

    Args:
        units, activation, recurrent_activation, use_bias: as in `keras.layers.LSTM`.
        rank: int or None, the rank to start with, as in `LowRankLayer`; or a dict with the keys
            `"kernel"` and `"recurrent_kernel"`, and a kernel that it leaves out is a plain one. The
            attribute `rank` has the present ranks, by the names of the kernels.
        min_rank, max_rank, truncation: as in `LowRankLayer`; for both matrices, or by such a dict.
        stacked: bool. One matrix for all gates, or one for each. Defaults to `True`.
        use_cudnn: `"auto"` or `False`: cuDNN's LSTM multiplies with whole kernels.
        **kwargs: all other arguments of `keras.layers.LSTM`. Regularizers of kernels must be L2,
            their constraints None; see `LowRankLayer`.

    Input shape:
        `(batch, steps, n)`.

    Output shape:
        `(batch, units)`, or `(batch, steps, units)` with `return_sequences`; with `return_state`
        followed by two states of shape `(batch, units)`.

    Raises:
        ValueError: an argument outside its range; a rank in a dict above `min(n, m)` when
            built.

    Example:

    >>> inputs = keras.Input((5, 16))
    >>> outputs = LowRankLSTM(32, rank={"kernel": 4, "recurrent_kernel": 8})(inputs)
    >>> LowRankModel(inputs, outputs).ranks
    {'low_rank_lstm/lstm_cell/kernel': 4, 'low_rank_lstm/lstm_cell/recurrent_kernel': 8}
    """

    keras_layer = keras.layers.LSTM
    cell_class, cell_name = LowRankLSTMCell, "lstm_cell"
