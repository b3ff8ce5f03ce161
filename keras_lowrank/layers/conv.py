"""Convolutions with a low-rank kernel, over one, two and three axes."""

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import extent
from keras_lowrank.layers.arguments import (
    FACTORIZATIONS,
    Activation,
    Constraint,
    Initializer,
    Regularizer,
    TruncationLike,
    check_factorization,
)
from keras_lowrank.layers.conv_base import LowRankConv


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankConv1D(LowRankConv):
    r"""`keras.layers.Conv1D` whose kernel is a low-rank matrix.

    The kernel `(k, c, f)` is the matrix `W = U S V^T` of shape `(k c, f)`: a convolution with the
    r filters in U, then a product with `S V^T` at every step. From "Low-rank lottery tickets"
    (arXiv:2205.13571), section 6.6.

    Args:
        filters: int, number of output channels.
        kernel_size: int.
        strides, padding, data_format, dilation_rate: as in `keras.layers.Conv1D`, also
            `padding="causal"`.
        groups: must be 1: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv1D`.
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
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            groups,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            bias_regularizer,
            activity_regularizer,
            kernel_constraint,
            bias_constraint,
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            **kwargs,
        )
        self.factorization = check_factorization(factorization, self.factorizations)

    @staticmethod
    def spatial_matricization(kernel_shape: tuple[int, ...]) -> Matricization:
        """Returns the matricization `(kh c, kw f)` of the spatial form."""
        return Matricization(tuple(kernel_shape), rows=(0, 2), columns=(1, 3))

    def build_kernel(self, channels: int) -> None:
        kernel_shape = (*self.kernel_size, channels, self.filters)
        if self.factorization == "matrix":
            self.build_factors(kernel_shape)
        elif self.factorization == "spatial":
            spatial = self.spatial_matricization(kernel_shape)
            self.build_factors(kernel_shape, spatial, bias_shape=(self.filters,))
        else:
            self.build_tucker_factors(kernel_shape)

    @property
    def kernel_maps(self) -> KernelMaps:
        if self.factorization == "matrix":
            return super().kernel_maps
        if self.factorization == "spatial":
            return KernelMaps(self.project, self._expand_along_width, self._convolve_whole)
        return KernelMaps(self.project, None, self._convolve_whole, self._convolve_core)

    def window(self) -> list[tuple[int, ...]]:
        whole = super().window()
        if self.factorization == "matrix":
            return whole
        if self.factorization == "spatial":
            return [(along_height, 1) for along_height, _ in whole]
        return [(1, 1)] * len(whole)

    def _expand_along_width(self, coordinates: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        size, stride, dilation = (along_width for _, along_width in super().window())
        filters = tf.reshape(basis, [1, size, self.filters, extent(basis, 1)])
        filters = tf.transpose(filters, (0, 1, 3, 2))
        return self.convolved(coordinates, filters, (1, stride), (1, dilation))

    def _convolve_core(self, coordinates: tf.Tensor, core: tf.Tensor) -> tf.Tensor:
        size, strides, dilation = super().window()
        filters = tf.reshape(core, [*size, extent(core, 1), extent(core, 2)])
        return self.convolved(coordinates, filters, strides, dilation)

    def _convolve_whole(self, inputs: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        _, strides, dilation = super().window()
        return self.convolved(inputs, self.matricization.kernel(matrix), strides, dilation)

    def get_config(self) -> dict[str, Any]:
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
            LiteRT has no dilated convolution over three axes.
        groups: must be 1: a grouped kernel is not one matrix.
        activation, use_bias: as in `keras.layers.Conv3D`.
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
