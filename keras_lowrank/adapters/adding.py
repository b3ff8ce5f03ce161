"""Adapters are added to a model, or loaded into one, and merged."""

import os
from collections.abc import Iterable
from typing import Any

import keras

from keras_lowrank import keras_internals
from keras_lowrank.adapters import file
from keras_lowrank.adapters.adapted_layer import AdaptedLayer, Switch
from keras_lowrank.adapters.adapted_model import AdaptedModel
from keras_lowrank.adapters.adapters import HELD, Adapters
from keras_lowrank.adapters.delta import Delta
from keras_lowrank.adapters.families import family_of, make_deltas
from keras_lowrank.adapters.selection import (
    Place,
    adaptable_layers,
    learnable,
    select_layers,
    select_variables,
    with_idle_statistics,
)
from keras_lowrank.layers.arguments import check_ranks, positive_integer
from keras_lowrank.layers.find_layers import find_low_rank_layers
from keras_lowrank.model import become_low_rank


def add_adapters(
    model: keras.Model,
    rank: int = 4,
    max_rank: int | None = 16,
    include: Any = None,
    exclude: Any = None,
    trainable: Any = None,
    name: str = "default",
) -> Adapters:
    r"""Puts a low-rank change beside kernels of a model, `W = W0 + U S V^T`, in place.

    All weights of the model are frozen, and statistics of batch normalization too. The change
    starts at zero: the model computes what it did. It is an instance of its class still, and a
    `LowRankModel` beside: `compile` takes `integrator` and `truncation`, and training moves and
    sizes the changes as it does low-rank layers. The base may be in float32, float16 or bfloat16,
    or quantized by Keras to int8 or int4.

    Saved as `.keras`, as weights or as a preset, the model is a plain one with the sums in the
    place of its kernels, as with Keras's LoRA: it loads without this package. The adapters alone
    are saved with `Adapters.save`.

    Args:
        model: built `keras.Model` of any kind, or a task of KerasHub.
        rank: int, the rank to start with. Of a smaller kernel, all that it has.
        max_rank: int or None, the largest rank. None is that of the kernel.
        include: names, paths, patterns, layer classes or functions of a layer, one or a list: the
            layers that get a change, as in `from_keras`. None takes those that a model of KerasHub
            names for LoRA, and of any other model all but embeddings.
        exclude: the same, for layers that get none.
        trainable: the same, for layers whose variables are trained beside the changes; a string may
            name variables too, as `"bias"` does. None trains the changes alone.
        name: str, the name of the set, to tell it from others that are added later.

    Returns:
        `Adapters`.

    Raises:
        ValueError: no layer is left, a string means none, ranks that are not in order, adapters
            or LoRA that are there already, or a base in another precision.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, name="dense")])
    >>> adapters = add_adapters(model, rank=2)
    >>> model.compile("sgd", "mse", truncation=0.1)
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 6)), verbose=0)
    >>> adapters.ranks
    {'dense/delta': 2}
    >>> merge_adapters(model)
    """
    start, _, largest = check_ranks(positive_integer("rank", rank), 1, max_rank)
    _refuse_twice(model)
    layers = select_layers(model, include, exclude)
    places = select_variables(model, trainable)
    parts = make_deltas(layers, start, largest)
    return _put_in(model, layers, parts, places, {"rank": start, "max_rank": largest}, name)


def load_adapters(
    model: keras.Model, filepath: str | os.PathLike[str], name: str | None = None
) -> Adapters:
    """Puts adapters from a file into a model like the one that they were trained in.

    Args:
        model: built `keras.Model`. One that has adapters already gets another set, which is taken
            in use; one without gets them added.
        filepath: str or path that `Adapters.save` has written.
        name: str or None, the name of the set. None is the name that it was saved with.

    Returns:
        `Adapters`.

    Raises:
        ValueError: a file of other layers or another base, or a damaged one.

    Example:

    >>> def base():
    ...     keras.utils.set_random_seed(0)
    ...     return keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, name="dense")])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "french.adapters.h5"
    >>> add_adapters(base(), rank=2, name="french").save(path)
    >>> load_adapters(base(), path).ranks
    {'dense/delta': 2}
    """
    if HELD in vars(model):
        adapters = vars(model)[HELD]
        adapters.load(filepath, name)
        return adapters
    state, header = file.read(filepath)
    candidates, places = list(adaptable_layers(model).items()), header["places"]
    layers = dict(candidates[place] for place in places if place < len(candidates))
    parts = make_deltas(layers, **header["arguments"])
    kernels = [
        [place, *delta.kernel_shape]
        for place, path in zip(places, layers)
        for delta in parts[path].values()
    ]
    variables = learnable(model)
    named = [tuple(one[:2]) for one in header["trained"]]
    of_trained = [place for place in named if place in variables]
    trained = [[*place, *variables[place].shape] for place in of_trained]
    found = file.header(places, kernels, trained, header["arguments"])
    file.check_same(header, found, filepath)
    name = header["name"] if name is None else name
    adapters = _put_in(model, layers, parts, of_trained, header["arguments"], name)
    adapters._restore(state)
    return adapters


def merge_adapters(model: keras.Model) -> None:
    """Makes a model with adapters a plain one again, with the sums `W0 + U S V^T` as its kernels.

    In place. Its class, and what of it is trainable, are those from before `add_adapters`.

    Args:
        model: `keras.Model` that `add_adapters` has changed.

    Raises:
        ValueError: a model without adapters, or a base in int8 or int4.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6)])
    >>> added = add_adapters(model)
    >>> isinstance(model, LowRankModel)
    True
    >>> merge_adapters(model)
    >>> isinstance(model, LowRankModel)
    False
    """
    if HELD not in vars(model):
        raise ValueError(
            "`merge_adapters` needs the model that was given to `add_adapters`. "
            f"Received: a {type(model).__name__} without adapters"
        )
    vars(model)[HELD].merge()


def _refuse_twice(model: keras.Model) -> None:
    adapted = [one for one in keras_internals.all_layers(model) if isinstance(one, AdaptedLayer)]
    if adapted:
        raise ValueError(
            "A model has adapters once: `add` of them adds another set. "
            f"Received: adapters in {adapted[0].name!r} already"
        )


def _put_in(
    model: keras.Model,
    layers: dict[str, keras.layers.Layer],
    parts: dict[str, dict[str, Delta]],
    places: Iterable[Place],
    arguments: dict[str, Any],
    name: str,
) -> Adapters:
    """Changes a model and its layers; returns their `Adapters`."""
    place_of = {path: place for place, path in enumerate(adaptable_layers(model))}
    variables, made = learnable(model), keras_internals.made_to_train(model)
    # Low-rank layers that are there already are trained as a whole, or not.
    low_rank = [(one, True) for one in find_low_rank_layers(model).values() if one.trainable]
    switch, kernels = Switch(), set[int]()
    for path, layer in layers.items():
        family_of(layer).adapt(layer, parts[path], switch)
        kernels |= {id(vars(layer)[name]) for name in layer.kernels}
    trained = {p: variables[p] for p in places if id(variables[p]) not in kernels}
    learned = set(map(id, trained.values()))
    # Layers before variables: a layer gives all of its own one value.
    before = [(one, one.trainable) for one in with_idle_statistics(model, learned)]
    before += [*((variable, variable.trainable) for variable in made), *low_rank]
    for one, _ in before:
        one.trainable = False
    for variable in made:
        variable.trainable = id(variable) in learned
    become_low_rank(model, before=(AdaptedModel,))

    def undo() -> None:
        for one, was in before:
            one.trainable = was

    of_layers = [place_of[path] for path in layers]
    adapters = Adapters(model, layers, of_layers, trained, arguments, switch, undo, name)
    vars(model)[HELD] = adapters
    return adapters
