"""Copying a graph of layers, with other layers in place of some."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.convert.building import build_like, copy_own_state
from keras_lowrank.convert.copyable import (
    refuse_called_on_variables,
    refuse_shared_variables,
    refuse_sharing,
)
from keras_lowrank.convert.graph import opened
from keras_lowrank.keras_graphs import is_graph


class GraphCopy:
    """Copies graphs of layers with their weights, and replaces some layers.

    A layer that is used several times, in one graph or in several, stays one layer. Every layer
    that is not replaced keeps its name, weights and `trainable`.

    Args:
        replace: callable from a layer to its replacement, built and with its weights, or to None
            for a copy.
        copy_state: callable that copies the state of a layer to one that its config has made, with
            that of all layers inside.

    Raises:
        ValueError: layers that share variables, or one that cannot be copied.
    """

    def __init__(
        self,
        replace: Callable[[keras.layers.Layer], keras.layers.Layer | None],
        copy_state: Callable[[keras.layers.Layer, keras.layers.Layer], None] | None = None,
    ) -> None:
        self._copy_state = _copy_state if copy_state is None else copy_state
        # Called for a layer before the model around it is opened, and again inside it.
        self._replace: Any = functools.cache(replace)
        # `(layer, copy)` by id; in order, so that a layer comes before the model that holds it.
        self._copies: dict[int, tuple[Any, Any]] = {}
        self._replaced: set[int] = set()

    def of(self, model: keras.Model, make: Callable[..., Any] = keras.Model) -> Any:
        """Returns the copy of `model`.

        Args:
            model: functional or Sequential `keras.Model`.
            make: callable `(inputs, outputs, name=...) -> model`.
        """
        refuse_shared_variables(model)
        copy = self._graph(model, make)
        self._fill((model, copy))
        refuse_sharing(model, copy)
        return copy

    def of_layer(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """Returns the copy of one layer."""
        copy = self._layer(layer)
        if layer.weights and not copy.built:
            build_like(copy, layer)
        self._fill()
        return copy

    def pairs(self) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
        """Returns all layers that were copied one by one, each with its copy."""
        copies = self._copies.values()
        return [pair for pair in copies if isinstance(pair[0], keras.layers.Layer)]

    def _fill(self, *around: tuple[Any, Any]) -> None:
        """Copies the weights and `trainable` of all copied layers, and `trainable` around them."""
        copies = self.pairs()
        for layer, twin in copies:
            # Of what is opened, the layers are copied one by one.
            if id(layer) not in self._replaced and opened(layer) is None:
                self._copy_state(layer, twin)
        # Setting `trainable` sets it inside a layer too: the outermost comes first.
        for layer, twin in [*around, *reversed(copies)]:
            _copy_trainable(layer, twin)

    def _graph(self, model: keras.Model, make: Callable[..., Any]) -> Any:
        # Of a plain view of the model: Keras would copy its class and its compilation too.
        if isinstance(model, keras.Sequential):
            view = keras.Model(model.inputs[0], model.outputs[0])
        else:
            view = keras.Model(model.input, model.output)
        # Keras would name an input after its tensor, not after its layer.
        owners = {
            id(one.output): one for one in view.layers if type(one) is keras.layers.InputLayer
        }
        inputs = keras.tree.map_structure(lambda t: _copy_input(owners[id(t)]), view.input)
        copy = keras.models.clone_model(view, input_tensors=inputs, clone_function=self._layer)
        return make(copy.input, copy.output, name=model.name)

    def _layer(self, layer: Any) -> Any:
        if id(layer) not in self._copies:
            self._copies[id(layer)] = (layer, self._copy(layer))
        return self._copies[id(layer)][1]

    def _copy(self, layer: Any) -> Any:
        refuse_called_on_variables(layer)
        if not isinstance(layer, keras.layers.Layer):
            return keras_graphs.detached(layer)  # an operation, which holds nothing
        replaced = self._replace(layer)
        if replaced is not None:
            self._replaced.add(id(layer))
            return replaced
        if is_graph(layer):
            return self._whole(layer) or self._opened(layer)
        if opened(layer) is not None:
            config = {key: value for key, value in layer.get_config().items() if key != "layer"}
            return type(layer)(self._layer(layer.layer), **config)
        if type(layer) is keras.layers.Lambda:
            return _copy_lambda(layer)
        try:
            config = keras.tree.map_structure(self._unless_held, layer.get_config())
            return type(layer).from_config(config)
        except Exception as error:  # the code of a layer may raise anything
            raise ValueError(
                f"To be copied, layer {layer.name!r} of class {type(layer).__name__} must be "
                f"described by its `get_config`. Received: {error}"
            ) from error

    def _unless_held(self, value: Any) -> Any:
        """Returns a value of a config, or the copy of a layer that a config holds."""
        return self._layer(value) if isinstance(value, keras.layers.Layer) else value

    def _opened(self, model: keras.Model) -> keras.Model:
        if isinstance(model, keras.Sequential):
            return keras.Sequential([self._layer(one) for one in model.layers], name=model.name)
        return self._graph(model, keras.Model)

    def _whole(self, model: keras.Model) -> keras.Model | None:
        """Returns a copy of a nested model with its class; None if a layer in it is replaced.

        Copied layer by layer, it would lose its class.
        """
        inside = _inside(model)
        if keras_graphs.is_bare_graph(model) or any(
            id(one) in self._copies or self._replace(one) is not None for one in inside
        ):
            return None
        try:
            twin = type(model).from_config(model.get_config())
        except Exception:  # its config does not describe it: it is copied layer by layer
            return None
        twins = _inside(twin)
        if list(map(_outline, inside)) != list(map(_outline, twins)):
            return None
        # A layer that is also used outside of it stays one layer.
        self._copies.update((id(one), (one, other)) for one, other in zip(inside, twins))
        return twin


def copied_activation(activation: Any) -> Any:
    """Returns an activation for another layer: a function as it is, a layer as a copy."""
    if not isinstance(activation, keras.layers.Layer):
        return activation
    return GraphCopy(lambda layer: None).of_layer(activation)


def _inside(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers of a model, and of all that can be `opened` in it."""
    found: dict[int, keras.layers.Layer] = {}
    for layer in opened(model) or ():
        found[id(layer)] = layer
        if opened(layer) is not None:
            found.update((id(one), one) for one in _inside(layer))
    return list(found.values())


def _outline(layer: keras.layers.Layer) -> tuple[Any, ...]:
    return type(layer), layer.name, [tuple(weight.shape) for weight in layer.weights]


def _copy_lambda(layer: keras.layers.Lambda) -> keras.layers.Lambda:
    """Returns another Lambda with the same functions, which a config could not hold."""
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=dict(layer.arguments),
        **keras.layers.Layer.get_config(layer),
    )


def _copy_input(layer: keras.layers.InputLayer) -> keras.KerasTensor:
    return keras.layers.InputLayer.from_config(layer.get_config()).output


def _copy_state(layer: keras.layers.Layer, twin: keras.layers.Layer) -> None:
    """Copies the variables and assets of a layer and of all layers inside it."""
    sources = [layer, *keras_internals.all_layers(layer)]
    targets = [twin, *keras_internals.all_layers(twin)]
    for source, target in zip(sources, targets, strict=True):
        if source.weights and not target.built:  # a symbolic call does not build activations
            build_like(target, source)
        copy_own_state(source, target)


def _copy_trainable(layer: keras.layers.Layer, twin: keras.layers.Layer) -> None:
    twin.trainable = layer.trainable
    if opened(layer) is None:
        # Layers of the twin without an original follow the layer around them.
        pairs = zip(keras_internals.sublayers(layer), keras_internals.sublayers(twin))
        for source, target in pairs:
            _copy_trainable(source, target)
