"""What of Keras's graphs of layers is not public and this package leans on, with the reason.

As `keras_internals`, for graphs; `tests/test_keras_graphs.py` fails where Keras moves one of these.
"""

import contextlib
import functools
import inspect

import keras
from keras.src.api_export import REGISTERED_OBJS_TO_NAMES
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

# The methods that `Layer.__new__` wraps.
_WRAPPED = ("build", "quantize")


def is_graph(model):
    """Whether a graph of layers says all that `model` computes: functional, or Sequential."""
    for kind in (Functional, keras.Sequential):
        if isinstance(model, kind):
            return type(model).call is kind.call
    return False


def calls_in_graphs(operation):
    """The arguments of every call of a layer or an operation in a graph, each a flat list."""
    calls = [node.arguments for node in operation._inbound_nodes]
    return [keras.tree.flatten((call.args, call.kwargs)) for call in calls]


def detached(operation):
    """A copy of an operation, which is no layer, that is in no graph."""
    # By hand: `copy.copy` asks for a config, and finds the class by its name.
    twin = object.__new__(type(operation))
    vars(twin).update(vars(operation))
    twin._inbound_nodes, twin._outbound_nodes = [], []
    return twin


def is_bare_graph(model):
    """Whether `model` is of no class of its own: its config is its graph of layers."""
    return type(model) in (Functional, keras.Sequential)


def is_saved_as_graph(model):
    """Whether the config of `model` is its graph of layers, and not what its `__init__` takes."""
    if isinstance(model, keras.Sequential):
        return type(model) is keras.Sequential and is_graph(model)
    return is_graph(model) and functional_like_constructor(type(model))


def called_with(layer):
    """The arguments of the first call of `layer` in a graph of layers, or None without one.

    Returns:
        `(args, kwargs)` with fresh symbolic tensors, or None.
    """
    if not layer._inbound_nodes:
        return None
    arguments = layer._inbound_nodes[0].arguments
    return keras.tree.map_structure(
        lambda x: (
            keras.KerasTensor(x.shape, x.dtype, x.sparse) if isinstance(x, keras.KerasTensor) else x
        ),
        (arguments.args, arguments.kwargs),
    )


@contextlib.contextmanager
def names_kept():
    """While open, layers are named as ever; the names of those that come after do not depend on it.

    Keras numbers layers without a name, class by class, in a table of the session.
    """
    before = dict(get_global_attribute("object_name_uids") or {})
    try:
        yield
    finally:
        table = get_global_attribute("object_name_uids")
        if table is not None:
            table.clear()
            table.update(before)


def unpickle(data):
    """The model that `keras.Model.__reduce__` put into `data`."""
    return keras.Model._unpickle_model(data)


def signed_as_functional(init):
    """Gives `__init__` the signature that Functional's has in this version of Keras, all optional.

    By its signature Keras tells, when it saves and loads, a model that its graph describes from
    one that only its code describes. Where Functional's own is that of a wrapper, `(*args,
    **kwargs)`, a `self` goes before it: some versions ask for the first argument by name.
    """
    signature = inspect.signature(Functional.__init__, follow_wrapped=False)
    first, *rest = signature.parameters.values()
    if first.kind is inspect.Parameter.VAR_POSITIONAL:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        signature = signature.replace(parameters=[own, first, *rest])
    else:
        # Without inputs it is still one that Keras can call again, for a subclass without its own.
        rest = [_optional(parameter) for parameter in rest]
        signature = signature.replace(parameters=[first, *rest])
    init.__signature__ = signature
    return init


def _optional(parameter):
    required = parameter.default is parameter.empty
    if required and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
        return parameter.replace(default=None)
    return parameter


def become_functional(model):
    """Makes a model that was just created one that a graph of layers describes.

    `keras.Model.__init__` instead rewrites the bases of the class, and of its bases, for good.
    """
    object.__setattr__(model, "__class__", _functional_class(type(model)))
    # Wrapped by Layer.__new__, it is still the `build` of the class that the model was made as.
    model.__dict__.pop("build", None)


@functools.cache
def _functional_class(cls):
    """`cls` with Keras's functional model behind it, saved under the name of `cls`."""
    if issubclass(cls, Functional):
        return cls
    return _saved_as(cls, (cls, Functional))


def change_class(instance, before=(), after=()):
    """Gives a layer or model methods of other classes, in place: it stays what everybody holds.

    It is still an instance of its class, and is saved under the name of that.

    Args:
        instance: layer or model.
        before: tuple of classes whose methods go before those of its class.
        after: tuple of classes whose methods go between those of its class and of Keras's own
            `Layer` or `Model`, as if it had been written as a subclass of them.
    """
    made = _class_around(type(instance), tuple(before), tuple(after))
    object.__setattr__(instance, "__class__", made)
    # Keras has wrapped some methods of the class that it was made as, in the instance.
    names = [name for name in _WRAPPED if any(hasattr(one, name) for one in before)]
    held = {name: vars(instance).pop(name) for name in names if name in vars(instance)}
    vars(instance).setdefault("_wrapped_before", []).append(held)


def restore_class(instance):
    """Takes back the last `change_class`."""
    object.__setattr__(instance, "__class__", class_before(instance))
    vars(instance).update(vars(instance)["_wrapped_before"].pop())


def class_before(instance):
    """The class that an instance had before the last `change_class`."""
    return type(instance)._class_before


@functools.cache
def _class_around(cls, before, after):
    made = _saved_as(cls, (*before, cls, *after))
    made._class_before = cls
    return made


def _saved_as(cls, bases):
    """A class with these bases that Keras saves under the name of `cls`."""
    made = type(cls.__name__, bases, {})
    made.__module__, made.__qualname__ = cls.__module__, cls.__qualname__
    for names in (GLOBAL_CUSTOM_NAMES, REGISTERED_OBJS_TO_NAMES):
        if cls in names:
            names[made] = names[cls]
    return made
