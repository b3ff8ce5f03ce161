"""The private parts of Keras's graphs of layers that this package uses, each with the reason.

When a Keras release moves one of them, `tests/test_keras_graphs.py` fails and names it.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
from keras.src.api_export import REGISTERED_OBJS_TO_NAMES
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

_Function = TypeVar("_Function", bound=Callable[..., Any])
# The methods that `Layer.__new__` wraps.
_WRAPPED = ("build", "quantize")


def is_graph(model: keras.layers.Layer) -> bool:
    """Whether a graph of layers describes all that `model` computes: functional or Sequential."""
    for kind in (Functional, keras.Sequential):
        if isinstance(model, kind):
            return type(model).call is kind.call
    return False


def calls_in_graphs(operation: keras.Operation) -> list[list[Any]]:
    """Returns the arguments of each call of a layer or operation in a graph, as flat lists."""
    calls = [node.arguments for node in operation._inbound_nodes]
    return [keras.tree.flatten((call.args, call.kwargs)) for call in calls]


def detached(operation: keras.Operation) -> keras.Operation:
    """Returns a copy of an operation (not a layer) that is in no graph."""
    # `copy.copy` would need a config, and a class registered by name.
    twin = object.__new__(type(operation))
    vars(twin).update(vars(operation))
    twin._inbound_nodes, twin._outbound_nodes = [], []
    return twin


def is_bare_graph(model: keras.layers.Layer) -> bool:
    """Whether `model` is a plain functional or Sequential model, not of a subclass."""
    return type(model) in (Functional, keras.Sequential)


def is_saved_as_graph(model: keras.layers.Layer) -> bool:
    """Whether the config of `model` is its graph of layers, not the arguments of `__init__`."""
    if isinstance(model, keras.Sequential):
        return type(model) is keras.Sequential and is_graph(model)
    # One of a class that makes itself from something else has another config.
    revived = type(model).from_config.__func__ is keras.Model.from_config.__func__
    return is_graph(model) and revived and functional_like_constructor(type(model))


def called_with(layer: keras.layers.Layer) -> tuple[tuple, dict[str, Any]] | None:
    """Returns the arguments of the first call of `layer` in a graph of layers.

    Returns:
        `(args, kwargs)` with fresh symbolic tensors; None without a call.
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
def names_kept() -> Iterator[None]:
    """While open, layers get names that do not count for the names of later layers.

    Keras numbers unnamed layers by class, in a table of the session.
    """
    before = dict(get_global_attribute("object_name_uids") or {})
    try:
        yield
    finally:
        table = get_global_attribute("object_name_uids")
        if table is not None:
            table.clear()
            table.update(before)


def unpickle(data: Any) -> keras.Model:
    """Returns the model that `keras.Model.__reduce__` put into `data`."""
    return keras.Model._unpickle_model(data)


def signed_as_functional(init: _Function) -> _Function:
    """Gives `__init__` the signature of Functional's in this version of Keras, all optional.

    Keras tells by the signature, when it saves and loads, whether a graph describes a model.
    Where Functional's own signature is that of a wrapper, `(*args, **kwargs)`, a `self` goes before
    it: some versions read the name of the first argument.
    """
    signature = inspect.signature(Functional.__init__, follow_wrapped=False)
    first, *rest = signature.parameters.values()
    if first.kind is inspect.Parameter.VAR_POSITIONAL:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        signature = signature.replace(parameters=[own, first, *rest])
    else:
        # Optional, so that Keras can also call it without inputs, for a subclass that has none.
        rest = [_optional(parameter) for parameter in rest]
        signature = signature.replace(parameters=[first, *rest])
    # `inspect.signature` reads this attribute, which the type of a function does not have.
    init.__signature__ = signature  # type: ignore[attr-defined]
    return init


def _optional(parameter: inspect.Parameter) -> inspect.Parameter:
    required = parameter.default is parameter.empty
    if required and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
        return parameter.replace(default=None)
    return parameter


def become_functional(model: keras.Model) -> None:
    """Turns a model that was just created into a functional one.

    `keras.Model.__init__` would rewrite the bases of its class, for good.
    """
    cls: Any = type(model)
    object.__setattr__(model, "__class__", _functional_class(cls))
    # Layer.__new__ has wrapped the `build` of the class that the model had before.
    model.__dict__.pop("build", None)


@functools.cache
def _functional_class(cls: Any) -> type:
    """Returns `cls` with Keras's functional model as a base, saved under the name of `cls`."""
    if issubclass(cls, Functional):
        return cls
    return _saved_as(cls, cls, (cls, Functional))


class NotCloned:
    """A base of functional models that are more than their graph: `clone_model` raises.

    It would clone the graph, layer by layer and for every class, and lose what else there is.
    """

    def _run_through_graph(self, inputs: Any, operation_fn: Any, *args: Any, **kwargs: Any) -> Any:
        if operation_fn.__module__ == keras.models.clone_model.__module__:
            raise ValueError(
                "`clone_model` would lose the class and the low-rank layers of the model. Use "
                "`type(model).from_config(model.get_config())`. "
                f"Received: a {type(self).__name__}"
            )
        graph: Any = super()
        return graph._run_through_graph(inputs, operation_fn, *args, **kwargs)


def change_class(
    instance: keras.layers.Layer, before: tuple[type, ...] = (), after: tuple[type, ...] = ()
) -> None:
    """Gives a layer or model methods of other classes, in place: it stays what everybody holds.

    It is still an instance of its class, and is saved under the name of that, or of the first class
    in `before` that is registered with Keras.

    Args:
        instance: layer or model.
        before: tuple of classes whose methods go before those of its class.
        after: tuple of classes whose methods go between those of its class and of Keras's own
            `Layer` or `Model`, as if it had been written as a subclass of them.
    """
    cls: Any = type(instance)
    made = _class_around(cls, tuple(before), tuple(after))
    object.__setattr__(instance, "__class__", made)
    # Keras has wrapped some methods of the class that it was made as, in the instance.
    names = [name for name in _WRAPPED if any(hasattr(one, name) for one in before)]
    held = {name: vars(instance).pop(name) for name in names if name in vars(instance)}
    vars(instance).setdefault("_wrapped_before", []).append(held)


def restore_class(instance: keras.layers.Layer) -> None:
    """Takes back the last `change_class`."""
    object.__setattr__(instance, "__class__", class_before(instance))
    vars(instance).update(vars(instance)["_wrapped_before"].pop())


def class_before(instance: keras.layers.Layer) -> type:
    """The class that an instance had before the last `change_class`."""
    cls: Any = type(instance)
    return cls._class_before


def original_class(cls: Any) -> type:
    """The class that an instance of `cls` had before the first `change_class`."""
    while hasattr(cls, "_class_before"):
        cls = cls._class_before
    return cls


@functools.cache
def _class_around(cls: Any, before: tuple[type, ...], after: tuple[type, ...]) -> type:
    named = next((one for one in before if one in GLOBAL_CUSTOM_NAMES), cls)
    made: Any = _saved_as(named, cls, (*before, cls, *after))
    made._class_before = cls
    return made


def _saved_as(named: type, cls: type, bases: tuple[type, ...]) -> type:
    """A class like `cls` with these bases that Keras saves under the name of `named`."""
    # Another name than `cls` where it is not saved as that: Keras may look for it by this one.
    name = cls.__name__ if named is cls else f"LowRank{cls.__name__}"
    made = type(name, bases, {})
    made.__module__, made.__qualname__ = cls.__module__, cls.__qualname__
    for names in (GLOBAL_CUSTOM_NAMES, REGISTERED_OBJS_TO_NAMES):
        if named in names:
            names[made] = names[named]
    return made
