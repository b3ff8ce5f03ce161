"""The two-dimensional convolution with a low-rank kernel."""

import keras
import tensorflow as tf

from keras_lowrank.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv2D(LowRankLayer):
    r"""`keras.layers.Conv2D` whose kernel is a low-rank matrix.

    The kernel `(kh, kw, c, f)` is the matrix `W = U S V^T` of shape `(kh kw c, f)`: a convolution
    with the r filters in U, then a product with `S V^T` at every position. No patches are formed.
    From "Low-rank lottery tickets" (arXiv:2205.13571), section 6.6.

    Args:
        filters: int, number of output channels.
        kernel_size: int or pair of int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv2D`.
        groups: int, 1 only: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv2D`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        **kwargs: all other arguments of `LowRankLayer` and of `keras.layers.Conv2D`.

    Input shape:
        `(batch, height, width, c)`, or `(batch, c, height, width)` with
        `data_format="channels_first"`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or with the channels first.

    Raises:
        ValueError: an argument outside its range; a rank above `min(kh kw c, filters)` when built.

    Example:

    >>> layer = LowRankConv2D(16, 3, rank=4, padding="same")
    >>> layer(tf.ones((2, 8, 8, 3))).shape.as_list()
    [2, 8, 8, 16]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(27, 4), (4, 4), (16, 4), (16,)]
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        data_format=None,
        dilation_rate=(1, 1),
        groups=1,
        activation=None,
        use_bias=True,
        *,
        rank=None,
        **kwargs,
    ):
        super().__init__(activation=activation, use_bias=use_bias, rank=rank, **kwargs)
        # Keras's own checks and standard forms of the arguments, with Keras's own words.
        reference = keras.layers.Conv2D(
            filters,
            kernel_size,
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
        self.filters = reference.filters
        self.kernel_size = reference.kernel_size
        self.strides = reference.strides
        self.padding = reference.padding
        self.data_format = reference.data_format
        self.dilation_rate = reference.dilation_rate
        self.groups = 1
        self.input_spec = keras.layers.InputSpec(min_ndim=4)

    def build(self, input_shape):
        axis = 1 if self.data_format == "channels_first" else -1
        channels = input_shape[axis]
        self.compute_output_shape(input_shape)  # raises where nothing would be left
        self.build_factors((*self.kernel_size, channels, self.filters))
        self.input_spec = keras.layers.InputSpec(min_ndim=4, axes={axis: channels})

    def project(self, inputs, basis):
        height, width, channels, _ = self.kernel_shape
        rank = tf.shape(basis)[1] if basis.shape[1] is None else basis.shape[1]
        inputs = tf.cast(inputs, basis.dtype)
        padding = self.padding
        if padding == "same" and max(self.dilation_rate) > 1:
            # TensorFlow pads for a dilated filter by its static shape, and a rank is open.
            reach = [(k - 1) * d for k, d in zip(self.kernel_size, self.dilation_rate)]
            inputs = tf.pad(inputs, [(0, 0), *((r // 2, r - r // 2) for r in reach), (0, 0)])
            padding = "valid"
        return keras.ops.conv(
            inputs,
            tf.reshape(basis, [height, width, channels, rank]),
            strides=self.strides,
            padding=padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def call(self, inputs):
        if self.data_format == "channels_last":
            return super().call(inputs)
        # All products run over the last axis; TensorFlow's layout pass moves the transposes.
        outputs = super().call(keras.ops.transpose(inputs, (0, 2, 3, 1)))
        return keras.ops.transpose(outputs, (0, 3, 1, 2))

    def compute_output_shape(self, input_shape):
        return keras.layers.Conv2D(**self._conv_arguments()).compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), **self._conv_arguments(), "groups": self.groups}

    def _conv_arguments(self):
        return {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }
