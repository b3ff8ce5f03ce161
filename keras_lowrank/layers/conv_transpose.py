"""The transposed convolution over two axes with a low-rank kernel."""

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import extent
from keras_lowrank.layers.arguments import (
    Activation,
    Constraint,
    Initializer,
    Regularizer,
    TruncationLike,
)
from keras_lowrank.layers.conv_base import LowRankConvBase


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv2DTranspose(LowRankConvBase):
    r"""`keras.layers.Conv2DTranspose` whose kernel is a low-rank matrix.

    The kernel `(kh, kw, f, c)` is the matrix `W = U S V^T` of shape `(kh kw c, f)`, with its last
    two axes swapped: a transposed convolution to the r channels of U, then a product with `S V^T`
    at every position of the output. After "Low-rank lottery tickets" (arXiv:2205.13571), section
    6.6, for the adjoint of a convolution.

    Args:
        filters: int, number of output channels.
        kernel_size: int or pair of int.
        strides, padding, output_padding, data_format, dilation_rate: as in
            `keras.layers.Conv2DTranspose`. LiteRT has no dilated transposed convolution.
        activation, use_bias: as in `keras.layers.Conv2DTranspose`.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        activity_regularizer, kernel_constraint, bias_constraint: as in
            `keras.layers.Conv2DTranspose`, with the limits in `LowRankLayer`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        min_rank, max_rank, truncation: as in `LowRankLayer`.
        **kwargs: `name`, `dtype` and `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, c)`, or `(batch, c, height, width)` with
        `data_format="channels_first"`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or with the channels first. With strides s and
        `padding="same"`, s times the height and width.

    Raises:
        ValueError: an argument outside its range; a rank above `min(kh kw c, filters)` when built.

    Example:

    >>> layer = LowRankConv2DTranspose(16, 3, strides=2, padding="same", rank=4)
    >>> layer(tf.ones((2, 8, 8, 3))).shape.as_list()
    [2, 16, 16, 16]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(27, 4), (4, 4), (16, 4), (16,)]
    >>> layer.kernel.shape.as_list()
    [3, 3, 16, 3]
    """

    keras_layer = keras.layers.Conv2DTranspose

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        output_padding: int | tuple[int, ...] | None = None,
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
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
            output_padding=output_padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
        )

    @staticmethod
    def matricization_of(kernel_shape: tuple[int, ...]) -> Matricization:
        """Returns the matricization whose columns are the last axis but one, Keras's outputs."""
        return Matricization(tuple(kernel_shape), rows=(0, 1, 3), columns=(2,))

    def build_kernel(self, channels: int) -> None:
        kernel_shape = (*self.kernel_size, self.filters, channels)
        self.build_factors(kernel_shape, self.matricization_of(kernel_shape))

    def project(self, inputs: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        channels = self.kernel_shape[-1]
        rank = extent(basis, 1)
        inputs = tf.cast(inputs, basis.dtype)
        filters = tf.reshape(basis, [*self.kernel_size, channels, rank])
        # TensorFlow needs the shape of the output; unknown extents are read from the tensor.
        batch, *sizes, _ = (extent(inputs, axis) for axis in range(4))
        last = {**self._arguments(), "data_format": "channels_last"}
        output_shape = self.keras_layer(**last).compute_output_shape((batch, *sizes, channels))
        return tf.nn.conv2d_transpose(
            inputs,
            tf.transpose(filters, (0, 1, 3, 2)),
            tf.stack([*output_shape[:-1], rank]),
            self.strides,
            padding=self.padding.upper(),
            dilations=self.dilation_rate,
        )
