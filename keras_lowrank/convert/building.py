"""Building a layer where another was built, and copying what it holds itself."""

import contextlib
import tempfile

import keras


def input_shape(layer):
    """The shape of the inputs that a layer was built for; None where it needs none."""
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    return None if shape is None else tuple(shape)


def build_like(twin, layer, shapes=None, inside=()):
    """Builds a layer where another was built, so that its variables have paths like those.

    Args:
        twin: unbuilt `keras.layers.Layer`.
        layer: built `keras.layers.Layer`.
        shapes: dict, the arguments of `build`, or None for those that `layer` was built with.
        inside: tuple of str, names of models that are around the twin and not around the layer.
    """
    if shapes is None:
        shape = input_shape(layer)
        config = layer.get_build_config() or {}
        shapes = config.get("shapes_dict") or {"input_shape": shape}
    around, _, _ = f"/{layer.weights[0].path}".rpartition(f"/{layer.name}/")
    scopes = around.split("/")[1:]
    with contextlib.ExitStack() as stack:
        for scope in (*scopes, *inside):
            stack.enter_context(keras.name_scope(scope))
        # Recurrent layers have a name of their own for the shape of their inputs.
        twin.build(shapes["input_shape"]) if "input_shape" in shapes else twin.build(**shapes)


def copy_own_state(source, target):
    """Copies what a layer holds beside other layers: variables and assets."""
    store = {}
    source.save_own_variables(store)
    target.load_own_variables(store)
    if hasattr(source, "save_assets"):  # vocabularies
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)
