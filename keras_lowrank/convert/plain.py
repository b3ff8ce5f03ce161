"""A `LowRankModel` in, a plain Keras model out."""

import warnings

import keras
import numpy as np

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.convert.graph import (
    GraphCopy,
    build_like,
    check_model,
    copy_own_state,
    input_shape,
    opened,
)
from keras_lowrank.convert.kinds import (
    ATTENTION,
    GATED,
    directions,
    kernel_of,
    kind_of,
    matricization,
    plain_arguments,
    second_arguments,
)
from keras_lowrank.convert.twins import bidirectional
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.layers.attention import LowRankAttention
from keras_lowrank.layers.composite import kind_of_composite
from keras_lowrank.layers.recurrent import GatedLayer

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
        if isinstance(layer, LowRankAttention):
            return _attention(layer)
        if any(isinstance(one, GatedLayer) for one in (layer, *directions(layer))):
            return _merged_gates(layer)
        if not isinstance(layer, LowRankLayer):
            _check_what_it_holds(layer)
            return None
        if kind_of(layer) is None:
            raise _unknown(layer)
        if keras_internals.is_called_with(layer, "reverse"):
            raise ValueError(
                "`to_keras` has no Keras layer for an embedding that is called with "
                f"`reverse=True` too. Received: the layer {layer.name!r}"
            )
        n, m, rank = layer.factors.n, layer.factors.m, layer.factors.rank
        if (
            style == "merged"
            or _is_called_on_ragged(layer)
            or (style == "smaller" and rank * (n + m) >= n * m)
        ):
            return _merged(layer)
        if layer.kernel_regularizer is not None:
            penalized.append(layer.name)
        return _factored(layer)

    copy = GraphCopy(replace).of(model)
    if penalized:
        warnings.warn(
            f"Factored layers lose their kernel regularizer: {', '.join(penalized)}.", stacklevel=2
        )
    return copy


def _is_called_on_ragged(layer):
    """Whether a layer, an embedding then, looks up ragged indices: Keras's Dense takes no such."""
    calls = keras_graphs.calls_in_graphs(layer)
    return any(kind_of_composite(value) == "ragged" for call in calls for value in call)


def _attention(layer):
    by_low_rank = {low_rank: plain for plain, low_rank in ATTENTION.items()}
    if type(layer) not in by_low_rank:
        raise _unknown(layer)
    plain = by_low_rank[type(layer)].from_config(plain_arguments(layer))
    build_like(plain, layer)
    pairs = zip(keras_internals.all_layers(layer), keras_internals.all_layers(plain), strict=True)
    for source, target in pairs:
        if isinstance(source, LowRankLayer):
            _fill_merged(target, source)
        else:
            copy_own_state(source, target)
    return plain


def _merged(layer):
    plain = kind_of(layer).plain.from_config(plain_arguments(layer))
    build_like(plain, layer)
    _fill_merged(plain, layer)
    return plain


def _merged_gates(layer):
    """The Keras layer of a recurrent one, which has no form in factors."""
    plain = _unbuilt_gates(layer)
    build_like(plain, layer)
    both = zip(directions(layer) or [layer], directions(plain) or [plain])
    for source, target in both:
        if not isinstance(source, GatedLayer):
            target.set_weights(source.get_weights())
            continue
        for name in ("kernel", "recurrent_kernel"):
            blocks = [_whole(one) for one in getattr(source.cell, f"{name}s")]
            getattr(target.cell, name).assign(np.concatenate(blocks, axis=-1))
        if target.cell.bias is not None:
            target.cell.bias.assign(source.cell.bias)
    return plain


def _unbuilt_gates(layer):
    if directions(layer):
        return bidirectional(layer, *map(_unbuilt_gates, directions(layer)))
    by_low_rank = {low_rank: plain for plain, low_rank in GATED.items()}
    if not isinstance(layer, GatedLayer):
        return type(layer).from_config(layer.get_config())
    if type(layer) not in by_low_rank:
        raise _unknown(layer)
    return by_low_rank[type(layer)].from_config(plain_arguments(layer))


def _whole(layer):
    """The kernel of a layer in a cell, low-rank or not."""
    if not isinstance(layer, LowRankLayer):
        return np.asarray(layer.kernel)
    u, s, v = _in_float64(layer)
    return u @ s @ v.T


def _check_what_it_holds(layer):
    held = keras_internals.all_layers(layer) if opened(layer) is None else []
    if any(isinstance(one, LowRankLayer) for one in held):
        raise ValueError(
            f"What a {type(layer).__name__} does with the low-rank layers that it holds only its "
            "code says; `to_keras` cannot put plain ones in their place. "
            f"Received: the layer {layer.name!r}"
        )


def _factored(layer):
    kind, arguments, behind = kind_of(layer), plain_arguments(layer), second_arguments(layer)
    linear = {
        "activation": None,
        "activity_regularizer": None,
        "bias_regularizer": None,
        "bias_constraint": None,
    }
    arguments.update((key, value) for key, value in linear.items() if key in arguments)
    arguments[f"{kind.kernel}_regularizer"] = None
    behind["kernel_regularizer"] = None
    own, others = kind.pair(layer)
    first = kind.plain.from_config({**arguments, **own, "name": f"{layer.name}_left"})
    behind = {**behind, **others, "name": f"{layer.name}_right"}
    second = (kind.behind or kind.plain).from_config(behind)
    shape = input_shape(layer)
    build_like(first, layer, {"input_shape": shape}, inside=(layer.name,))
    shape = first.compute_output_shape(shape or (None,))
    build_like(second, layer, {"input_shape": shape}, inside=(layer.name,))
    left, right = _balanced(layer)
    _fill(first, matricization(first), left)
    _fill(second, _of_right(layer, second), right, layer.bias)
    return keras.Sequential([first, second], name=layer.name)


def _balanced(layer):
    """`U S^{1/2}` and `S^{1/2} V^T` in float64, S made diagonal."""
    u, s, v = _in_float64(layer)
    inner, values, outer = np.linalg.svd(s)
    root = np.sqrt(values)
    return u @ inner * root, root[:, None] * (outer @ v.T)


def _in_float64(layer):
    return [np.asarray(part, "float64") for part in layer.factors.read()]


def _fill_merged(plain, layer):
    u, s, v = _in_float64(layer)
    _fill(plain, layer.matricization, u @ s @ v.T, layer.bias)


def _of_right(layer, second):
    """How the kernel of the second layer in place of `layer` is the matrix `S^{1/2} V^T`."""
    if getattr(layer, "factorization", "matrix") == "spatial":
        return Matricization(tuple(second.kernel.shape), rows=(2,), columns=(0, 1, 3))
    return matricization(second)


def _fill(layer, how, matrix, bias=None):
    kernel_of(layer).assign(how.kernel(matrix))
    if bias is not None:
        layer.bias.assign(bias)


def _unknown(layer):
    return ValueError(
        f"`to_keras` knows no Keras layer for the class {type(layer).__name__}. "
        f"Received: the layer {layer.name!r}"
    )
