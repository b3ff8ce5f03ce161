"""Combinations to try: few enough, and every pair of two values is among them."""

import heapq
import itertools
import random

from reference.combinations import ATTENTION, AXES, GRAPHS, RECURRENT, Combination


def is_possible(combination):
    """Whether there is such a combination at all."""
    case, wrapper, initializer, policy, data, way, _ = combination
    composite = data in ("ragged", "sparse")
    one_input = wrapper in ("TimeDistributed", "Sequential") or way.startswith("sequential")
    return not (
        (one_input and max(case.inputs, case.outputs) > 1)
        or (wrapper == "Bidirectional" and case.layer not in RECURRENT)
        # A kernel with two axes.
        or (initializer == "Identity" and case.layer not in ("Dense", "Embedding", *RECURRENT))
        # Indices are integers, and the layer itself masks them.
        or (data in ("masked", "integers") and case.layer == "Embedding")
        or (data == "masked" and len(case.shape) < 2)
        or (not case.shape and (data == "ragged" or wrapper == "TimeDistributed"))
        or (data == "sparse" and case.layer in ("Dense", "Embedding") and len(case.shape) != 1)
        or (composite and wrapper not in ("alone", "Holder"))
        or (composite and way not in ("call", "build", "build_from_config", "from_config"))
        # Only models take their inputs by name, or in a list of one.
        or (data in ("list", "dict") and way not in GRAPHS)
        # There is no model to convert; see `KERAS_RAISES`.
        or (
            (initializer, policy, way) == ("default", "bfloat16", "from_keras")
            and case.layer in RECURRENT
        )
        # TensorFlow gives an empty batch the channels of the inputs where it convolves by oneDNN.
        or (data == "empty" and _is_convolution(case))
        # A function that XLA compiles is not recomputed.
        or (_is_recomputed_in_graph(combination) and case.arguments.get("padding") == "causal")
    )


def _is_recomputed_in_graph(combination):
    return combination.wrapper == "remat" and combination.data in ("open", "dataset")


def _is_convolution(case):
    return case.layer.startswith("Conv")


def dtype(combination):
    """The type that the layer computes in."""
    return combination.policy.split("_")[-1]


# Where Keras raises, on a CPU, and whether the low-rank layer raises with it.
KERAS_RAISES = {
    # TensorFlow recomputes what has arguments by name in eager mode alone.
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
    # Keras multiplies with integers and does not convolve with them.
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

# What the package refuses by name, and what it says.
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
    "what only its code says": (
        lambda c: c.way == "from_keras" and c.wrapper in ("Holder", "Twice"),
        r"Only its code says how a (Holder|Twice) uses .*`keras_lowrank.convert_layer`",
    ),
    "cells": (
        lambda c: c.way == "from_keras" and c.case.layer.endswith("Cell"),
        "needs a layer to convert .*Received: ",
    ),
}


def is_meaningful(combination):
    """Whether it is to be the same with Keras and here."""
    return is_possible(combination) and not any(
        condition(combination) for condition, _ in (*KERAS_RAISES.values(), *REFUSED.values())
    )


def is_only(name):
    """A function of a combination: whether it is in the tables by this name and by no other."""

    def holds(combination):
        conditions = {**KERAS_RAISES, **REFUSED}
        names = [key for key, (condition, _) in conditions.items() if condition(combination)]
        return is_possible(combination) and names == [name]

    return holds


def pairs(combination):
    """The pairs of values of two axes in it, the cases of a layer as one; and each with bits."""
    values = list(enumerate([combination.case.layer, *combination[1:]]))
    return {(str(combination.case), dtype(combination)[-2:]), *itertools.combinations(values, 2)}


def drawn(rng, count, fits=is_meaningful, **fixed):
    """That many combinations that fit, independent of each other but for what is fixed."""
    found = []
    while len(found) < count:
        one = Combination(*map(rng.choice, AXES))._replace(**fixed)
        if fits(one):
            found.append(one)
    return found


def covering(seed, each=60):
    """Meaningful combinations in which every pair occurs that does in a large sample of them.

    Greedy: the next one has the most pairs that have not occurred.

    Args:
        seed: int.
        each: int, how many with every value of every axis are in the sample.
    """
    rng = random.Random(seed)
    sample = [
        one
        for name, axis in zip(Combination._fields, AXES)
        for value in axis
        for one in drawn(rng, each, **{name: value})
    ]
    contents = list(map(pairs, sample))
    missing = set().union(*contents)
    chosen = {}
    # Gains only fall: one that is still the largest after it was counted anew is the largest.
    gains = [(-len(one), index) for index, one in enumerate(contents)]
    heapq.heapify(gains)
    while missing:
        _, index = heapq.heappop(gains)
        gain = len(contents[index] & missing)
        if -gain <= gains[0][0]:
            chosen[str(sample[index])] = sample[index]
            missing -= contents[index]
        else:
            heapq.heappush(gains, (-gain, index))
    return list(chosen.values())
