"""Convolutions with a low-rank kernel, over one, two and three axes."""

import keras
import tensorflow as tf

from keras_lowrank.layers.low_rank_layer import LowRankLayer


class LowRankConvBase(LowRankLayer):
    """What convolutions and their transposes share: arguments, shapes, the order of the axes.

    A subclass names its `keras_layer` and takes over the arguments of that with `take_arguments`.
    """

    keras_layer = None

    def take_arguments(self, **arguments):
        """Sets attributes in Keras's standard forms, after Keras's own checks in its own words."""
        reference = self.keras_layer(**arguments)
        for name in arguments:
            setattr(self, name, getattr(reference, name))
        self.input_spec = reference.input_spec
        self._taken = tuple(arguments)

    def build_kernel(self, channels):
        """Calls `build_factors` for inputs with that many channels."""
        self.build_factors((*self.kernel_size, channels, self.filters))

    def build(self, input_shape):
        axis = 1 if self.data_format == "channels_first" else -1
        self.compute_output_shape(input_shape)  # raises where nothing would be left
        self.build_kernel(input_shape[axis])
        axes = {axis: input_shape[axis]}
        self.input_spec = keras.layers.InputSpec(min_ndim=len(input_shape), axes=axes)

    def call(self, inputs):
        if self.data_format == "channels_last":
            return super().call(inputs)
        # All products run over the last axis; TensorFlow's layout pass moves the transposes.
        last = len(inputs.shape) - 1
        outputs = super().call(keras.ops.transpose(inputs, (0, *range(2, last + 1), 1)))
        return keras.ops.transpose(outputs, (0, last, *range(1, last)))

    def compute_output_shape(self, input_shape):
        return self.keras_layer(**self._arguments()).compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), **self._arguments()}

    def _arguments(self):
        return {name: getattr(self, name) for name in self._taken}


class LowRankConv(LowRankConvBase):
    """`project` and the arguments of convolutions over any number of axes."""

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="valid",
        data_format=None,
        dilation_rate=1,
        groups=1,
        activation=None,
        use_bias=True,
        *,
        rank=None,
        **kwargs,
    ):
        super().__init__(activation=activation, use_bias=use_bias, rank=rank, **kwargs)
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

    def project(self, inputs, basis):
        rank = tf.shape(basis)[1] if basis.shape[1] is None else basis.shape[1]
        inputs = tf.cast(inputs, basis.dtype)
        padding = self.padding
        reach = [(k - 1) * d for k, d in zip(self.kernel_size, self.dilation_rate)]
        if padding == "causal":
            inputs = tf.pad(inputs, [(0, 0), (reach[0], 0), (0, 0)])
            padding = "valid"
        elif padding == "same" and max(self.dilation_rate) > 1:
            # TensorFlow pads for a dilated filter by its static shape, and a rank is open.
            inputs = tf.pad(inputs, [(0, 0), *((r // 2, r - r // 2) for r in reach), (0, 0)])
            padding = "valid"
        return keras.ops.conv(
            inputs,
            tf.reshape(basis, [*self.kernel_shape[:-1], rank]),
            strides=self.strides,
            padding=padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def get_config(self):
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv1D(LowRankConv):
    r"""`keras.layers.Conv1D` whose kernel is a low-rank matrix.

    The kernel `(k, c, f)` is the matrix `W = U S V^T` of shape `(k c, f)`: a convolution with the
    r filters in U, then a product with `S V^T` at every step. From "Low-rank lottery tickets"
    (arXiv:2205.13571), section 6.6.

    Args:
        filters: int, number of output channels.
        kernel_size: int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv1D`, with
            `padding="causal"` too.
        groups: int, 1 only: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv1D`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        **kwargs: all other arguments of `LowRankLayer` and of `keras.layers.Conv1D`.

    Input shape:
        `(batch, steps, c)`, or `(batch, c, steps)` with `data_format="channels_first"`.

    Output shape:
        `(batch, new_steps, filters)`, or with the channels first.

    Raises:
        ValueError: an argument outside its range; a rank above `min(k c, filters)` when built.

    Example:

    >>> layer = LowRankConv1D(16, 5, rank=4, padding="causal")
    >>> layer(tf.ones((2, 10, 3))).shape.as_list()
    [2, 10, 16]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(15, 4), (4, 4), (16, 4), (16,)]
    """

    keras_layer = keras.layers.Conv1D


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv2D(LowRankConv):
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

    keras_layer = keras.layers.Conv2D


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv3D(LowRankConv):
    r"""`keras.layers.Conv3D` whose kernel is a low-rank matrix.

    The kernel `(kd, kh, kw, c, f)` is the matrix `W = U S V^T` of shape `(kd kh kw c, f)`: a
    convolution with the r filters in U, then a product with `S V^T` at every position. From
    "Low-rank lottery tickets" (arXiv:2205.13571), section 6.6.

    Args:
        filters: int, number of output channels.
        kernel_size: int or three int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv3D`.
        groups: int, 1 only: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv3D`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        **kwargs: all other arguments of `LowRankLayer` and of `keras.layers.Conv3D`.

    Input shape:
        `(batch, depth, height, width, c)`, or `(batch, c, depth, height, width)` with
        `data_format="channels_first"`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)`, or with the channels first.

    Raises:
        ValueError: an argument outside its range; a rank above `min(kd kh kw c, filters)` when
            built.

    Example:

    >>> layer = LowRankConv3D(16, 3, rank=4, strides=2)
    >>> layer(tf.ones((2, 7, 9, 9, 2))).shape.as_list()
    [2, 3, 4, 4, 16]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(54, 4), (4, 4), (16, 4), (16,)]
    """

    keras_layer = keras.layers.Conv3D
