"""Layers become their low-rank twins: in a model, or in a copy of it that is thrown away."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_lowrank.convert.converter import Kernel
from keras_lowrank.convert.copies import copy_model
from keras_lowrank.convert.moments import OutputMoment, stream
from keras_lowrank.keras_internals import become


def become_twins(
    kernels: dict[str, Kernel],
    factors: Callable[[str], Any],
    place: Callable[[keras.layers.Layer], keras.layers.Layer] = lambda layer: layer,
) -> dict[str, Any]:
    """Makes the layers of kernels low-rank, once the twins of all of them are made.

    Args:
        kernels: `{path: Kernel}`.
        factors: callable from a path to `(U, S, V)`.
        place: callable from a layer to that in whose place its twin goes. By default the layer.

    Returns:
        `{path: kernel}` of the low-rank layers.
    """
    of_layers: dict[int, dict[str, Kernel]] = {}
    for path, kernel in kernels.items():
        of_layers.setdefault(id(kernel.layer), {})[path] = kernel
    twins = []
    for some in of_layers.values():
        converter, layer, _ = next(iter(some.values()))
        by_name = {kernel.name: path for path, kernel in some.items()}
        inside = converter.kernels("", layer).items()
        paths = {one: by_name[kernel.name] for one, kernel in inside if kernel.name in by_name}
        twin = converter.to_low_rank("", layer, {one: factors(p) for one, p in paths.items()})
        twins.append((converter, layer, twin, paths))
    made: dict[str, Any] = {}
    for converter, layer, twin, paths in twins:
        become(changed := place(layer), twin)
        inside = converter.kernels("", changed).items()
        made.update((paths[one], kernel) for one, kernel in inside if one in paths)
    return made


def rank_one_copy(
    model: keras.Model, kernels: dict[str, Kernel]
) -> tuple[keras.Model, dict[str, Any]]:
    """Returns a low-rank copy of a model to put other kernels into, and its low-rank ones by path.

    Args:
        model: `keras.Model`.
        kernels: dict from paths to `Kernel`, which become factors of rank 1.
    """
    copy, layers = copy_model(model)

    def nothing(path):
        return kernels[path].form.zeros()

    return copy, become_twins(kernels, nothing, lambda layer: layers[id(layer)])


def output_moments(
    model: keras.Model, kernels: dict[str, Kernel], data: Any
) -> dict[str, np.ndarray | None]:
    """Returns `{path: E[y y^T]}` of the outputs `y = x W` of kernels, over a data set.

    Args:
        model: built `keras.Model`.
        kernels: `{path: Kernel}`.
        data: as `from_keras` takes it.
    """
    # The moments take the place of the factors of rank 1, which are not read.
    copy, made = rank_one_copy(model, kernels)
    moments = {
        path: OutputMoment(keras.ops.convert_to_tensor(kernel.matrix()))
        for path, kernel in kernels.items()
        if path in made
    }
    stream(copy, {made[path].factors: moment for path, moment in moments.items()}, data)
    return {path: moment.mean for path, moment in moments.items()}
