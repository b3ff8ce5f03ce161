"""Copies a model that a graph of layers describes, with other layers in the place of some."""

import collections
import functools

import keras
import tensorflow as tf

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.convert.building import build_like, copy_own_state
from keras_lowrank.keras_graphs import is_graph


def opened(layer):
    """The layers in what is copied layer by layer: a graph, or a `TimeDistributed`; else None."""
    if is_graph(layer):
        return layer.layers
    return [layer.layer] if type(layer) is keras.layers.TimeDistributed else None


def graph_layers(model, wrappers=False):
    """Returns `{path: layer}` of the layers in the graph of `model`, all that can be `opened` open.

    Paths are those of `LowRankModel.ranks`: names joined by "/". A layer that is used in several
    places appears once, under its first path. With `wrappers`, each `TimeDistributed` is there too.
    """
    found, seen = {}, set()

    def search(parent, prefix):
        for layer in opened(parent):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if opened(layer) is None or (wrappers and not is_graph(layer)):
                found[prefix + layer.name] = layer
            if opened(layer) is not None:
                search(layer, f"{prefix}{layer.name}/")

    search(model, "")
    return found


def check_model(model, function, hint):
    """Raises unless `model` is a functional or Sequential model that can be copied."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"`{function}` takes a `keras.Model`. Received: {type(model).__name__}")
    if not is_graph(model):
        raise ValueError(
            f"`{function}` copies functional and Sequential models; what a subclassed model "
            f"computes only its own code says. {hint} "
            f"Received: a model of class {type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"`{function}` needs a model with weights. Build it, or call it on a batch. "
            f"Received: an unbuilt model {model.name!r}"
        )
    _refuse_shared_variables(graph_layers(model))


class GraphCopy:
    """A copy of a graph of layers, with weights, in which some layers are replaced.

    Layers that are used twice, in one graph or in several, stay one layer; names, `trainable` and
    the weights of every layer that is not replaced are those of the original.

    Args:
        replace: callable from a layer to the layer in its place, built and with its weights, or to
            None for a copy.
    """

    def __init__(self, replace):
        self._replace = functools.cache(replace)  # asked for before a model is opened, and in it
        self._copies = {}  # by id; in order, so that what a model holds comes before it
        self._replaced = set()  # of ids

    def of(self, model, make=keras.Model):
        """Returns the copy of `model`, made by `make(inputs, outputs, name=...)`."""
        copy = self._graph(model, make)
        self._fill((model, copy))
        _refuse_sharing(model, copy)
        return copy

    def of_layer(self, layer):
        """Returns the copy of one layer."""
        copy = self._layer(layer)
        if layer.weights and not copy.built:
            build_like(copy, layer)
        self._fill()
        return copy

    def _fill(self, *around):
        """Copies the state of all that was copied, and what is `trainable` of it and around it."""
        copies = [pair for pair in self._copies.values() if isinstance(pair[0], keras.layers.Layer)]
        for layer, twin in copies:
            if id(layer) not in self._replaced:
                _copy_state(layer, twin)
        # `trainable` reaches into all that a layer holds: the outermost is set first.
        for layer, twin in [*around, *reversed(copies)]:
            _copy_trainable(layer, twin)

    def _graph(self, model, make):
        # A view: neither compiled nor of a class of its own, both of which Keras would copy.
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

    def _layer(self, layer):
        if id(layer) not in self._copies:
            self._copies[id(layer)] = (layer, self._copy(layer))
        return self._copies[id(layer)][1]

    def _copy(self, layer):
        _refuse_called_on_variables(layer)
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
        except Exception as error:  # whatever the code of a layer raises, the cure is one
            raise ValueError(
                f"Layer {layer.name!r} of class {type(layer).__name__} must be one that its "
                f"`get_config` describes, to be copied. Received: {error}"
            ) from error

    def _unless_held(self, value):
        """A value of a config, or the copy of a layer where a config holds that itself."""
        return self._layer(value) if isinstance(value, keras.layers.Layer) else value

    def _opened(self, model):
        if isinstance(model, keras.Sequential):
            return keras.Sequential([self._layer(one) for one in model.layers], name=model.name)
        return self._graph(model, keras.Model)

    def _whole(self, model):
        """A copy of a nested model that keeps its class, if nothing in it is replaced; or None.

        Opened, it would be a bare graph, and what its class does when it is loaded would be lost.
        """
        inside = _inside(model)
        if keras_graphs.is_bare_graph(model) or any(
            id(one) in self._copies or self._replace(one) is not None for one in inside
        ):
            return None
        try:
            twin = type(model).from_config(model.get_config())
        except Exception:  # a class that its config does not describe is opened
            return None
        twins = _inside(twin)
        if list(map(_outline, inside)) != list(map(_outline, twins)):
            return None
        # Whatever is used outside of it too is one layer there as well.
        self._copies.update((id(one), (one, other)) for one, other in zip(inside, twins))
        return twin


def copied_activation(activation):
    """An activation for another layer: a function itself, a layer as a copy with its weights."""
    if not isinstance(activation, keras.layers.Layer):
        return activation
    return GraphCopy(lambda layer: None).of_layer(activation)


def _inside(model):
    """The layers of a model, and of all in it that can be `opened`."""
    found = {}
    for layer in opened(model):
        found[id(layer)] = layer
        if opened(layer) is not None:
            found.update((id(one), one) for one in _inside(layer))
    return list(found.values())


def _outline(layer):
    return type(layer), layer.name, [tuple(weight.shape) for weight in layer.weights]


def _refuse_shared_variables(layers):
    owners = collections.defaultdict(list)
    for path, layer in layers.items():
        for variable in layer.weights:
            owners[id(variable)].append(path)
    shared = next((paths for paths in owners.values() if len(paths) > 1), None)
    if shared:
        raise ValueError(
            "Layers that share a variable without being one layer cannot be copied: the copies "
            "would not share it. Use one layer twice; a table that also projects back is one "
            "`LowRankEmbedding`, the second time called with `reverse=True`. "
            f"Received: the layers {', '.join(shared)}"
        )


def _refuse_called_on_variables(layer):
    """A variable in the place of an input is in the graph itself: all copies would have it."""
    called_on = (value for call in keras_graphs.calls_in_graphs(layer) for value in call)
    shared = [one for one in called_on if isinstance(one, keras.Variable | tf.Variable)]
    if shared:
        raise ValueError(
            "A graph in which something is called on a variable cannot be copied: the copy would "
            "share it. Call a layer that holds it in its place. Received: the variable "
            f"{getattr(shared[0], 'path', shared[0].name)!r}, that {layer.name!r} is called on"
        )


def _refuse_sharing(model, copy):
    """Sees to it that a copy shares no layer and no variable with its original."""
    parts = [*keras_internals.all_layers(model), *model.variables]
    mine = {id(part) for part in parts}
    both = [*keras_internals.all_layers(copy), *copy.variables]
    shared = [part.name for part in both if id(part) in mine]
    if shared:
        raise ValueError(
            "A copy must share no layer and no variable with its original: a layer that holds "
            "another must be described by its `get_config`, and made anew by `from_config`. "
            f"Received: {', '.join(shared)}, in both"
        )


def _copy_lambda(layer):
    """Another Lambda of the same functions, which would not survive a config."""
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=dict(layer.arguments),
        **keras.layers.Layer.get_config(layer),
    )


def _copy_input(layer):
    return keras.layers.InputLayer.from_config(layer.get_config()).output


def _copy_state(layer, twin):
    """Copies the variables and assets of a layer and of all layers that it holds itself."""
    if opened(layer) is not None:
        return  # its layers are copied one by one
    sources = [layer, *keras_internals.all_layers(layer)]
    targets = [twin, *keras_internals.all_layers(twin)]
    for source, target in zip(sources, targets, strict=True):
        if source.weights and not target.built:  # an activation, which a symbolic call leaves so
            build_like(target, source)
        copy_own_state(source, target)


def _copy_trainable(layer, twin):
    twin.trainable = layer.trainable
    if opened(layer) is None:
        # What a twin holds beside its original's layers is as trainable as what holds it.
        pairs = zip(keras_internals.sublayers(layer), keras_internals.sublayers(twin))
        for source, target in pairs:
            _copy_trainable(source, target)
