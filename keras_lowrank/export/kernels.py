"""The matrices that an export stores instead of U, S and V."""

import math
from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_override import ProductKernel, whole_matrix
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.manifold.factors import Factors


def deployed_kernels(model: keras.Model) -> dict[Factors, ProductKernel]:
    """Returns the matrices of an export: `U S` and V, or W if it has no more entries.

    Of a Tucker-2 kernel it returns U, S and V, or W.

    The smaller choice is also the cheaper one to multiply with.

    Args:
        model: built model.

    Returns:
        Dict from the `Factors` of each low-rank layer to its `ProductKernel`.
    """
    return _kernels(model, lambda factors: factors.factored < factors.full)


def full_rank_kernels(model: keras.Model) -> dict[Factors, ProductKernel]:
    """Returns W for every low-rank layer, as `deployed_kernels` does: the model at full rank."""
    return _kernels(model, lambda factors: False)


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
    model: keras.Model, as_factors: Callable[[Factors], bool]
) -> dict[Factors, ProductKernel]:
    kernels = {}
    for layer in find_built_layers(model).values():
        factors = layer.factors
        matrices = factors.deployed() if as_factors(factors) else [whole_matrix(factors)]
        held = [tf.Variable(matrix, trainable=False, name="kernel") for matrix in matrices]
        kernels[factors] = ProductKernel(*held)
    return kernels
