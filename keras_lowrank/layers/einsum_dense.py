"""The dense layer of an einsum equation, with a low-rank kernel."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.kernels.products import matmul_last, reshape_last
from keras_lowrank.layers.arguments import (
    QUANTIZE,
    Activation,
    Constraint,
    Initializer,
    Regularizer,
    Shape,
    TruncationLike,
    positive_integer,
    refuse,
)
from keras_lowrank.layers.einsum_equation import EinsumEquation
from keras_lowrank.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankEinsumDense(LowRankLayer):
    r"""`keras.layers.EinsumDense` whose kernel is a low-rank matrix.

    The kernel is read as a matrix `W = U S V^T`. Its rows are the axes that `equation` contracts
    with the inputs; its columns are the axes that reach the outputs. With each group of axes as
    one, `y = activation(x U S V^T + b)`:

    - `"abc,cd->abd"`: rows c, columns d, as in a dense layer;
    - `"abc,cde->abde"`: rows c, columns (d, e), as for queries, keys and values in attention;
    - `"abcd,cde->abe"`: rows (c, d), columns e, as for the outputs of attention.

    An equation with an axis in inputs, kernel and outputs at once (a in `"abc,acd->abd"`) is
    refused: its kernel is a stack of matrices. From "Low-rank lottery tickets" (arXiv:2205.13571),
    section 4.

    Args:
        equation: str, as in `keras.layers.EinsumDense`, ellipsis included.
        output_shape: int or tuple of int or None, as in `keras.layers.EinsumDense`.
        activation, bias_axes, bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint: as in `keras.layers.EinsumDense`, with the limits in
            `LowRankLayer`.
        kernel_initializer: as in `LowRankLayer`. Variance scaling takes n as the fan-in and m as
            the fan-out.
        lora_rank, lora_alpha, gptq_unpacked_column_size, quantization_config: must be None.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        min_rank, max_rank, truncation: as in `LowRankLayer`.
        **kwargs: `activity_regularizer`, `name`, `dtype` and `trainable`, as in Keras.

    Input shape:
        The axes before the comma in `equation`, the batch first.

    Output shape:
        The axes after the arrow in `equation`, the batch first.

    Raises:
        ValueError: an equation of another form, or whose kernel is not one matrix; an argument
            outside its range; when built, a rank above `min(n, m)` or a kernel of unknown shape.

    Example:

    >>> layer = LowRankEinsumDense("abc,cde->abde", (None, 4, 8), rank=3, bias_axes="de")
    >>> layer(tf.ones((2, 5, 16))).shape.as_list()
    [2, 5, 4, 8]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(16, 3), (3, 3), (32, 3), (4, 8)]
    >>> layer.kernel.shape.as_list()
    [16, 4, 8]
    """

    def __init__(
        self,
        equation: str,
        output_shape: int | Sequence[int | None],
        activation: Activation = None,
        bias_axes: str | None = None,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        kernel_constraint: None = None,
        bias_constraint: Constraint = None,
        lora_rank: None = None,
        lora_alpha: None = None,
        gptq_unpacked_column_size: None = None,
        quantization_config: None = None,
        *,
        rank: int | None = None,
        min_rank: int = 1,
        max_rank: int | None = None,
        truncation: TruncationLike = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            activation=activation,
            use_bias=bias_axes is not None,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            quantization_config=quantization_config,
            **kwargs,
        )
        refuse(gptq_unpacked_column_size, "gptq_unpacked_column_size", QUANTIZE)
        self.equation = equation
        shape = output_shape if isinstance(output_shape, (tuple, list)) else (output_shape,)
        self.partial_output_shape = tuple(
            one if one is None else positive_integer("output_shape", one) for one in shape
        )
        self.bias_axes = bias_axes
        self._equation = EinsumEquation.parse(equation)
        if self.use_bias and (not bias_axes or not set(bias_axes) <= set(self._equation.outputs)):
            raise ValueError(
                "`bias_axes` must name axes of the outputs in `equation`. "
                f"Received: bias_axes={bias_axes!r}, equation={equation!r}"
            )

    def build(self, input_shape: Shape) -> None:
        output_shape = self.compute_output_shape(input_shape)
        axes = self._equation.expanded(len(input_shape))
        extents = {**dict(zip(axes.outputs, output_shape)), **dict(zip(axes.inputs, input_shape))}
        kernel_shape: Any = tuple(extents[axis] for axis in axes.kernel)
        matricization = axes.matricization(kernel_shape)
        bias_shape = None
        if self.bias_axes is not None:
            # It is broadcast over all axes that are not named; leading ones need no extent.
            first = min(axes.outputs.index(axis) for axis in self.bias_axes)
            bias_shape = [extents[a] if a in self.bias_axes else 1 for a in axes.outputs[first:]]
        fans = None if None in kernel_shape else matricization.shape
        self.build_factors(kernel_shape, matricization, bias_shape, fans)
        self._column_extents = tuple(extents[axis] for axis in axes.columns)
        contracted = {axes.inputs.index(axis): extents[axis] for axis in axes.rows}
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes=contracted)

    def project(self, inputs: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        return matmul_last(inputs, basis)

    def apply_kernel(self, inputs: tf.Tensor) -> tf.Tensor:
        # Arranged here once, and not in `project`, which a step calls several times for the same
        # inputs.
        axes = self._equation.expanded(len(inputs.shape))
        kept = [axis for axis in axes.inputs if axis not in axes.summed]
        inputs = tf.cast(inputs, self.compute_dtype)
        if axes.summed:
            inputs = tf.reduce_sum(inputs, [axes.inputs.index(axis) for axis in axes.summed])
        inputs = _arranged(inputs, kept, axes.free + axes.rows)
        inputs = reshape_last(inputs, len(axes.rows), [self.factors.n])
        outputs = reshape_last(super().apply_kernel(inputs), 1, self._column_extents)
        return _arranged(outputs, axes.free + axes.columns, axes.outputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        input_shape, equation = tuple(input_shape), self._equation
        elided = len(input_shape) - len(equation.inputs)
        if elided < 0 or (elided > 0 and not equation.ellipsis):
            raise ValueError(
                "The inputs must have the axes that `equation` names. "
                f"Received: equation={self.equation!r}, input_shape={input_shape}"
            )
        batch, rest = input_shape[:1], input_shape[len(equation.inputs) :]
        if equation.ellipsis == "left":
            batch, rest = input_shape[: max(elided, 1)], ()
        given = (*batch, *self.partial_output_shape, *rest)
        axes = equation.expanded(len(input_shape))
        if len(given) != len(axes.outputs):
            raise ValueError(
                "`output_shape` must have an entry for each axis of the outputs in `equation`, "
                "the batch and what an ellipsis stands for aside. "
                f"Received: equation={self.equation!r}, output_shape={self.partial_output_shape}"
            )
        known = dict(zip(axes.inputs, input_shape))
        for axis, extent in zip(axes.outputs, given):
            if None not in (extent, known.get(axis)) and extent != known[axis]:
                raise ValueError(
                    f"`output_shape` must agree with the inputs on axis '{axis}' of `equation`. "
                    f"Received: equation={self.equation!r}, input_shape={input_shape}, "
                    f"output_shape={self.partial_output_shape}"
                )
        return tuple(
            known.get(axis) if extent is None else extent
            for axis, extent in zip(axes.outputs, given)
        )

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "equation": self.equation,
            "output_shape": self.partial_output_shape,
            "bias_axes": self.bias_axes,
        }
        del config["use_bias"]
        return config


def _arranged(tensor: tf.Tensor, axes: Sequence[str], wanted: Sequence[str]) -> tf.Tensor:
    """Transposes a tensor of named axes, unless they are in order."""
    order = [axes.index(axis) for axis in wanted]
    return tensor if order == sorted(order) else tf.transpose(tensor, order)
