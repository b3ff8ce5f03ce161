"""One step of an LSTM or GRU, with the matrices of its gates low-rank."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.layers.arguments import (
    Activation,
    Initializer,
    Shape,
    by_name,
    check_regularizer,
    positive_integer,
    refuse,
)
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.initial_factors import Draw, kernel_variance
from keras_lowrank.layers.several_kernels import (
    MinRank,
    Rank,
    RankArguments,
    SeveralKernels,
    Truncations,
)

# The names of the two kernels in Keras.
_KERNELS = ("kernel", "recurrent_kernel")


class GatedCell(SeveralKernels, CompositeInputs):
    """A Keras cell with two low-rank kernels; the base before the Keras cell.

    The kernels are `LowRankDense` layers without a bias (or Keras's `Dense`, where a kernel stays
    plain): one with the gates' columns side by side, or one for each gate. A subclass implements
    `summands` and `advance`: how a step follows from the products.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer: as in the Keras cell.
        *args: the next arguments of the Keras cell, in its order.
        rank, min_rank, max_rank, truncation: as in `LowRankLayer`, for both kernels, or a dict with
            the keys `"kernel"` and `"recurrent_kernel"`. A kernel that a dict of ranks leaves out
            stays plain. One rank for both means `min(n, m)` for a kernel that is smaller.
        stacked: bool. `True` (the default) for one matrix for all gates, `False` for one each.
        **kwargs: all other arguments of the Keras cell.

    Attributes:
        keras_layer: class of Keras that the cell replaces.
        gates: str, the letters of the gates in the order in which Keras stacks their kernels.
        kernels: list of `LowRankDense` or `keras.layers.Dense`.
        recurrent_kernels: list of such.
        stacked: bool.
        bias: `keras.Variable` or None, once built.
    """

    keras_layer: type[keras.layers.Layer]
    gates: str = ""
    kernels: list[keras.layers.Layer]
    recurrent_kernels: list[keras.layers.Layer]
    stacked: bool
    bias: keras.Variable | None

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
        rank: Rank = None,
        min_rank: MinRank = 1,
        max_rank: Rank = None,
        truncation: Truncations = None,
        stacked: bool = True,
        **kwargs: Any,
    ) -> None:
        units = positive_integer("units", units)
        kwargs = dict(by_name(self.keras_layer, 7, args), **kwargs)
        for name in ("kernel", "recurrent"):
            refuse(
                kwargs.get(f"{name}_constraint"),
                f"{name}_constraint",
                "a constraint acts on the entries of a kernel that is never formed",
            )
            penalty = keras.regularizers.get(kwargs.get(f"{name}_regularizer"))
            check_regularizer(penalty, f"{name}_regularizer")
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            **kwargs,
        )
        self.rank_arguments = RankArguments(_KERNELS, rank, min_rank, max_rank, truncation)
        self.stacked = stacked
        self.kernels = self._matrices("kernel", self.kernel_regularizer)
        self.recurrent_kernels = self._matrices("recurrent_kernel", self.recurrent_regularizer)

    def build(self, input_shape: Shape) -> None:
        features: Any = input_shape[-1]  # the kernels refuse an unknown number
        for layers, initializer, n in (
            (self.kernels, self.kernel_initializer, features),
            (self.recurrent_kernels, self.recurrent_initializer, self.units),
        ):
            for index, layer in enumerate(layers):
                layer.kernel_initializer = self._for_gate(initializer, n, index)
                layer.build((None, n))
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self._bias_shape(),
                name="bias",
                initializer=self._initial_bias,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs: tf.Tensor, states: Any, training: bool = False) -> Any:
        return self.step(self.input_product(inputs, training), states, training)

    def input_product(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """Returns `x W + b` for the inputs of one step, or of all steps at once.

        Args:
            inputs: tensor, shape `(batch, n)` or `(batch, steps, n)`.
            training: bool, whether to apply dropout.
        """
        outputs = _product(self.kernels, self._with_dropout(inputs, training))
        return outputs if self.bias is None else outputs + self._input_bias()

    def recurrent_product(self, h: Any, training: bool) -> tf.Tensor:
        """Returns `h R` for the state before a step.

        Args:
            h: tensor, shape `(batch, units)`.
            training: bool, whether to apply dropout.
        """
        if training and 0.0 < self.recurrent_dropout < 1.0:
            h = [h * mask for mask in self.get_recurrent_dropout_mask(h)]
        return _product(self.recurrent_kernels, h)

    def summands(self, projected: tf.Tensor) -> list[tf.Tensor]:
        """Splits the input product: what is added to `h R`, then what else `advance` takes.

        Args:
            projected: tensor, the `input_product`.
        """
        # Abstract: each cell has its own.
        raise NotImplementedError(f"{type(self).__name__} must implement `summands`.")

    def advance(self, parts: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns `(output, new states)` of a step.

        Args:
            parts: the sum of both products, what else `summands` returned, and the states.
        """
        # Abstract: each cell has its own.
        raise NotImplementedError(f"{type(self).__name__} must implement `advance`.")

    def step(
        self, projected: tf.Tensor, states: Any, training: bool
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns `(output, new states)` of a step.

        Args:
            projected: tensor, the `input_product` of its inputs.
            states: the states before it.
            training: bool, whether to apply dropout.
        """
        states = tf.nest.flatten(states)
        added, *rest = self.summands(projected)
        return self.advance([self.recurrent_product(states[0], training) + added, *rest, *states])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stacked": self.stacked}

    def low_rank_kernels(self) -> list[LowRankDense]:
        layers = [*self.kernels, *self.recurrent_kernels]
        return [layer for layer in layers if isinstance(layer, LowRankDense)]

    def _own_bias(self) -> tf.Tensor:
        # Cast by hand: a TimeDistributed calls its layer under its own policy.
        return keras.ops.cast(self.bias, self.compute_dtype)

    def _matrices(self, kernel: str, regularizer: Any) -> list[keras.layers.Layer]:
        names, width = [""], len(self.gates) * self.units
        if not self.stacked:
            names, width = [f"_{gate}" for gate in self.gates], self.units
        arguments = self.rank_arguments.of(kernel)
        make = LowRankDense if arguments else keras.layers.Dense
        layers = [
            make(
                width,
                use_bias=False,
                kernel_regularizer=regularizer,
                name=kernel + name,
                dtype=self.dtype_policy,
                trainable=self.trainable,
                **arguments,
            )
            for name in names
        ]
        for layer in layers:  # in Keras, the kernel is a weight of the cell itself
            layer.named_in_keras, layer.replaces = kernel, ""
            layer.caps_rank = self.rank_arguments.one_rank
        return layers

    def _for_gate(self, initializer: Draw, n: int, index: int) -> Draw:
        """Returns an initializer for one gate's columns of the kernel that Keras stacks."""
        if self.stacked:
            return initializer
        variance = kernel_variance(initializer, (n, len(self.gates) * self.units))
        seed = getattr(initializer, "seed", None)
        if isinstance(seed, int):
            seed += 2 * index  # a matrix draws two bases, with this seed and the next
        if variance is not None:
            return keras.initializers.RandomNormal(stddev=variance**0.5, seed=seed)

        def columns(shape, dtype=None):
            whole = initializer((n, len(self.gates) * self.units), dtype=dtype)
            return keras.ops.split(whole, len(self.gates), axis=-1)[index]

        return columns

    def _with_dropout(self, inputs: tf.Tensor, training: bool) -> Any:
        """Returns the inputs after dropout: a list, one for each gate, where masks differ."""
        if not (training and 0.0 < self.dropout < 1.0):
            return inputs
        in_sequence = inputs.shape.rank == 3
        masks = self.get_dropout_mask(inputs[:, 0] if in_sequence else inputs)
        if in_sequence:
            masks = tf.nest.map_structure(lambda mask: mask[:, None], masks)
        if isinstance(masks, list):
            return [inputs * mask for mask in masks]
        return inputs * masks


def _product(layers: Sequence[keras.layers.Layer], inputs: Any) -> tf.Tensor:
    """Returns the products with the kernels of all gates, side by side.

    Args:
        layers: list of layers, low-rank or plain, one for all gates or one for each.
        inputs: tensor, or a list of tensors, one for each gate.
    """
    if not isinstance(inputs, list):
        outputs = [_multiply(layer, inputs) for layer in layers]
    elif len(layers) > 1:
        outputs = [_multiply(layer, one) for layer, one in zip(layers, inputs)]
    else:
        # One matrix, but different inputs for each gate's columns: all inputs as one batch.
        count = len(inputs)
        blocks = tf.split(_multiply(layers[0], tf.concat(inputs, 0)), count, axis=0)
        outputs = [tf.split(block, count, axis=-1)[i] for i, block in enumerate(blocks)]
    return tf.concat(outputs, -1) if len(outputs) > 1 else outputs[0]


def _multiply(layer: keras.layers.Layer, inputs: tf.Tensor) -> tf.Tensor:
    if isinstance(layer, LowRankDense):
        return layer.apply_kernel(inputs)
    return keras.ops.matmul(inputs, layer.kernel)
