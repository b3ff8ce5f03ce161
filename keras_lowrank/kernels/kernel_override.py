"""How a layer applies its low-rank matrix, and what may be put in its place.

Every low-rank layer applies its matrix through `low_rank_apply`, with its variables, which any tape
differentiates as it does everything; or, inside `override_kernels`, with a `ProductKernel` of given
matrices.
"""

import contextlib
import threading

import keras
import tensorflow as tf

from keras_lowrank.kernels.products import matmul_last


class ProductKernel:
    """A matrix given as a product `A B ... C^T`: A projects, C expands, the rest is plain.

    Args:
        matrices: tensors or variables, shapes `(n, a), (a, b), ..., (m, z)`: the last of two or
            more is held transposed, as V is.
        core: tensor, the S of a product `U S V^T`, for regularizers; None for any other.
    """

    def __init__(self, *matrices, core=None):
        self.matrices = matrices
        self.core = core

    @classmethod
    def of(cls, factorization):
        """`U S V^T`, multiplied from the left: the cheapest order for a tall U and a small S."""
        return cls(*factorization, core=factorization.S)

    def apply(self, maps, inputs, dtype, transposed=False):
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
            coordinates = matmul_last(coordinates, core)
        return maps.expanded(coordinates, last)

    def folded(self, dtype):
        """The same as a product of two, for whoever multiplies with it again and again."""
        first, *rest = self.matrices
        for matrix in rest[:-1]:
            first = tf.matmul(first, matrix)
        return ProductKernel(*(tf.cast(one, dtype) for one in (first, *rest[-1:])))


def low_rank_apply(maps, factors, inputs, dtype, transposed=False):
    """Applies a layer's matrix to its inputs: `expand(project(inputs, U) S, V)`.

    Args:
        maps: `KernelMaps`, the layer's type.
        factors: the layer's `Factors`.
        inputs: tensor, what the layer was called with.
        dtype: str, the type to compute in (the layer's `compute_dtype`).
        transposed: bool. Apply the transposed matrix, `inputs V S^T U^T`, with `maps=PLAIN`.

    Returns:
        Tensor of shape `(..., m)`, or `(..., n)`.
    """
    kernel = overrides().get(factors)
    # By a direct call of `call`, as `stateless_call` makes one; indices that a layer holds.
    if isinstance(inputs, keras.Variable) or not tf.is_tensor(inputs):
        inputs = tf.convert_to_tensor(inputs)
    if kernel is None:
        u, s, v = factors.read()
        # A batch of vectors is shorter than U as a rule; images, vectors in sequence and indices
        # have more places than that, and half precision no digits for a core of its own.
        if inputs.shape.rank == 2 and inputs.dtype.is_floating and dtype == s.dtype:
            kernel = ProductKernel(u, s, v)
        elif transposed or not inputs.dtype.is_floating:
            kernel = ProductKernel(u, tf.matmul(v, s, transpose_b=True))
        else:
            kernel = ProductKernel(tf.matmul(u, s), v)
    return kernel.apply(maps, inputs, dtype, transposed)


def whole_matrix(factors):
    """W itself, or that of what stands in its place, shape `(n, m)`."""
    kernel = overrides().get(factors) or ProductKernel.of(factors.read())
    first, *last = kernel.folded(factors.S.dtype).matrices
    return tf.matmul(first, last[0], transpose_b=True) if last else first


def squared_norm(factors):
    r"""`||W||_F^2` without forming W, differentiable, whatever the state of the factors.

    `<U^T U S, S V^T V>`, in an override that has a core too: what a second pass adds to bases is
    as long as the rule of the optimizer makes it, and need not be orthogonal to the rest.
    """
    kernel = overrides().get(factors)
    u, s, v = factors.read() if kernel is None or kernel.core is None else kernel.matrices
    left = tf.matmul(tf.matmul(u, u, transpose_a=True), s)
    right = tf.matmul(s, tf.matmul(v, v, transpose_a=True))
    return tf.reduce_sum(left * right)


@contextlib.contextmanager
def override_kernels(kernels):
    """While open, `low_rank_apply` uses `kernels[factors]` in place of the layer's variables.

    Args:
        kernels: dict from `Factors` to a `ProductKernel`.
    """
    outer = overrides()
    _LOCAL.kernels = {**outer, **kernels}
    try:
        yield
    finally:
        _LOCAL.kernels = outer


def folded(factors, dtype):
    """While open, layers that multiply again and again do so with products of two.

    Args:
        factors: list of `Factors`.
        dtype: str, the type to compute in.
    """
    table = overrides()
    kernels = {one: table.get(one) or ProductKernel.of(one.read()) for one in factors}
    return override_kernels({one: kernel.folded(dtype) for one, kernel in kernels.items()})


# One table per thread: each replica of a tf.distribute strategy traces in a thread of its own.
_LOCAL = threading.local()


def overrides():
    """The open overrides: dict from `Factors` to a `ProductKernel`."""
    return getattr(_LOCAL, "kernels", {})
