"""The low-rank term beside a frozen kernel: one low-rank layer, without bias and activation."""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_lowrank import layers
from keras_lowrank.kernels.products import matmul_last
from keras_lowrank.layers import LowRankLayer

if TYPE_CHECKING:  # a base that stands before a low-rank layer, and extends its methods
    _Base = LowRankLayer
else:
    _Base = object

# Under mixed precision factors stay in float32; a bfloat16 or quantized kernel is treated alike.
_POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


class Delta(_Base):
    """What makes a low-rank layer a delta `U S V^T` that starts as zero: goes before its class.

    Ranks above `min(n, m)` mean `min(n, m)`: one number is for all kernels of a model. What is
    saved with the model is the sum of kernel and delta, in the layer that holds them.
    """

    beside_kernel = caps_rank = True

    def save_own_variables(self, store: Any) -> None:
        pass

    def load_own_variables(self, store: Any) -> None:
        pass

    def set_to_zero(self, rank: int) -> None:
        """Makes the delta exactly zero, with random bases, at a rank of at most `min(n, m)`."""
        n, m = self.factors.n, self.factors.m
        rank, random = min(rank, n, m), keras.initializers.Orthogonal()
        zero = keras.ops.zeros((rank, rank), self.factors.S.dtype)
        self.factors.assign((random((n, rank), zero.dtype), zero, random((m, rank), zero.dtype)))


class DenseDelta(Delta, layers.LowRankDense):
    """`x U S V^T`."""


class EinsumDenseDelta(Delta, layers.LowRankEinsumDense):
    """`x U S V^T` over the axes that an equation names."""


class EmbeddingDelta(Delta, layers.LowRankEmbedding):
    """`U[i] S V^T`, or `x V S^T U^T` in reverse."""


class Conv1DDelta(Delta, layers.LowRankConv1D):
    """A convolution with r filters, then a product."""


class Conv2DDelta(Delta, layers.LowRankConv2D):
    """A convolution with r filters, then a product."""


class Conv3DDelta(Delta, layers.LowRankConv3D):
    """A convolution with r filters, then a product."""


class KernelDelta(Delta, LowRankLayer):
    """The matrix itself, for a layer that multiplies with a whole kernel."""

    def build(self, kernel_shape: tuple[int, ...]) -> None:
        self.build_factors(kernel_shape)

    def project(self, inputs: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        return matmul_last(inputs, basis)


def delta_arguments(
    layer: keras.layers.Layer, rank: int | None, max_rank: int | None
) -> dict[str, Any]:
    """The arguments that every delta takes.

    Args:
        layer: the Keras layer with the kernel.
        rank: int, the rank to start with.
        max_rank: int or None, the largest.
    """
    dtype = _POLICIES.get(layer.compute_dtype, layer.compute_dtype)
    return {"rank": rank, "max_rank": max_rank, "dtype": dtype}
