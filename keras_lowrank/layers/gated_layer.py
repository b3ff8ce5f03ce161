"""An LSTM or GRU layer: the loop over steps around a low-rank cell."""

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.kernels.kernel_override import folded
from keras_lowrank.layers.arguments import Activation, Initializer, by_name
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.gated_cell import GatedCell
from keras_lowrank.layers.several_kernels import (
    MinRank,
    Rank,
    RankArguments,
    SeveralKernels,
    Truncations,
)


class GatedLayer(SeveralKernels, CompositeInputs):
    """A Keras recurrent layer around a `GatedCell`; the base before the Keras layer.

    Multiplies with the inputs of the whole sequence at once, before the loop.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer: as in the Keras layer.
        *args: the next arguments of the Keras layer, in its order.
        use_cudnn: `"auto"` or `False`.
        rank, min_rank, max_rank, truncation, stacked: as in `GatedCell`.
        **kwargs: all other arguments of the `GatedCell` and of the Keras layer.

    Attributes:
        keras_layer: class of Keras that the layer replaces.
        cell_class: class of the cell.
        cell_name: str, the name of the cell in Keras.
    """

    keras_layer: type[keras.layers.Layer]
    cell_class: type[GatedCell]
    cell_name: str

    def __init__(
        self,
        units: int,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        recurrent_initializer: Initializer = "orthogonal",
        bias_initializer: Initializer = "zeros",
        *args: Any,
        use_cudnn: str | bool = "auto",
        rank: Rank = None,
        min_rank: MinRank = 1,
        max_rank: Rank = None,
        truncation: Truncations = None,
        stacked: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs = dict(by_name(self.keras_layer, 7, args), **kwargs)
        if use_cudnn not in ("auto", False):
            raise ValueError(
                '`use_cudnn` must be "auto" or False: cuDNN multiplies with a whole kernel. '
                f"Received: use_cudnn={use_cudnn!r}"
            )
        cell = self.cell_class(
            units,
            activation,
            recurrent_activation,
            use_bias,
            kernel_initializer,
            recurrent_initializer,
            bias_initializer,
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            stacked=stacked,
            dtype=kwargs.get("dtype"),
            trainable=kwargs.get("trainable", True),
            name=self.cell_name,
            **{name: kwargs.pop(name) for name in _OF_THE_CELL if name in kwargs},
        )
        # Skips the `__init__` of the Keras layer, which would make a cell with whole kernels.
        keras.layers.RNN.__init__(self, cell, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.use_cudnn = False  # a Bidirectional would read whole kernels otherwise
        self.supports_jit = False

    def inner_loop(
        self, sequences: tf.Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> Any:
        cell = self.cell
        states = tf.nest.flatten(initial_state)
        mask = tf.nest.flatten(mask)[0]
        projected = cell.input_product(sequences, training)

        def step(inputs, states):
            return cell.step(inputs, states, training)

        factors = [one.factors for one in cell.recurrent_kernels if isinstance(one, LowRankDense)]
        with folded(factors, self.compute_dtype):
            return keras_internals.rnn(
                step,
                projected,
                states,
                go_backwards=self.go_backwards,
                mask=mask,
                unroll=self.unroll,
                input_length=projected.shape[1],
                zero_output_for_mask=self.zero_output_for_mask,
                return_all_outputs=self.return_sequences,
            )

    # An attribute of other layers; here the cell holds it.
    @property
    def rank_arguments(self) -> RankArguments:  # type: ignore[override]
        """Those of the cell."""
        return self.cell.rank_arguments

    def low_rank_kernels(self) -> list[LowRankDense]:
        return self.cell.low_rank_kernels()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stacked": self.cell.stacked}


# Arguments in `**kwargs` that are for the cell.
_OF_THE_CELL = (
    "unit_forget_bias",
    "kernel_regularizer",
    "recurrent_regularizer",
    "bias_regularizer",
    "kernel_constraint",
    "recurrent_constraint",
    "bias_constraint",
    "dropout",
    "recurrent_dropout",
    "reset_after",
    "seed",
    "implementation",
)
