"""Convolutions with a low-rank kernel, over one, two and three axes."""

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import extent
from keras_lowrank.layers.arguments import FACTORIZATIONS
from keras_lowrank.layers.conv_base import LowRankConv


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv1D(LowRankConv):
    r"""`keras.layers.Conv1D` whose kernel is a low-rank matrix.

    The kernel `(k, c, f)` is the matrix `W = U S V^T` of shape `(k c, f)`: a convolution with the
    r filters in U, then a product with `S V^T` at every step. From "Low-rank lottery tickets"
    (arXiv:2205.13571), section 6.6. Or it is a Tucker-2 tensor, as in `LowRankConv2D`.

    Args:
        filters: int, number of output channels.
        kernel_size: int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv1D`, also
            `padding="causal"`.
        groups: must be 1: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv1D`.
        factorization: `"matrix"` (the default) or `"tucker"`.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        activity_regularizer, kernel_constraint, bias_constraint: as in
            `keras.layers.Conv1D`, with the limits in `LowRankLayer`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        min_rank, max_rank, truncation: as in `LowRankLayer`.
        **kwargs: `name`, `dtype` and `trainable`, as in Keras.

    Input shape:
        `(batch, steps, c)`, or `(batch, c, steps)` with `data_format="channels_first"`.

    Output shape:
        `(batch, new_steps, filters)`, or with the channels first.

    Raises:
        ValueError: an argument outside its range; when built, a rank above `min(k c, filters)` in
            the matrix form.

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

    The kernel `(kh, kw, c, f)` is a matrix `W = U S V^T` in one of two forms, or a Tucker-2 tensor.
    None forms patches.

    - `"matrix"`: `(kh kw c, f)`, a `kh x kw` convolution with the r filters in U, then a product
      with `S V^T` at every position. From "Low-rank lottery tickets" (arXiv:2205.13571), section
      6.6.
    - `"spatial"`: `(kh c, kw f)`, a `kh x 1` convolution with the r filters in U, a product with S,
      then a `1 x kw` convolution with the filters in V. From "Speeding up Convolutional Neural
      Networks with Low Rank Expansions" (arXiv:1405.3866), section 2. A rank costs `kh c + kw f`
      weights in place of `kh kw c + f`. With 3 x 3 kernels and `c = f`, the same weights give 1.7
      times the rank, and a step takes about 1.3 times as long.
    - `"tucker"`: `W_k = U S_k V^T` at each place k of the window, with U `(c, p)` and V `(f, q)`: a
      product with U, a `kh x kw` convolution from p to q channels with the core S, then a product
      with `V^T`. It has two ranks p and q, which adapt on their own, and `c p + kh kw p q + f q`
      weights. From "Dynamical low-rank compression of neural networks with robustness under
      adversarial attacks" (arXiv:2505.08022), with the integrator of arXiv:2412.00858. A relative
      tolerance is shared by both cuts: the error of W is at most that share of it. A full step is
      one of `Parallel`. With `adapt_every=1` it takes no other integrator than `Parallel`.

    Args:
        filters: int, number of output channels.
        kernel_size: int or pair of int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv2D`.
        groups: must be 1: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv2D`.
        factorization: `"matrix"` (the default), `"spatial"` or `"tucker"`, the form above.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        activity_regularizer, kernel_constraint, bias_constraint: as in
            `keras.layers.Conv2D`, with the limits in `LowRankLayer`.
        rank: int or None, the rank to start with. See `LowRankLayer`. For a Tucker-2 kernel, both
            ranks, or the number of channels where that is smaller; None takes an equal share of
            the channels on both sides. The attribute `rank` then has the present ranks, as a dict
            with the keys "input" and "output".
        min_rank, max_rank, truncation: as in `LowRankLayer`.
        **kwargs: `name`, `dtype` and `trainable`, as in Keras.

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
    >>> layer = LowRankConv2D(16, 3, rank=4, padding="same", factorization="tucker")
    >>> layer(tf.ones((2, 8, 8, 3))).shape.as_list()
    [2, 8, 8, 16]
    >>> [tuple(weight.shape) for weight in layer.weights], layer.rank
    ([(3, 3), (9, 3, 4), (16, 4), (16,)], {'input': 3, 'output': 4})
    """

    keras_layer = keras.layers.Conv2D
    factorizations = FACTORIZATIONS

    @staticmethod
    def spatial_matricization(kernel_shape: tuple[int, ...]) -> Matricization:
        """Returns the matricization `(kh c, kw f)` of the spatial form."""
        return Matricization(tuple(kernel_shape), rows=(0, 2), columns=(1, 3))

    def build_kernel(self, channels: int) -> None:
        if self.factorization != "spatial":
            super().build_kernel(channels)
            return
        kernel_shape = (*self.kernel_size, channels, self.filters)
        spatial = self.spatial_matricization(kernel_shape)
        self.build_factors(kernel_shape, spatial, bias_shape=(self.filters,))

    @property
    def kernel_maps(self) -> KernelMaps:
        if self.factorization != "spatial":
            return super().kernel_maps
        return KernelMaps(self.project, self._expand_along_width, self.convolve_whole)

    def window(self) -> list[tuple[int, ...]]:
        if self.factorization != "spatial":
            return super().window()
        return [(along_height, 1) for along_height, _ in self.whole_window()]

    def _expand_along_width(self, coordinates: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        size, stride, dilation = (along_width for _, along_width in self.whole_window())
        filters = tf.reshape(basis, [1, size, self.filters, extent(basis, 1)])
        filters = tf.transpose(filters, (0, 1, 3, 2))
        return self.convolved(coordinates, filters, (1, stride), (1, dilation))


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv3D(LowRankConv):
    r"""`keras.layers.Conv3D` whose kernel is a low-rank matrix.

    The kernel `(kd, kh, kw, c, f)` is the matrix `W = U S V^T` of shape `(kd kh kw c, f)`: a
    convolution with the r filters in U, then a product with `S V^T` at every position. From
    "Low-rank lottery tickets" (arXiv:2205.13571), section 6.6. Or it is a Tucker-2 tensor, as in
    `LowRankConv2D`.

    Args:
        filters: int, number of output channels.
        kernel_size: int or three int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv3D`.
            LiteRT has no dilated convolution over three axes.
        groups: must be 1: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv3D`.
        factorization: `"matrix"` (the default) or `"tucker"`.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        activity_regularizer, kernel_constraint, bias_constraint: as in
            `keras.layers.Conv3D`, with the limits in `LowRankLayer`.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        min_rank, max_rank, truncation: as in `LowRankLayer`.
        **kwargs: `name`, `dtype` and `trainable`, as in Keras.

    Input shape:
        `(batch, depth, height, width, c)`, or `(batch, c, depth, height, width)` with
        `data_format="channels_first"`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)`, or with the channels first.

    Raises:
        ValueError: an argument outside its range; when built, a rank above
            `min(kd kh kw c, filters)` in the matrix form.

    Example:

    >>> layer = LowRankConv3D(16, 3, rank=4, strides=2)
    >>> layer(tf.ones((2, 7, 9, 9, 2))).shape.as_list()
    [2, 3, 4, 4, 16]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(54, 4), (4, 4), (16, 4), (16,)]
    """

    keras_layer = keras.layers.Conv3D
