"""How a layer applies its low-rank matrix, and how a step replaces that matrix.

Every low-rank layer applies its matrix with `low_rank_apply`. It uses the layer's variables, which
any tape differentiates; inside `override_kernels` it uses a `ProductKernel` of given matrices.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import TypeVar

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.products import matmul_last
from keras_lowrank.manifold.factors import Factors
from keras_lowrank.manifold.point import Point

_Kernel = TypeVar("_Kernel", bound="ProductKernel")


class ProductKernel:
    """A matrix given as a product `A B ... C^T`: A projects, C expands.

    Args:
        matrices: tensors or variables, shapes `(n, a), (a, b), ..., (m, z)`. The last of two or
            more is given transposed, as V is.
        core: tensor, the S of a product `U S V^T`, for regularizers; None for any other.
    """

    def __init__(self, *matrices: tf.Tensor, core: tf.Tensor | None = None) -> None:
        self.matrices = matrices
        self.core = core

    @classmethod
    def of(cls: type[_Kernel], point: Point) -> _Kernel:
        """`U S V^T`, multiplied from the left: the cheapest order for a tall U and a small S."""
        return cls(*point, core=point.S)

    def apply(
        self, maps: KernelMaps, inputs: tf.Tensor, dtype: str, transposed: bool = False
    ) -> tf.Tensor:
        """Applies the matrix; arguments as in `low_rank_apply`."""
        first, *rest = (tf.cast(matrix, dtype) for matrix in self.matrices)
        if transposed:
            outputs = inputs
            for matrix in reversed(rest):
                outputs = matmul_last(outputs, matrix, transpose=matrix is not rest[-1])
            return matmul_last(outputs, first, transpose=True)
        if not rest:
            return maps.apply_whole(inputs, first)
        coordinates = maps.project(inputs, first)
        *cores, last = rest
        for core in cores:
            coordinates = maps.transformed(coordinates, core)
        return maps.expanded(coordinates, last)

    def folded(self, dtype: str) -> ProductKernel:
        """The same matrix as a product of two, which is cheaper to apply many times."""
        first, *rest = self.matrices
        for matrix in rest[:-1]:
            first = tf.matmul(first, matrix)
        return ProductKernel(*(tf.cast(one, dtype) for one in (first, *rest[-1:])))


def low_rank_apply(
    maps: KernelMaps, factors: Factors, inputs: tf.Tensor, dtype: str, transposed: bool = False
) -> tf.Tensor:
    """Applies a layer's matrix to its inputs: `expand(project(inputs, U) S, V)`.

    Args:
        maps: `KernelMaps` of the layer type.
        factors: `Factors` of the layer.
        inputs: tensor, the inputs of the layer.
        dtype: str, the type to compute in (the layer's `compute_dtype`).
        transposed: bool. Apply the transposed matrix, `inputs V S^T U^T`, with `maps=PLAIN`.

    Returns:
        Tensor of shape `(..., m)`, or `(..., n)`.
    """
    kernel = overrides().get(factors)
    # From `stateless_call`, which calls `call` directly; or indices that a layer holds.
    if isinstance(inputs, keras.Variable) or not tf.is_tensor(inputs):
        inputs = tf.convert_to_tensor(inputs)
    if kernel is None:
        u, s, v = factors.read()
        # A batch of vectors usually has fewer rows than U: the core is cheapest on its side. Images
        # and sequences have more, and half precision should not round the core on its own.
        few_rows = inputs.shape.rank == 2 and inputs.dtype.is_floating and dtype == s.dtype
        if few_rows or maps.core is not None:
            kernel = ProductKernel(u, s, v)
        elif transposed or not inputs.dtype.is_floating:
            kernel = ProductKernel(u, tf.matmul(v, s, transpose_b=True))
        else:
            kernel = ProductKernel(tf.matmul(u, s), v)
    return kernel.apply(maps, inputs, dtype, transposed)


def whole_matrix(factors: Factors) -> tf.Tensor:
    """W of the layer or of its override, shape `(n, m)`."""
    kernel = overrides().get(factors) or ProductKernel.of(factors.read())
    if len(kernel.matrices) == 3 and kernel.matrices[1].shape.rank == 3:
        u, s, v = (tf.cast(one, factors.S.dtype) for one in kernel.matrices)
        places = tf.matmul(tf.matmul(u, s), v, transpose_b=True)
        return tf.reshape(tf.transpose(places, (1, 0, 2)), [factors.n, -1])
    first, *last = kernel.folded(factors.S.dtype).matrices
    return tf.matmul(first, last[0], transpose_b=True) if last else first


def core_gram(factors: Factors) -> tf.Tensor:
    r"""`U^T U S V^T V S^T`, shape `(r, r)`, without forming W, differentiable.

    Its eigenvalues are the squares of the singular values of W; its trace is `||W||_F^2`. Bases
    need not be orthonormal: those of a second pass are not. For a Tucker-2 kernel it is the sum
    over all places, and W the unfolding by input channels.
    """
    kernel = overrides().get(factors)
    u, s, v = factors.read() if kernel is None or kernel.core is None else kernel.matrices
    left = tf.matmul(tf.matmul(u, u, transpose_a=True), s)
    right = tf.matmul(s, tf.matmul(v, v, transpose_a=True))
    gram = tf.matmul(left, right, transpose_b=True)
    return gram if gram.shape.rank == 2 else tf.reduce_sum(gram, axis=0)


@contextlib.contextmanager
def override_kernels(kernels: Mapping[Factors, ProductKernel]) -> Iterator[None]:
    """While open, `low_rank_apply` uses `kernels[factors]` instead of the layer's variables.

    Args:
        kernels: dict from `Factors` to a `ProductKernel`.
    """
    outer = overrides()
    _LOCAL.kernels = {**outer, **kernels}
    try:
        yield
    finally:
        _LOCAL.kernels = outer


def folded(factors: list[Factors], dtype: str) -> contextlib.AbstractContextManager[None]:
    """While open, layers apply products of two: cheaper for a recurrent layer.

    Args:
        factors: list of `Factors`.
        dtype: str, the type to compute in.
    """
    table = overrides()
    kernels = {one: table.get(one) or ProductKernel.of(one.read()) for one in factors}
    return override_kernels({one: kernel.folded(dtype) for one, kernel in kernels.items()})


# One table per thread: every replica of a tf.distribute strategy traces in its own thread.
_LOCAL = threading.local()


def overrides() -> dict[Factors, ProductKernel]:
    """The open overrides: dict from `Factors` to a `ProductKernel`."""
    return getattr(_LOCAL, "kernels", {})
