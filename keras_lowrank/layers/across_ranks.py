"""Keras methods that compare shapes of weights, made to work when ranks differ."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.manifold.factors import Factors, RankVariable

if TYPE_CHECKING:  # a base that stands before a Keras class, and extends its methods
    from keras.layers import Layer as _Base
else:
    _Base = object


class AcrossRanks(_Base):
    """Methods of a layer or model that takes weights of other ranks; before the Keras class."""

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Sets all weights from a list of arrays; ranks follow the arrays.

        The optimizer's momentum of low-rank layers starts again, as after `load_weights`.

        Args:
            weights: list of arrays, as from `get_weights()`.
        """
        set_weights(self, weights)

    def stateless_call(
        self, trainable_variables: Any, non_trainable_variables: Any, *args: Any, **kwargs: Any
    ) -> Any:
        given = [trainable_variables, non_trainable_variables]
        # Passed as values, whose shape is known: that of the variable is open.
        given = [[_read(v) for v in variables] for variables in given]
        return super().stateless_call(*given, *args, **kwargs)


def set_weights(layer: keras.layers.Layer, weights: Sequence[np.ndarray]) -> None:
    """Calls `layer.set_weights(weights)` across ranks: only the ranks may differ.

    Low-rank layers and models have it as their method. Use it for Keras layers that hold low-rank
    layers (`Bidirectional`, `TimeDistributed`, a `Sequential`), whose own method compares whole
    shapes. All shapes are checked before the first weight is set.

    Args:
        layer: Keras layer or model.
        weights: list of arrays, as from `layer.get_weights()`.

    Raises:
        ValueError: another number of arrays, or a size other than a rank that does not fit.

    Example:

    >>> layers = [keras.layers.Bidirectional(LowRankLSTM(8, rank=rank)) for rank in (2, 3)]
    >>> outputs = [layer(np.ones((1, 5, 8))) for layer in layers]
    >>> set_weights(layers[0], layers[1].get_weights())
    >>> layers[0].forward_layer.rank
    {'kernel': 3, 'recurrent_kernel': 3}
    """
    variables = layer.weights
    if len(variables) != len(weights):
        raise ValueError(
            f"`set_weights` of {layer.name!r} needs {len(variables)} arrays, one for each of its "
            f"weights. Received: {len(weights)} arrays"
        )
    # By identity: layers of equal names, in two models inside this one, have equal paths.
    shapes = {id(variable): tuple(value.shape) for variable, value in zip(variables, weights)}
    owners = {id(v): factors for factors in _all_factors(layer) for v in factors.variables}
    checked: set[Factors] = set()
    for variable, value in zip(variables, weights):
        factors = owners.get(id(variable))
        if factors is None:
            if tuple(variable.shape) != tuple(value.shape):
                raise ValueError(
                    f"The weight {variable.path!r} has the shape {tuple(variable.shape)}. "
                    f"Received: an array of shape {tuple(value.shape)}"
                )
        elif factors not in checked:
            checked.add(factors)
            factors.check_shapes(*(shapes[id(v)] for v in factors.variables))
    for variable, value in zip(variables, weights):
        variable.assign(value)


def _all_factors(layer: keras.layers.Layer) -> list[Factors]:
    held = [getattr(one, "factors", None) for one in [layer, *keras_internals.all_layers(layer)]]
    return [factors for factors in held if isinstance(factors, Factors)]


def _read(variable: Any) -> Any:
    return tf.convert_to_tensor(variable.value) if isinstance(variable, RankVariable) else variable
