"""Describes a network once, and builds it with the layers of any method.

    def build(layers):
        inputs = keras.Input((784,))
        x = layers.dense(256, activation="relu")(inputs)
        return layers.model(inputs, keras.layers.Dense(10)(x))

A module of the examples, not a program.
"""

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
        self._factorization = factorization

    def _next_rank(self):
        """The rank of the next layer."""
        if not self._ranks:
            return None
        if self._count == len(self._ranks):
            raise ValueError(
                f"There must be one rank for each low-rank layer. Received: ranks={self._ranks}"
            )
        return self._ranks[self._count]


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
    kernel: Keras's initial one, or a trained one ("spectral initialisation", arXiv:2105.01029).

    Args:
        ranks: list of int, one for each layer.
        weights: dict from names of layers to their arrays, those of a `FullRank` network, or None.
        factorization: str, "matrix" for k x k and then 1 x 1 convolutions, "spatial" for k x 1 and
            then 1 x k.
    """

    def __init__(self, ranks, weights=None, factorization="matrix"):
        super().__init__(ranks, factorization)
        self._weights = weights

    def conv(self, filters, kernel_size, strides=1, activation=None, use_bias=True, **options):
        rank, name = self._next_rank(), self._name()
        windows = [(kernel_size, strides), (1, 1)]
        if self._factorization == "spatial":
            windows = [((kernel_size, 1), (strides, 1)), ((1, kernel_size), (1, strides))]
        (size, step), (last_size, last_step) = windows
        first = keras.layers.Conv2D(rank, size, step, use_bias=False, name=f"{name}_a", **options)
        options = {**options, "activation": activation, "use_bias": use_bias}
        return self._pair(
            first, keras.layers.Conv2D(filters, last_size, last_step, name=name, **options)
        )

    def dense(self, units, activation=None, use_bias=True, **options):
        rank, name = self._next_rank(), self._name()
        first = keras.layers.Dense(rank, use_bias=False, name=f"{name}_a", **options)
        second = keras.layers.Dense(units, activation=activation, use_bias=use_bias, name=name)
        return self._pair(first, second)

    def embedding(self, count, width):
        rank, name = self._next_rank(), self._name()
        first = keras.layers.Embedding(count, rank, name=f"{name}_a")
        return self._pair(first, keras.layers.Dense(width, use_bias=False, name=name))

    def model(self, inputs, outputs):
        model = keras.Model(inputs, outputs)
        for layer in model.layers if self._weights else []:
            given = self._weights.get(layer.name, [])
            if layer.name.startswith("matrix_"):  # only its kernel is in the pair
                given = given and [layer.kernel, *given[1:]]
            if given:
                layer.set_weights(given)
        return model

    def _pair(self, first, second):
        table = isinstance(first, keras.layers.Embedding)

        def apply(inputs):
            outputs = second(first(inputs))
            left, right = first.embeddings if table else first.kernel, second.kernel
            if self._weights:
                kernel = self._weights[second.name][0]
            else:
                *sizes, channels, _ = left.shape
                sizes = [size * other for size, other in zip(sizes, right.shape)] * (not table)
                draw = first.embeddings_initializer if table else first.kernel_initializer
                kernel = draw((*sizes, channels, right.shape[-1]))
            kernel = keras.ops.convert_to_numpy(kernel)
            spatial = self._factorization == "spatial" and kernel.ndim == 4
            if spatial:  # as (kh c, kw f)
                kernel = kernel.swapaxes(1, 2).reshape(-1, kernel.shape[1] * kernel.shape[3])
            a, b = balanced_factors(*truncated_svd(kernel, left.shape[-1]))
            left.assign(a.reshape(left.shape))
            if spatial:
                b = b.reshape(len(b), right.shape[1], -1).swapaxes(0, 1)
            right.assign(b.reshape(right.shape))
            return outputs

        return apply


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
