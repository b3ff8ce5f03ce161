"""Convolutions with a low-rank kernel, over one, two and three axes."""

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import extent
from keras_lowrank.layers.arguments import by_name
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
        *args,
        rank=None,
        **kwargs,
    ):
        if type(self).convolution_op is not LowRankConv.convolution_op:
            raise ValueError(
                "`convolution_op` is not overridden: it takes a whole kernel, and a low-rank layer "
                "never forms it. Override `project`. "
                f"Received: the class {type(self).__name__!r}, which overrides it"
            )
        kwargs = dict(by_name(self.keras_layer, 9, args), **kwargs)
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

    def window(self):
        """`(kernel_size, strides, dilation_rate)` of the convolution with the filters in U."""
        return self.kernel_size, self.strides, self.dilation_rate

    def project(self, inputs, basis):
        size, strides, dilation = self.window()
        filters = tf.reshape(basis, [*size, inputs.shape[-1], extent(basis, 1)])
        return self.convolved(inputs, filters, strides, dilation)

    def convolved(self, inputs, filters, strides, dilation):
        """The convolution with filters of shape `(*size, channels, k)`, padded as the layer is."""
        inputs = tf.cast(inputs, filters.dtype)
        reach = [(k - 1) * d for k, d in zip(filters.shape, dilation)]
        padding = self.padding
        if padding == "causal":
            inputs = tf.pad(inputs, [(0, 0), (reach[0], 0), (0, 0)])
            padding = "valid"
        elif padding == "same" and max(dilation) > 1:
            # TensorFlow pads for a dilated filter by its static shape, and a rank is open.
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

    def convolution_op(self, inputs, kernel):
        """The convolution of Keras's layer with a whole kernel, for a reader; no step calls it."""
        return keras.ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            data_format=self.data_format,
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

    The kernel `(kh, kw, c, f)` is a matrix `W = U S V^T` in one of two forms. No patches are formed
    in either.

    - `"matrix"`: `(kh kw c, f)`, a `kh x kw` convolution with the r filters in U, then a product
      with `S V^T` at every position. From "Low-rank lottery tickets" (arXiv:2205.13571), section
      6.6.
    - `"spatial"`: `(kh c, kw f)`, a `kh x 1` convolution with the r filters in U, a product with S,
      and a `1 x kw` convolution with the filters in V. From "Speeding up Convolutional Neural
      Networks with Low Rank Expansions" (arXiv:1405.3866), section 2. A rank costs `kh c + kw f`
      weights in place of `kh kw c + f`: with 3 x 3 kernels and `c = f` as many weights make 1.7
      times the rank. As two plain layers of Keras in a VGG on CIFAR-10, 60% (85%) fewer weights in
      every layer, it was 2.6 (4.5) points more accurate than the matrix form after 3 epochs on
      20,000 images; a step at as many weights takes about 1.3 times as long.

    Args:
        filters: int, number of output channels.
        kernel_size: int or pair of int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv2D`.
        groups: int, 1 only: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv2D`.
        factorization: `"matrix"` or `"spatial"`, the form above. Defaults to `"matrix"`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        **kwargs: all other arguments of `LowRankLayer` and of `keras.layers.Conv2D`.

    Input shape:
        `(batch, height, width, c)`, or `(batch, c, height, width)` with
        `data_format="channels_first"`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or with the channels first.

    Raises:
        ValueError: an argument outside its range; when built, a rank above
            `min(kh kw c, filters)`, or above `min(kh c, kw filters)` in the spatial form.

    Example:

    >>> layer = LowRankConv2D(16, 3, rank=4, padding="same")
    >>> layer(tf.ones((2, 8, 8, 3))).shape.as_list()
    [2, 8, 8, 16]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(27, 4), (4, 4), (16, 4), (16,)]
    >>> layer = LowRankConv2D(16, 3, rank=4, padding="same", factorization="spatial")
    >>> layer(tf.ones((2, 8, 8, 3))).shape.as_list()
    [2, 8, 8, 16]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(9, 4), (4, 4), (48, 4), (16,)]
    """

    keras_layer = keras.layers.Conv2D

    def __init__(self, filters, kernel_size, *args, factorization="matrix", **kwargs):
        super().__init__(filters, kernel_size, *args, **kwargs)
        if factorization not in ("matrix", "spatial"):
            raise ValueError(
                "`factorization` must be 'matrix' or 'spatial'. "
                f"Received: factorization={factorization!r}"
            )
        self.factorization = factorization

    def build_kernel(self, channels):
        kernel_shape = (*self.kernel_size, channels, self.filters)
        if self.factorization == "matrix":
            return self.build_factors(kernel_shape)
        spatial = Matricization(kernel_shape, rows=(0, 2), columns=(1, 3))
        self.build_factors(kernel_shape, spatial, bias_shape=(self.filters,))

    @property
    def kernel_maps(self):
        if self.factorization == "matrix":
            return super().kernel_maps
        return KernelMaps(self.project, self._expand_along_width, self._convolve_whole)

    def window(self):
        if self.factorization == "matrix":
            return super().window()
        return [(along_height, 1) for along_height, _ in super().window()]

    def _expand_along_width(self, coordinates, basis):
        size, stride, dilation = (along_width for _, along_width in super().window())
        filters = tf.reshape(basis, [1, size, self.filters, extent(basis, 1)])
        filters = tf.transpose(filters, (0, 1, 3, 2))
        return self.convolved(coordinates, filters, (1, stride), (1, dilation))

    def _convolve_whole(self, inputs, matrix):
        _, strides, dilation = super().window()
        return self.convolved(inputs, self.matricization.kernel(matrix), strides, dilation)

    def get_config(self):
        return {**super().get_config(), "factorization": self.factorization}


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
            LiteRT has no operation for one that is dilated.
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
