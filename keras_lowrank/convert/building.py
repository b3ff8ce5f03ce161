"""Building a layer in the place of another, and copying the state of a layer."""

import contextlib
import tempfile
from collections.abc import Sequence
from typing import Any

import keras


def input_shape(layer: keras.layers.Layer) -> tuple[int | None, ...] | None:
    """Returns the shape of the inputs that a layer was built for; None where it needs none."""
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    return None if shape is None else tuple(shape)


def build_like(
    twin: keras.layers.Layer,
    layer: keras.layers.Layer,
    shapes: dict[str, Any] | None = None,
    inside: Sequence[str] = (),
) -> None:
    """Builds a layer in the name scope of another, so that the paths of its variables agree.

    Args:
        twin: unbuilt `keras.layers.Layer`.
        layer: built `keras.layers.Layer`.
        shapes: dict, the arguments of `build`; None for those that `layer` was built with.
        inside: tuple of str, names of further models around the twin.
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
        # Recurrent layers name the shape of their inputs otherwise.
        if "input_shape" in shapes:
            twin.build(shapes["input_shape"])
        else:
            twin.build(**shapes)


def copy_own_state(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies the variables and assets of a layer, without those of layers inside it."""
    store: dict[str, Any] = {}
    source.save_own_variables(store)
    target.load_own_variables(store)
    if hasattr(source, "save_assets"):  # vocabularies
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)
