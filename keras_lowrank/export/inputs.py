"""Inputs that a caller gives, in the order of what an artefact is called with."""

import keras


def in_order(data, signature, argument):
    """The arrays in `data` as a flat list, one for each of the specs in `signature`.

    As `keras.Model.predict` reads them: a dictionary by name, whatever the order of its keys, and
    what no input is named after is left; all else by position.

    Args:
        data: array, or list, tuple or dict of arrays, nested as the inputs are.
        signature: list of arguments, structures of specs.
        argument: str, the name of the argument that `data` came as, for errors.

    Raises:
        ValueError: a dictionary without one of the inputs, or a list in the place of a dictionary
            whose keys are not in order, of which nothing says what is what.
    """
    structure = signature[0] if len(signature) == 1 else list(signature)
    return keras.tree.flatten(_matched(data, structure, argument))


def _matched(data, specs, argument):
    """The arrays of `data` in the structure of `specs`; as they are, where they have no names."""
    if isinstance(specs, dict) and isinstance(data, dict):
        _check_names(data, specs, argument)
        found = {name: _matched(data[name], one, argument) for name, one in specs.items()}
        return type(specs)(found)
    if isinstance(data, dict):
        # Names of the inputs themselves: a list of them has no other.
        leaves = keras.tree.flatten(specs)
        names = [getattr(spec, "name", None) for spec in leaves]
        _check_names(data, names, argument)
        return [data[name] for name in names]
    if isinstance(specs, dict) and len(specs) > 1 and list(specs) != sorted(specs):
        raise ValueError(
            f"`{argument}` must be a dictionary by the names of the inputs, {list(specs)}, whose "
            f"order a list would leave open. Received: {type(data).__name__}"
        )
    positional = isinstance(specs, list | tuple) and isinstance(data, list | tuple)
    if not positional or len(specs) != len(data):
        return data  # in the order of the inputs, or of another number, which the caller refuses
    return [_matched(one, spec, argument) for one, spec in zip(data, specs)]


def _check_names(data, names, argument):
    if not set(names) <= set(data):
        raise ValueError(
            f"`{argument}` must hold an array for each of the inputs {list(names)}, by name. "
            f"Received: arrays by the names {list(data)}"
        )
