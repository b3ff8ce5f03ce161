"""Few combinations, in which every pair of values of two axes occurs."""

import heapq
import itertools
import random

from reference.combinations import ATTENTION, AXES, GRAPHS, RECURRENT, Combination


def is_possible(combination):
    """Whether such a combination exists."""
    case, wrapper, initializer, policy, data, way, _ = combination
    composite = data in ("ragged", "sparse")
    one_input = wrapper in ("TimeDistributed", "Sequential") or way.startswith("sequential")
    return not (
        (one_input and max(case.inputs, case.outputs) > 1)
        or (wrapper == "Bidirectional" and case.layer not in RECURRENT)
        # Identity needs a kernel with two axes.
        or (initializer == "Identity" and case.layer not in ("Dense", "Embedding", *RECURRENT))
        # An embedding masks its indices itself.
        or (data in ("masked", "integers") and case.layer == "Embedding")
        or (data == "masked" and len(case.shape) < 2)
        or (not case.shape and (data == "ragged" or wrapper == "TimeDistributed"))
        or (data == "sparse" and case.layer in ("Dense", "Embedding") and len(case.shape) != 1)
        or (composite and wrapper not in ("alone", "Holder"))
        or (composite and way not in ("call", "build", "build_from_config", "from_config"))
        # Only models take inputs by name, or a list of one input.
        or (data in ("list", "dict") and way not in GRAPHS)
        # Keras cannot make the model to convert; see `KERAS_RAISES`.
        or (
            (initializer, policy, way) == ("default", "bfloat16", "from_keras")
            and case.layer in RECURRENT
        )
        # oneDNN gives the outputs of an empty batch the channels of the inputs.
        or (data == "empty" and _is_convolution(case))
        # TensorFlow does not recompute functions that XLA compiles.
        or (_is_recomputed_in_graph(combination) and case.arguments.get("padding") == "causal")
    )


def _is_recomputed_in_graph(combination):
    return combination.wrapper == "remat" and combination.data in ("open", "dataset")


def _is_convolution(case):
    return case.layer.startswith("Conv")


def dtype(combination):
    """The dtype that the layer computes in."""
    return combination.policy.split("_")[-1]


# Where Keras raises on a CPU, and whether the low-rank layer raises too.
KERAS_RAISES = {
    # In graphs TensorFlow cannot recompute calls with keyword arguments.
    "recomputed in a graph": (
        lambda c: (
            _is_recomputed_in_graph(c)
            and (
                c.case.layer in (*RECURRENT, *ATTENTION)
                or c.way.startswith("sequential")
                or c.way in GRAPHS
            )
        ),
        True,
    ),
    "empty sequences": (
        lambda c: c.data == "empty" and c.case.layer.startswith("LSTM"),
        False,
    ),
    "channels first": (
        lambda c: (
            c.case.arguments.get("data_format") == "channels_first"
            and c.case.layer != "Conv3D"
            and dtype(c) in ("float64", "float16")
        ),
        False,
    ),
    "dilated transpose": (
        lambda c: (
            c.case.layer == "Conv2DTranspose"
            and "dilation_rate" in c.case.arguments
            and dtype(c) in ("float64", "float16")
        ),
        True,
    ),
    # Keras multiplies integers, but does not convolve them.
    "integers": (lambda c: c.data == "integers" and _is_convolution(c.case), False),
    "dropout of integers": (
        lambda c: (
            c.data == "integers" and c.case.layer in RECURRENT and "dropout" in c.case.arguments
        ),
        True,
    ),
    "unrolled without an end": (
        lambda c: c.data == "open" and c.case.layer in RECURRENT and "unroll" in c.case.arguments,
        True,
    ),
    "no loop over its time": (
        lambda c: c.data in ("ragged", "sparse") and c.case.layer.endswith("Cell"),
        True,
    ),
    "mask over two axes of attention": (
        lambda c: c.data == "masked" and c.case.arguments.get("attention_axes") == (1, 2),
        True,
    ),
    "mask of a sparse tensor": (
        lambda c: c.data == "sparse" and "mask_zero" in c.case.arguments,
        True,
    ),
    "initializer without a config": (
        lambda c: c.initializer == "function" and c.case.layer in ATTENTION,
        True,
    ),
    "backwards both ways": (
        lambda c: c.wrapper == "Bidirectional" and "go_backwards" in c.case.arguments,
        True,
    ),
    # There is no QR in bfloat16; factors are made in float32.
    "orthogonal in bfloat16": (
        lambda c: (
            c.initializer == "default"
            and c.policy == "bfloat16"
            and c.case.layer in RECURRENT
            and c.way != "from_keras"
        ),
        False,
    ),
}

# What the package refuses, and the error.
REFUSED = {
    "composite tensors": (
        lambda c: (
            c.data in ("ragged", "sparse")
            and c.case.layer != "Embedding"
            and not c.case.layer.endswith("Cell")
            and (c.data, c.case.layer) != ("sparse", "Dense")
        ),
        "takes no (ragged|sparse) tensor here. Make it dense",
    ),
    "cells": (
        lambda c: c.way == "from_keras" and c.case.layer.endswith("Cell"),
        "needs a layer to convert .*Received: ",
    ),
}


def is_meaningful(combination):
    """Whether Keras's layer and the low-rank one must agree."""
    return is_possible(combination) and not any(
        condition(combination) for condition, _ in (*KERAS_RAISES.values(), *REFUSED.values())
    )


def is_only(name):
    """Returns a function: whether a combination is in the tables only by this name."""

    def holds(combination):
        conditions = {**KERAS_RAISES, **REFUSED}
        names = [key for key, (condition, _) in conditions.items() if condition(combination)]
        return is_possible(combination) and names == [name]

    return holds


def pairs(combination):
    """Returns the pairs of values of two axes, with the layer's name for its case; and the case.

    TensorFlow has other products and convolutions for each dtype, so the case of a layer with one
    kernel is paired with its dtype.
    """
    case, *others = combination
    values = [(axis, value) for axis, value in enumerate([case.layer, *others]) if value]
    several = case.layer in (*RECURRENT, *ATTENTION)
    of_case = (str(case), None if several else dtype(combination))
    return {of_case, *itertools.combinations(values, 2)}


def drawn(rng, count, fits=is_meaningful, **fixed):
    """Draws `count` independent combinations that fit, with some values fixed."""
    found = []
    while len(found) < count:
        one = Combination(*map(rng.choice, AXES))._replace(**fixed)
        if fits(one):
            found.append(one)
    return found


def covering(seed, each=60):
    """Returns meaningful combinations with every pair of values that a large sample has.

    Combinations that are not needed for the pairs with a file are not saved.

    Args:
        seed: int.
        each: int, the number of combinations in the sample with every value of every axis.
    """
    rng = random.Random(seed)
    sample = [
        one
        for name, axis in zip(Combination._fields, AXES)
        for value in axis
        for one in drawn(rng, each, **{name: value})
    ]
    chosen = _cover(sample, pairs)
    saved = _cover(chosen, lambda one: pairs(one) - pairs(one._replace(file=None)))
    return saved + [one._replace(file=None) for one in chosen if one not in saved]


def _cover(combinations, contents_of):
    """Chooses combinations whose sets `contents_of(combination)` have the union of all sets.

    Greedy: the next one has the most new elements.
    """
    contents = list(map(contents_of, combinations))
    missing = set().union(*contents)
    chosen = []
    # Gains only fall, so a gain that is still the largest after a recount is the largest.
    gains = [(-len(one), index) for index, one in enumerate(contents)]
    heapq.heapify(gains)
    while missing:
        _, index = heapq.heappop(gains)
        gain = len(contents[index] & missing)
        if not gains or -gain <= gains[0][0]:
            chosen.append(combinations[index])
            missing -= contents[index]
        else:
            heapq.heappush(gains, (-gain, index))
    return chosen
