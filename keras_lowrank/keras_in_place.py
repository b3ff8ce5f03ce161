"""What of Keras is not public where a layer or a model changes its class in place.

As `keras_internals`; `tests/test_keras_in_place.py` fails where Keras moves one of these.
"""

import keras

# Where a layer is, and not what it is: graphs, scopes, and what it was called with.
_PLACE = (
    "_inbound_nodes",
    "_outbound_nodes",
    "_path",
    "_parent_path",
    "_called",
    "_build_shapes_dict",
)


def become(layer, twin):
    """Makes a built layer what its twin is, in its own place.

    Who holds the layer goes on to hold it: no tracker, which Keras locks once a layer is built,
    hears of it. What others have put into its attributes stays there.

    Args:
        layer: built layer.
        twin: built layer of the class that `layer` is to have. It is not to be used any more.
    """
    before, after = vars(layer), dict(vars(twin))
    after.update((name, before[name]) for name in _PLACE if name in before)
    # `Layer.__new__` wraps the methods of the class that an object was made as.
    for name in ("build", "quantize"):
        after.pop(name, None)
    for name, value in before.items():
        held = isinstance(value, (keras.Variable, keras.layers.Layer)) or name in after
        if not (held or name in ("build", "quantize") or hasattr(type(twin), name)):
            after[name] = value
    before.clear()
    before.update(after)
    object.__setattr__(layer, "__class__", type(twin))


def forget_traces(model):
    """Drops the functions that were traced with weights that are there no more.

    Keras drops its own after `quantize`, and asks each class by this hook for those it has beside.
    """
    model.train_function = model.test_function = model.predict_function = None
    getattr(model, "_post_quantize", lambda mode: None)("low_rank")


def compile_arguments(model):
    """The arguments that a model was compiled with, as objects; None where it was not."""
    if not (model.compiled and hasattr(model, "_compile_config")):
        return None
    # Resolved by now, so that what was "auto" cannot be told; layers have changed since.
    return {**model._compile_config.config, "jit_compile": "auto"}
