"""The low-rank layer in the place of a plain one."""

from keras_lowrank import keras_internals
from keras_lowrank.convert.graph import build_like, copy_own_state
from keras_lowrank.convert.kinds import ATTENTION, is_attention, unbuilt_twin
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.layers.initial_factors import GivenFactors


def low_rank_twin(path, layer, factors):
    """A layer with the arguments and the biases of `layer`, and with given factors.

    Args:
        path: str, the path of `layer`.
        layer: built Keras layer that can be converted.
        factors: dict from paths of `kernel_layers(path, layer)` to `(U, S, V)`. A projection that
            is not among them stays dense.
    """
    if is_attention(layer):
        return _attention(path, layer, factors)
    twin = unbuilt_twin(layer, factors[path][1].shape[0])
    drawn, twin.kernel_initializer = twin.kernel_initializer, GivenFactors(factors[path])
    build_like(twin, layer)
    twin.kernel_initializer = drawn
    if twin.bias is not None:
        twin.bias.assign(layer.bias)
    return twin


def _attention(path, layer, factors):
    ranks = {one.removeprefix(f"{path}/"): parts[1].shape[0] for one, parts in factors.items()}
    twin = ATTENTION[type(layer)](**{**layer.get_config(), "rank": ranks})
    build_like(twin, layer)
    pairs = zip(keras_internals.all_layers(layer), keras_internals.all_layers(twin), strict=True)
    for source, target in pairs:
        if isinstance(target, LowRankLayer):
            target.factors.assign(factors[f"{path}/{target.name}"])
            if target.bias is not None:
                target.bias.assign(source.bias)
        else:
            copy_own_state(source, target)
    return twin
