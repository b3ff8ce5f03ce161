"""The transposed convolution over two axes with a low-rank kernel."""

import keras
import tensorflow as tf

from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import extent
from keras_lowrank.layers.arguments import by_name
from keras_lowrank.layers.conv import LowRankConvBase


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv2DTranspose(LowRankConvBase):
    r"""`keras.layers.Conv2DTranspose` whose kernel is a low-rank matrix.

    The kernel `(kh, kw, f, c)` is the matrix `W = U S V^T` of shape `(kh kw c, f)`, its last two
    axes exchanged: a transposed convolution to the r channels of U, then a product with `S V^T`
    at every position of the output. The form of "Low-rank lottery tickets" (arXiv:2205.13571),
    section 6.6, for the adjoint of a convolution.

    Args:
        filters: int, number of output channels.
        kernel_size: int or pair of int.
        strides, padding, output_padding, data_format, dilation_rate: as in
            `keras.layers.Conv2DTranspose`. LiteRT has no operation for one that is dilated.
        activation, use_bias: as in `keras.layers.Conv2DTranspose`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        **kwargs: all other arguments of `LowRankLayer` and of `keras.layers.Conv2DTranspose`.

    Input shape:
        `(batch, height, width, c)`, or `(batch, c, height, width)` with
        `data_format="channels_first"`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or with the channels first. With strides `s`,
        and `padding="same"`, `s` times the height and the width.

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
        filters,
        kernel_size,
        strides=1,
        padding="valid",
        output_padding=None,
        data_format=None,
        dilation_rate=1,
        activation=None,
        use_bias=True,
        *args,
        rank=None,
        **kwargs,
    ):
        kwargs = dict(by_name(self.keras_layer, 9, args), **kwargs)
        super().__init__(activation=activation, use_bias=use_bias, rank=rank, **kwargs)
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
    def matricization_of(kernel_shape):
        """The columns are the last axis but one: Keras's kernel has the outputs there."""
        return Matricization(tuple(kernel_shape), rows=(0, 1, 3), columns=(2,))

    def build_kernel(self, channels):
        kernel_shape = (*self.kernel_size, self.filters, channels)
        self.build_factors(kernel_shape, self.matricization_of(kernel_shape))

    def project(self, inputs, basis):
        channels = self.kernel_shape[-1]
        rank = extent(basis, 1)
        inputs = tf.cast(inputs, basis.dtype)
        filters = tf.reshape(basis, [*self.kernel_size, channels, rank])
        # An open extent is one of the tensor's own: TensorFlow is told how large its output is.
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
