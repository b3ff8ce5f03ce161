"""A user's inputs, in the order of the exported model's arguments."""

from typing import Any

import keras


def in_order(data: Any, signature: list, argument: str) -> list:
    """Flattens `data` to a list with one array for each spec in `signature`.

    Matches as `keras.Model.predict` does: dictionaries by name, in any order and with extra keys
    ignored; everything else by position.

    Args:
        data: array, or list, tuple or dict of arrays, nested like the inputs.
        signature: list of arguments, structures of specs.
        argument: str, the name of the user's argument, for errors.

    Returns:
        List of arrays.

    Raises:
        ValueError: a dictionary lacks an input, or a list stands for a dictionary whose keys are
            not sorted, so that its order is ambiguous.
    """
    structure = signature[0] if len(signature) == 1 else list(signature)
    return keras.tree.flatten(_matched(data, structure, argument))


def _matched(data: Any, specs: Any, argument: str) -> Any:
    """The arrays of `data` in the structure of `specs`."""
    if isinstance(specs, dict) and isinstance(data, dict):
        _check_names(data, specs, argument)
        found = {name: _matched(data[name], one, argument) for name, one in specs.items()}
        return type(specs)(found)
    if isinstance(data, dict):
        # The inputs' own names: a list of inputs has no keys.
        leaves = keras.tree.flatten(specs)
        names = [getattr(spec, "name", None) for spec in leaves]
        _check_names(data, names, argument)
        return [data[name] for name in names]
    if isinstance(specs, dict) and len(specs) > 1 and list(specs) != sorted(specs):
        raise ValueError(
            f"`{argument}` must be a dictionary with the names of the inputs, {list(specs)}: the "
            f"order of a list would be ambiguous. Received: {type(data).__name__}"
        )
    positional = isinstance(specs, list | tuple) and isinstance(data, list | tuple)
    if not positional or len(specs) != len(data):
        return data  # the caller checks the number of arrays
    return [_matched(one, spec, argument) for one, spec in zip(data, specs)]


def _check_names(data: dict, names: Any, argument: str) -> None:
    if not set(names) <= set(data):
        raise ValueError(
            f"`{argument}` must hold an array for each of the inputs {list(names)}, by name. "
            f"Received: arrays named {list(data)}"
        )
