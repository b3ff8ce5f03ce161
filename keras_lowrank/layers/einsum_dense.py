"""The dense layer over any axes, named by an einsum equation, with a low-rank kernel."""

import keras
import tensorflow as tf

from keras_lowrank.kernels.products import matmul_last, reshape_last
from keras_lowrank.layers.arguments import by_name, positive_integer
from keras_lowrank.layers.einsum_equation import EinsumEquation
from keras_lowrank.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankEinsumDense(LowRankLayer):
    r"""`keras.layers.EinsumDense` whose kernel is a low-rank matrix.

    The axes of the kernel that `equation` contracts with the inputs are the rows of the matrix
    `W = U S V^T`, and those that it brings into the outputs are the columns. Over these axes,
    each group as one, `y = activation(x U S V^T + b)`:

    - `"abc,cd->abd"`: rows c, columns d, as in a dense layer;
    - `"abc,cde->abde"`: rows c, columns (d, e), as queries, keys and values are made in attention;
    - `"abcd,cde->abe"`: rows (c, d), columns e, as the outputs of attention are.

    With an axis in inputs, kernel and outputs at once (a in `"abc,acd->abd"`) the kernel is a stack
    of matrices, one for each index, and the equation is refused. From "Low-rank lottery tickets"
    (arXiv:2205.13571), section 4.

    Args:
        equation: str, as in `keras.layers.EinsumDense`, ellipsis included.
        output_shape: int or tuple of int or None, as in `keras.layers.EinsumDense`.
        activation, bias_axes, *args: as in `keras.layers.EinsumDense`, in its order.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        **kwargs: all other arguments of `LowRankLayer` (`use_bias` aside, which `bias_axes` tells)
            and of `keras.layers.EinsumDense`. A variance-scaling initializer counts n as the
            fan-in and m as the fan-out.

    Input shape:
        The axes before the comma in `equation`, the batch first.

    Output shape:
        The axes after the arrow in `equation`, the batch first.

    Raises:
        ValueError: an equation of another form, or whose kernel is no matrix; what
            `keras.layers.EinsumDense` refuses; an argument outside its range; when built, a rank
            above `min(n, m)` or a kernel of unknown shape.

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
        equation,
        output_shape,
        activation=None,
        bias_axes=None,
        *args,
        rank=None,
        gptq_unpacked_column_size=None,
        **kwargs,
    ):
        kwargs = dict(by_name(keras.layers.EinsumDense, 4, args), **kwargs)
        super().__init__(activation=activation, use_bias=bias_axes is not None, rank=rank, **kwargs)
        if gptq_unpacked_column_size is not None:
            raise ValueError(
                "`gptq_unpacked_column_size` must be None in a low-rank layer: quantize the "
                f"exported file instead. Received: {gptq_unpacked_column_size}"
            )
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

    def build(self, input_shape):
        output_shape = self.compute_output_shape(input_shape)
        axes = self._equation.expanded(len(input_shape))
        extents = {**dict(zip(axes.outputs, output_shape)), **dict(zip(axes.inputs, input_shape))}
        kernel_shape = tuple(extents[axis] for axis in axes.kernel)
        matricization = axes.matricization(kernel_shape)
        bias_shape = None
        if self.bias_axes is not None:
            # Broadcast over all axes of the outputs that are not named, so leading ones need none.
            first = min(axes.outputs.index(axis) for axis in self.bias_axes)
            bias_shape = [extents[a] if a in self.bias_axes else 1 for a in axes.outputs[first:]]
        fans = None if None in kernel_shape else matricization.shape
        self.build_factors(kernel_shape, matricization, bias_shape, fans)
        self._column_extents = tuple(extents[axis] for axis in axes.columns)
        contracted = {axes.inputs.index(axis): extents[axis] for axis in axes.rows}
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes=contracted)

    def project(self, inputs, basis):
        return matmul_last(inputs, basis)

    def apply_kernel(self, inputs):
        # Axes are arranged here, once, and not in `project`, which a step asks for several
        # products with the same inputs.
        axes = self._equation.expanded(len(inputs.shape))
        kept = [axis for axis in axes.inputs if axis not in axes.summed]
        inputs = tf.cast(inputs, self.compute_dtype)
        if axes.summed:
            inputs = tf.reduce_sum(inputs, [axes.inputs.index(axis) for axis in axes.summed])
        inputs = _arranged(inputs, kept, axes.free + axes.rows)
        inputs = reshape_last(inputs, len(axes.rows), [self.factors.n])
        outputs = reshape_last(super().apply_kernel(inputs), 1, self._column_extents)
        return _arranged(outputs, axes.free + axes.columns, axes.outputs)

    def compute_output_shape(self, input_shape):
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

    def get_config(self):
        config = {
            **super().get_config(),
            "equation": self.equation,
            "output_shape": self.partial_output_shape,
            "bias_axes": self.bias_axes,
        }
        del config["use_bias"]
        return config


def _arranged(tensor, axes, wanted):
    """Transposes a tensor of named axes; the order that it has costs nothing."""
    order = [axes.index(axis) for axis in wanted]
    return tensor if order == sorted(order) else tf.transpose(tensor, order)
