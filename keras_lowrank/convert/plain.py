"""A `LowRankModel` in, a plain Keras model out."""

import warnings

import keras

from keras_lowrank import keras_internals
from keras_lowrank.convert.converted_model import has_own_class, plain_twin
from keras_lowrank.convert.converter import Converter
from keras_lowrank.convert.copies import copy_state
from keras_lowrank.convert.copyable import check_model
from keras_lowrank.convert.graph import graph_layers
from keras_lowrank.convert.graph_copy import GraphCopy
from keras_lowrank.convert.registry import converter_of
from keras_lowrank.keras_graphs import is_graph
from keras_lowrank.layers import LowRankLayer

_STYLES = ("smaller", "factored", "merged")


def to_keras(model: keras.Model, style: str = "smaller") -> keras.Model:
    r"""Returns a Keras model that computes the same, with no class of this package in it.

    A low-rank layer becomes one of two:

    - `"merged"`: the Keras layer with the kernel `U S V^T`.
    - `"factored"`: two Keras layers with the kernels `U S^{1/2}` and `S^{1/2} V^T`, in a Sequential
      model of the same name. Both kernels have the same norm, which suits training and
      quantization. The layers are two Dense, two EinsumDense, or a convolution and a 1x1
      convolution (for `factorization="spatial"`, one along the height and one along the width). The
      first has no bias.

    Attention, LSTM, GRU, an Embedding of ragged indices (`keras.Input(..., ragged=True)`) and what
    is inside other layers are always merged: their Keras layers have one kernel for each. All other
    layers are copied as in `from_keras`. The new model is not compiled.

    A subclassed model, or a `Backbone` or `Task` of KerasHub, that was converted is of its own
    class again, and merged. It is compiled if its `__init__` compiles it.

    A factored layer loses its kernel regularizer, which acts on `||W||_F^2`, with a warning.

    Args:
        model: functional or Sequential `keras.Model` or `LowRankModel`, built, or one that
            `make_low_rank` or `from_keras` has converted.
        style: str, `"factored"`, `"merged"`, or `"smaller"` (the default): for each layer the one
            with fewer weights, factored if `r (n + m) < n m`.

    Returns:
        `keras.Model`.

    Raises:
        TypeError: no Keras model.
        ValueError: an unknown style, an unbuilt model, a subclassed one that was not converted, or
            a layer that cannot be copied.

    Example:

    >>> inputs = keras.Input((64,))
    >>> model = LowRankModel(inputs, LowRankDense(32, rank=4, name="low")(inputs))
    >>> plain = to_keras(model)
    >>> [tuple(weight.shape) for weight in plain.weights]
    [(64, 4), (4, 32), (32,)]
    >>> bool(np.allclose(model(np.ones((1, 64))), plain(np.ones((1, 64))), atol=1e-5))
    True
    """
    if style not in _STYLES:
        raise ValueError(f"`style` must be one of {_STYLES}. Received: style={style!r}")
    check_model(model, "to_keras")
    if has_own_class(model):
        if style == "factored":
            raise ValueError(
                "The code of a model makes one layer for each kernel: use style='merged'. "
                f"Received: style='factored' for a model of class {type(model).__name__}"
            )
        return plain_twin(model)
    if not is_graph(model):
        raise ValueError(
            "`to_keras` takes functional and Sequential models, and what `make_low_rank` has "
            "converted; only its own code says what another model computes. The `kernel` of each "
            "low-rank layer holds its matrix. "
            f"Received: a model of class {type(model).__name__}"
        )
    penalized: list[str] = []

    def replace(layer):
        converter = converter_of(layer)
        if not converter.is_low_rank(layer):
            return None
        if _is_merged(converter, layer, style):
            return converter.to_plain(layer, "merged")
        if layer.kernel_regularizer is not None:
            penalized.append(layer.name)
        return converter.to_plain(layer, "factored")

    copy = GraphCopy(replace, copy_state).of(model)
    _check_plain(copy)
    if penalized:
        warnings.warn(
            f"Factored layers lose their kernel regularizer: {', '.join(penalized)}.", stacklevel=2
        )
    return copy


def _is_merged(converter: Converter, layer: keras.layers.Layer, style: str) -> bool:
    if style == "merged" or not converter.can_be_factored(layer):
        return True
    n, m, rank = layer.factors.n, layer.factors.m, layer.factors.rank
    return style == "smaller" and rank * (n + m) >= n * m


def _check_plain(copy: keras.Model) -> None:
    for layer in graph_layers(copy).values():
        if any(isinstance(one, LowRankLayer) for one in keras_internals.all_layers(layer)):
            raise ValueError(
                f"`to_keras` cannot replace low-rank layers inside a {type(layer).__name__}: only "
                f"its code says how it uses them. Received: the layer {layer.name!r}"
            )
