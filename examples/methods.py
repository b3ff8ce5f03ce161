"""Describes a network once, and builds it with the layers of any method.

    def build(layers):
        inputs = keras.Input((784,))
        x = layers.dense(256, activation="relu")(inputs)
        return layers.model(inputs, keras.layers.Dense(10)(x))

A module of the examples, not a program.
"""

import math

import keras
import numpy as np

from keras_lowrank import (
    LowRankConv2D,
    LowRankDense,
    LowRankEmbedding,
    LowRankModel,
    count_weights,
    from_keras,
)


class FullRank:
    """Keras's layers."""

    def __init__(self):
        self._count = 0

    def conv(self, filters, kernel_size, **options):
        return keras.layers.Conv2D(filters, kernel_size, name=self._name(), **options)

    def dense(self, units, **options):
        return keras.layers.Dense(units, name=self._name(), **options)

    def embedding(self, count, width):
        return keras.layers.Embedding(count, width, name=self._name())

    def model(self, inputs, outputs):
        return keras.Model(inputs, outputs)

    def rebuild(self, model):
        """A functional model again with these layers, and without its weights.

        Only its convolutions and dense layers change, and not the first and last of them.
        """
        kept = _first_and_last(model)

        def layer_of(layer):
            if not isinstance(layer, keras.layers.Layer):
                return layer  # an operation
            config = layer.get_config()
            if layer.name in kept or not isinstance(layer, _MATRICES):
                return type(layer).from_config(config)
            if isinstance(layer, keras.layers.Dense):
                return self.dense(config["units"], **_options(config))
            (size,), (strides,) = set(config["kernel_size"]), set(config["strides"])
            options = {"strides": strides, "padding": config["padding"], **_options(config)}
            return self.conv(config["filters"], size, **options)

        copy = keras.models.clone_model(model, clone_function=layer_of)
        return self.model(copy.inputs, copy.outputs[0])

    def convert(self, model):
        """The model itself, to train on with its weights."""
        return model

    def _name(self):
        # Equal names in all methods, unlike Keras's default names: they match the weights of one
        # network to the layers of another.
        self._count += 1
        return f"matrix_{self._count}"


_MATRICES = (keras.layers.Conv2D, keras.layers.Dense)


def _first_and_last(model):
    """The names of the layers that stay full rank."""
    names = [layer.name for layer in model.layers if isinstance(layer, _MATRICES)]
    return [names[0], names[-1]]


def _options(config):
    return {name: config[name] for name in ("activation", "use_bias")}


class _Ranked(FullRank):
    """Base of the methods with ranks, which give each layer the next rank."""

    def __init__(self, ranks, factorization="matrix"):
        super().__init__()
        self._ranks = list(ranks)
        self._left = list(ranks)
        self._factorization = factorization

    def _next_rank(self):
        """The rank of the next layer, or of one side of a Tucker-2 kernel."""
        if not self._ranks:
            return None
        if not self._left:
            raise ValueError(
                f"There must be one rank for each low-rank layer. Received: ranks={self._ranks}"
            )
        return self._left.pop(0)


class LowRank(_Ranked):
    """Layers of keras_lowrank.

    Args:
        ranks: list of int, the starting rank of each layer, or empty for the defaults.
        factorization: str, of `LowRankConv2D`.
        tolerance: float, of `convert`, or None.
        compression: float, the share of the weights that `convert` saves in place of it, or None.
    """

    def __init__(self, ranks, factorization="matrix", tolerance=None, compression=None):
        super().__init__(ranks, factorization)
        self._tolerance, self._compression = tolerance, compression

    def convert(self, model):
        """The best approximation of a trained model."""
        cut = {"tolerance": self._tolerance}
        if self._compression is not None:
            cut = {"budget": round((1.0 - self._compression) * count_weights(model).full)}
        return from_keras(model, **cut, exclude=_first_and_last(model))

    def conv(self, filters, kernel_size, **options):
        options = {**options, "rank": self._next_rank(), "factorization": self._factorization}
        return LowRankConv2D(filters, kernel_size, name=self._name(), **options)

    def dense(self, units, **options):
        rank = self._next_rank()
        return LowRankDense(units, rank=rank, name=self._name(), **options)

    def embedding(self, count, width):
        rank = self._next_rank()
        return LowRankEmbedding(count, width, rank=rank, name=self._name())

    def model(self, inputs, outputs):
        return LowRankModel(inputs, outputs)


class TwoFactor(_Ranked):
    """Two Keras layers instead of one, with the kernel `A B`.

    They start balanced, `A = U_r sqrt(S_r)` and `B = sqrt(S_r) V_r^T`, from the truncated SVD of a
    kernel: Keras's initial one, or a trained one ("spectral initialisation", arXiv:2105.01029). The
    three layers of a Tucker-2 kernel start as `balanced_tucker_factors`.

    Args:
        ranks: list of int, one for each layer, and for a Tucker-2 kernel one for each side.
        weights: dict from names of layers to their arrays, those of a `FullRank` network, or None.
        factorization: str, "matrix" for k x k and then 1 x 1 convolutions, "spatial" for k x 1 and
            then 1 x k, "tucker" for 1 x 1, k x k and 1 x 1.
    """

    def __init__(self, ranks, weights=None, factorization="matrix"):
        super().__init__(ranks, factorization)
        self._weights = weights

    def conv(self, filters, kernel_size, strides=1, activation=None, use_bias=True, **options):
        windows = [(kernel_size, strides), (1, 1)]
        if self._factorization == "spatial":
            windows = [((kernel_size, 1), (strides, 1)), ((1, kernel_size), (1, strides))]
        elif self._factorization == "tucker":
            windows.insert(0, (1, 1))
        *before, (size, step) = windows
        name = self._name()
        chain = [
            keras.layers.Conv2D(
                self._next_rank(), *window, use_bias=False, name=f"{name}_{mark}", **options
            )
            for mark, window in zip("ab", before)
        ]
        options = {**options, "activation": activation, "use_bias": use_bias}
        return self._chain(*chain, keras.layers.Conv2D(filters, size, step, name=name, **options))

    def dense(self, units, activation=None, use_bias=True, **options):
        rank, name = self._next_rank(), self._name()
        first = keras.layers.Dense(rank, use_bias=False, name=f"{name}_a", **options)
        second = keras.layers.Dense(units, activation=activation, use_bias=use_bias, name=name)
        return self._chain(first, second)

    def embedding(self, count, width):
        rank, name = self._next_rank(), self._name()
        first = keras.layers.Embedding(count, rank, name=f"{name}_a")
        return self._chain(first, keras.layers.Dense(width, use_bias=False, name=name))

    def model(self, inputs, outputs):
        model = keras.Model(inputs, outputs)
        for layer in model.layers if self._weights else []:
            given = self._weights.get(layer.name, [])
            if layer.name.startswith("matrix_"):  # only its kernel is in the chain
                given = given and [layer.kernel, *given[1:]]
            if given:
                layer.set_weights(given)
        return model

    def _chain(self, *layers):
        """One after the other, with the factors of one kernel."""
        table = isinstance(layers[0], keras.layers.Embedding)

        def apply(inputs):
            outputs = inputs
            for layer in layers:
                outputs = layer(outputs)
            held = [layers[0].embeddings if table else layers[0].kernel]
            held += [layer.kernel for layer in layers[1:]]
            shapes = [tuple(variable.shape) for variable in held]
            if self._weights:
                kernel = self._weights[layers[-1].name][0]
            else:
                sizes = map(math.prod, zip(*(shape[:-2] for shape in shapes)))
                draw = layers[0].embeddings_initializer if table else layers[0].kernel_initializer
                kernel = draw((*sizes, shapes[0][-2], shapes[-1][-1]))
            kernel = keras.ops.convert_to_numpy(kernel)
            for variable, factor in zip(held, self._factors(kernel, shapes)):
                variable.assign(factor.reshape(variable.shape))
            return outputs

        return apply

    def _factors(self, kernel, shapes):
        """The kernels of a chain with these shapes."""
        ranks = [shape[-1] for shape in shapes[:-1]]
        if len(ranks) == 2:
            return balanced_tucker_factors(kernel, *ranks)
        if self._factorization != "spatial" or kernel.ndim < 4:
            return balanced_factors(*truncated_svd(kernel, *ranks))
        width = kernel.shape[1]
        kernel = kernel.swapaxes(1, 2).reshape(-1, width * kernel.shape[3])  # as (kh c, kw f)
        a, b = balanced_factors(*truncated_svd(kernel, *ranks))
        return a, b.reshape(len(b), width, -1).swapaxes(0, 1)


def weights_by_name(model):
    """The arrays of every layer, by name, for `TwoFactor`."""
    return {layer.name: layer.get_weights() for layer in model.layers}


def truncated_svd(kernel, rank):
    """The truncated SVD `(U, s, V)` of a kernel, as a matrix with the kernel's last axis."""
    matrix = keras.ops.convert_to_numpy(kernel)
    matrix = matrix.reshape(-1, matrix.shape[-1]).astype("float64")
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank].T


def balanced_factors(left, values, right):
    """`A = U sqrt(S)` and `B = sqrt(S) V^T`."""
    return left * np.sqrt(values), (right * np.sqrt(values)).T


def balanced_tucker_factors(kernel, p, q):
    """`A = U D_1^(1/3)`, `C_k = D_1^(-1/3) S_k D_2^(-1/3)` and `B = D_2^(1/3) V^T`.

    U and V are the leading singular vectors of both unfoldings of the kernel, D_1 and D_2 their
    singular values, and `S_k = U^T W_k V`: the higher-order SVD, scaled as three factors of a
    matrix are.
    """
    _, inner, left = truncated_svd(np.swapaxes(kernel, -1, -2), p)
    _, outer, right = truncated_svd(kernel, q)
    core = left.T @ kernel @ right
    inner, outer = (np.cbrt(np.maximum(one, 1e-6 * one[0])) for one in (inner, outer))
    return left * inner, core / (inner[:, None] * outer), (right * outer).T
