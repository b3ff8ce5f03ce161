"""The matrices that an export stores instead of U, S and V."""

import math
from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_override import ProductKernel
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.manifold.factors import Factors


def deployed_kernels(model: keras.Model) -> dict[Factors, ProductKernel]:
    """Returns the matrices of an export: `U S` and V, or W if it has no more entries.

    The smaller choice is also the cheaper one to multiply with.

    Args:
        model: built model.

    Returns:
        Dict from the `Factors` of each low-rank layer to its `ProductKernel`.
    """
    return _kernels(model, lambda n, m, rank: rank * (n + m) < n * m)


def full_rank_kernels(model: keras.Model) -> dict[Factors, ProductKernel]:
    """Returns W for every low-rank layer, as `deployed_kernels` does: the model at full rank."""
    return _kernels(model, lambda n, m, rank: False)


def count_parameters(
    layers: Iterable[keras.layers.Layer], kernels: dict[Factors, ProductKernel]
) -> int:
    """Counts the numbers in an export: the kernels, and all other weights of the layers."""
    inside = {id(variable) for factors in kernels for variable in factors.variables}
    others = {id(weight): weight for layer in layers for weight in layer.weights}
    return sum(
        math.prod(array.shape)
        for array in (
            *(weight for key, weight in others.items() if key not in inside),
            *(matrix for kernel in kernels.values() for matrix in kernel.matrices),
        )
    )


def _kernels(
    model: keras.Model, as_pair: Callable[[int, int, int], bool]
) -> dict[Factors, ProductKernel]:
    kernels = {}
    for layer in find_built_layers(model).values():
        u, s, v = layer.factors.read()
        matrices = [tf.matmul(u, s), v]
        if not as_pair(layer.factors.n, layer.factors.m, layer.factors.rank):
            matrices = [tf.matmul(*matrices, transpose_b=True)]
        held = [tf.Variable(matrix, trainable=False, name="kernel") for matrix in matrices]
        kernels[layer.factors] = ProductKernel(*held)
    return kernels
