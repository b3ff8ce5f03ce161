"""What all convolutions share: arguments, shapes, and the order of the axes."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import extent
from keras_lowrank.layers.arguments import (
    Activation,
    Constraint,
    Initializer,
    Regularizer,
    Shape,
    TruncationLike,
    check_factorization,
)
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.layers.tucker import initial_tucker_factors


class LowRankConvBase(LowRankLayer):
    """Base of convolutions and transposed convolutions.

    A subclass names its `keras_layer`, and takes over its arguments with `take_arguments`.

    Attributes:
        keras_layer: class of Keras that the layer replaces.
        filters: int.
        kernel_size: tuple of int, one for each axis; and so the others.
    """

    keras_layer: type[keras.layers.Layer]
    filters: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    padding: str
    data_format: str

    def take_arguments(self, **arguments: Any) -> None:
        """Sets attributes as the Keras layer does, with its checks and its errors.

        Args:
            **arguments: of the Keras layer.
        """
        reference = self.keras_layer(**arguments)
        for name in arguments:
            setattr(self, name, getattr(reference, name))
        self.input_spec = reference.input_spec
        self._taken = tuple(arguments)

    def build_kernel(self, channels: int) -> None:
        """Calls `build_factors` for inputs with so many channels.

        Args:
            channels: int.
        """
        self.build_factors((*self.kernel_size, channels, self.filters))

    def build(self, input_shape: Shape) -> None:
        axis = 1 if self.data_format == "channels_first" else -1
        self.compute_output_shape(input_shape)  # raises where the outputs would be empty
        channels: Any = input_shape[axis]  # `build_factors` refuses an unknown number
        self.build_kernel(channels)
        axes = {axis: input_shape[axis]}
        self.input_spec = keras.layers.InputSpec(min_ndim=len(input_shape), axes=axes)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.data_format == "channels_last":
            return super().call(inputs)
        # All products run over the last axis. TensorFlow's layout pass moves the transposes.
        last = len(inputs.shape) - 1
        outputs = super().call(keras.ops.transpose(inputs, (0, *range(2, last + 1), 1)))
        return keras.ops.transpose(outputs, (0, last, *range(1, last)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.keras_layer(**self._arguments()).compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments()}

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._taken}


class LowRankConv(LowRankConvBase):
    """Base of convolutions over any number of axes: their arguments and `project`.

    Attributes:
        factorizations: tuple of str, the forms that the kernel can have.
    """

    factorizations: tuple[str, ...] = ("matrix", "tucker")

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        groups: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: None = None,
        bias_constraint: Constraint = None,
        *,
        factorization: str = "matrix",
        rank: int | None = None,
        min_rank: int = 1,
        max_rank: int | None = None,
        truncation: TruncationLike = None,
        **kwargs: Any,
    ) -> None:
        if type(self).convolution_op is not LowRankConv.convolution_op:
            raise ValueError(
                "`convolution_op` must not be overridden: it takes a whole kernel, which a "
                "low-rank layer never forms. Override `project` instead. "
                f"Received: the class {type(self).__name__!r}, which overrides it"
            )
        super().__init__(
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self.take_arguments(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
        )
        if groups != 1:
            raise ValueError(
                "`groups` must be 1: the kernel of a grouped convolution is not one matrix. "
                f"Received: groups={groups}"
            )
        self.groups = 1
        self.factorization = check_factorization(factorization, self.factorizations)

    def build_kernel(self, channels: int) -> None:
        if self.factorization == "tucker":
            self.build_tucker_factors((*self.kernel_size, channels, self.filters))
        else:
            super().build_kernel(channels)

    def build_tucker_factors(self, kernel_shape: Sequence[int | None]) -> None:
        """Makes the factors of a Tucker-2 kernel, and the bias.

        Args:
            kernel_shape: tuple of int, the shape of the kernel in Keras, with the channels last.

        Raises:
            ValueError: an unknown extent in `kernel_shape`.
        """
        self.kernel_shape = self.known_shape(kernel_shape)
        *places, rows, columns = range(len(self.kernel_shape))
        self.matricization = Matricization(self.kernel_shape, (rows,), (*places, columns))
        factors = initial_tucker_factors(
            self.kernel_initializer,
            self.kernel_shape,
            self._rank,
            self.min_rank,
            self.max_rank,
            self.factors_dtype,
        )
        self.hold(factors, self.kernel_shape[-1:])

    @property
    def kernel_maps(self) -> KernelMaps:
        if self.factorization == "matrix":
            return super().kernel_maps
        return KernelMaps(self.project, None, self.convolve_whole, self._convolve_core)

    def whole_window(self) -> list[tuple[int, ...]]:
        """Returns `[kernel_size, strides, dilation_rate]`."""
        return [self.kernel_size, self.strides, self.dilation_rate]

    def window(self) -> list[tuple[int, ...]]:
        """Returns those of the convolution with U."""
        whole = self.whole_window()
        return whole if self.factorization == "matrix" else [(1,) * len(one) for one in whole]

    def convolve_whole(self, inputs: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        """Returns the convolution with the kernel of a matrix."""
        _, strides, dilation = self.whole_window()
        return self.convolved(inputs, self.matricization.kernel(matrix), strides, dilation)

    def _convolve_core(self, coordinates: tf.Tensor, core: tf.Tensor) -> tf.Tensor:
        size, strides, dilation = self.whole_window()
        filters = tf.reshape(core, [*size, extent(core, 1), extent(core, 2)])
        return self.convolved(coordinates, filters, strides, dilation)

    def project(self, inputs: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        size, strides, dilation = self.window()
        filters = tf.reshape(basis, [*size, inputs.shape[-1], extent(basis, 1)])
        return self.convolved(inputs, filters, strides, dilation)

    def convolved(
        self,
        inputs: tf.Tensor,
        filters: tf.Tensor,
        strides: Sequence[int],
        dilation: Sequence[int],
    ) -> tf.Tensor:
        """Returns the convolution with some filters, with the padding of the layer.

        Args:
            inputs: tensor, channels last.
            filters: tensor, shape `(*size, channels, k)`.
            strides: tuple of int.
            dilation: tuple of int.
        """
        inputs = tf.cast(inputs, filters.dtype)
        reach = [(k - 1) * d for k, d in zip(filters.shape, dilation)]
        padding = self.padding
        if padding == "causal":
            inputs = tf.pad(inputs, [(0, 0), (reach[0], 0), (0, 0)])
            padding = "valid"
        elif padding == "same" and max(dilation) > 1:
            # TensorFlow pads for a dilated filter by its static shape, where the rank is open.
            inputs = tf.pad(inputs, [(0, 0), *((r // 2, r - r // 2) for r in reach), (0, 0)])
            padding = "valid"
        return keras.ops.conv(
            inputs,
            filters,
            strides=strides,
            padding=padding,
            data_format="channels_last",
            dilation_rate=dilation,
        )

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the convolution with a whole kernel, as in Keras. The layer does not use it."""
        return keras.ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )

    def get_config(self) -> dict[str, Any]:
        config = {"groups": self.groups, "factorization": self.factorization}
        return {**super().get_config(), **config}
