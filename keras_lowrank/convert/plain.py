"""A `LowRankModel` in, a plain Keras model out."""

import warnings

from keras_lowrank import keras_internals
from keras_lowrank.convert.graph import GraphCopy, check_model, opened
from keras_lowrank.convert.registry import converter_of
from keras_lowrank.layers import LowRankLayer

_STYLES = ("smaller", "factored", "merged")


def to_keras(model, style="smaller"):
    r"""Returns a Keras model that computes the same, with no class of this package in it.

    A low-rank layer becomes `"merged"`, the one Keras layer with the kernel `U S V^T`, or
    `"factored"`, two Keras layers with the kernels `U S^{1/2}` and `S^{1/2} V^T` in a Sequential
    model of the same name: Dense without a bias and Dense, Conv2D without a bias and a 1x1 Conv2D
    (of height and of width, where it is factorized so),
    EinsumDense without a bias and EinsumDense, and so for the other convolutions. The root of S in
    each gives both the same norm, which training and quantization like best. The projections of
    attention are always merged, since Keras's layer has one EinsumDense for each.
    All else is copied, as `from_keras` does. The new model is not compiled.

    Args:
        model: functional or Sequential `keras.Model`, or `LowRankModel` of that kind, built.
        style: str, `"smaller"`, which of the two has fewer weights, layer by layer (factored if
            `r (n + m) < n m`); or `"factored"` or `"merged"` for all layers.

    LSTM and GRU, bidirectional or not, and an Embedding of ragged indices
    (`keras.Input(..., ragged=True)`) have no form in factors and are merged in every case.

    A kernel regularizer, which is one of `||W||_F^2`, stays with a merged kernel and has no place
    in a factored one; there is a warning.

    Raises:
        TypeError: no Keras model.
        ValueError: an unknown style, a subclassed or unbuilt model, or a layer that cannot be
            copied.

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
    check_model(model, "to_keras", "The `kernel` of each low-rank layer holds its matrix.")
    penalized = []

    def replace(layer):
        converter = converter_of(layer)
        if not converter.is_low_rank(layer):
            _check_what_it_holds(layer)
            return None
        if _is_merged(converter, layer, style):
            return converter.to_plain(layer, "merged")
        if layer.kernel_regularizer is not None:
            penalized.append(layer.name)
        return converter.to_plain(layer, "factored")

    copy = GraphCopy(replace).of(model)
    if penalized:
        warnings.warn(
            f"Factored layers lose their kernel regularizer: {', '.join(penalized)}.", stacklevel=2
        )
    return copy


def _is_merged(converter, layer, style):
    if style == "merged" or not converter.can_be_factored(layer):
        return True
    n, m, rank = layer.factors.n, layer.factors.m, layer.factors.rank
    return style == "smaller" and rank * (n + m) >= n * m


def _check_what_it_holds(layer):
    held = keras_internals.all_layers(layer) if opened(layer) is None else []
    if any(isinstance(one, LowRankLayer) for one in held):
        raise ValueError(
            f"What a {type(layer).__name__} does with the low-rank layers that it holds only its "
            "code says; `to_keras` cannot put plain ones in their place. "
            f"Received: the layer {layer.name!r}"
        )
