"""The low-rank layer in the place of a plain one."""

import keras

from keras_lowrank import keras_internals
from keras_lowrank.convert.graph import build_like, copy_own_state
from keras_lowrank.convert.kinds import (
    directions,
    has_several_kernels,
    is_attention,
    kernel_layers,
    kernel_of,
    unbuilt_twin,
)
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.layers.initial_factors import GivenFactors


def low_rank_twin(path, layer, factors):
    """A layer with the arguments and the biases of `layer`, and with given factors.

    Args:
        path: str, the path of `layer`.
        layer: built Keras layer that can be converted.
        factors: dict from paths of `kernel_layers(path, layer)` to `(U, S, V)`. A kernel that is
            not among them stays dense.
    """
    if has_several_kernels(layer):
        twin = _unbuilt(path, layer, factors)
        build_like(twin, layer)
        _fill(path, layer, twin, factors)
        return twin
    twin = unbuilt_twin(layer, factors[path][1].shape[0])
    drawn, twin.kernel_initializer = twin.kernel_initializer, GivenFactors(factors[path])
    build_like(twin, layer)
    twin.kernel_initializer = drawn
    if twin.bias is not None:
        twin.bias.assign(layer.bias)
    return twin


def bidirectional(layer, forward, backward):
    """A `Bidirectional` as `layer` is one, of two other layers."""
    config = layer.get_config()
    config = {key: value for key, value in config.items() if key not in ("layer", "backward_layer")}
    return keras.layers.Bidirectional(forward, backward_layer=backward, **config)


def _unbuilt(path, layer, factors):
    """The twin of a layer with several kernels, with the ranks of those that have factors."""
    if directions(layer):
        twins = (_unbuilt(f"{path}/{one.name}", one, factors) for one in directions(layer))
        return bidirectional(layer, *twins)
    ranks = {
        one.rpartition("/")[2]: factors[one][1].shape[0]
        for one in kernel_layers(path, layer)
        if one in factors
    }
    return unbuilt_twin(layer, ranks) if ranks else type(layer).from_config(layer.get_config())


def _fill(path, layer, twin, factors):
    """Gives a built twin the factors, and all else that is in `layer`."""
    if directions(layer):
        for source, target in zip(directions(layer), directions(twin)):
            _fill(f"{path}/{source.name}", source, target, factors)
    elif is_attention(layer):
        _fill_attention(path, layer, twin, factors)
    elif type(layer) is type(twin):
        twin.set_weights(layer.get_weights())
    else:
        kernels = kernel_layers(path, layer)
        for one, target in kernel_layers(path, twin).items():
            if isinstance(target, LowRankLayer):
                target.factors.assign(factors[one])
            else:
                target.kernel.assign(kernel_of(kernels[one]))
        if twin.cell.bias is not None:
            twin.cell.bias.assign(layer.cell.bias)


def _fill_attention(path, layer, twin, factors):
    pairs = zip(keras_internals.all_layers(layer), keras_internals.all_layers(twin), strict=True)
    for source, target in pairs:
        if isinstance(target, LowRankLayer):
            target.factors.assign(factors[f"{path}/{target.name}"])
            if target.bias is not None:
                target.bias.assign(source.bias)
        else:
            copy_own_state(source, target)
