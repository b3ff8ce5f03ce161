"""What an artefact holds in place of U, S and V."""

import math

import tensorflow as tf

from keras_lowrank.kernels.kernel_override import ProductKernel
from keras_lowrank.layers.find_layers import find_built_layers


def deployed_kernels(model):
    """The matrices that an export holds in place of U, S and V: `{factors: ProductKernel}`.

    The folded pair `(U S, V)`, or W itself where that has no more entries: what costs less to
    keep costs less to multiply with.
    """
    return _kernels(model, lambda n, m, rank: rank * (n + m) < n * m)


def full_rank_kernels(model):
    """W itself for every low-rank layer, `{factors: ProductKernel}`: the model's full-rank twin."""
    return _kernels(model, lambda n, m, rank: False)


def count_parameters(layers, kernels):
    """The numbers that an artefact holds: its kernels, and all other weights of the layers."""
    inside = {id(variable) for factors in kernels for variable in factors.variables}
    others = {id(weight): weight for layer in layers for weight in layer.weights}
    return sum(
        math.prod(array.shape)
        for array in (
            *(weight for key, weight in others.items() if key not in inside),
            *(matrix for kernel in kernels.values() for matrix in kernel.matrices),
        )
    )


def _kernels(model, as_pair):
    kernels = {}
    for layer in find_built_layers(model).values():
        u, s, v = layer.factors.read()
        pair = (tf.matmul(u, s), v)
        if not as_pair(layer.factors.n, layer.factors.m, layer.factors.rank):
            pair = (tf.matmul(*pair, transpose_b=True),)
        held = [tf.Variable(matrix, trainable=False, name="kernel") for matrix in pair]
        kernels[layer.factors] = ProductKernel(*held)
    return kernels
