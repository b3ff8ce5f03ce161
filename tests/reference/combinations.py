"""Combinations of a layer and the ways to use it, few enough to try and with every pair of two."""

import heapq
import itertools
import random
from typing import NamedTuple

import keras


class Case(NamedTuple):
    """A layer with arguments.

    Attributes:
        layer: str, the name of the Keras class; cells stand for a `keras.layers.RNN` of them.
        arguments: dict.
        shape: tuple, of one input, without the batch.
        rank: int, the full rank of its kernel.
        fixed: int, the axis of an input that must be known.
        outputs: int, how many there are.
    """

    layer: str
    arguments: dict
    shape: tuple
    rank: int
    fixed: int = -1
    outputs: int = 1

    @property
    def inputs(self):
        return 2 if self.layer in ATTENTION else 1


ATTENTION = ("MultiHeadAttention", "GroupQueryAttention")
RECURRENT = ("LSTM", "GRU", "LSTMCell", "GRUCell")
SEQUENCE = (4, 5)
SEVERAL = 99  # several kernels under one rank: as much as each can have
FIRST = {"data_format": "channels_first", "fixed": 0}


def _cases(layer, shape, rank, *arguments):
    """Cases that differ in arguments; an argument by the name of an attribute is that one."""
    for one in arguments:
        own = {"shape": shape, "rank": rank} | {k: v for k, v in one.items() if k in Case._fields}
        yield Case(layer, {k: v for k, v in one.items() if k not in Case._fields}, **own)


CASES = [
    *_cases(
        "Dense",
        (5,),
        4,
        {"units": 4},
        {"units": 4, "activation": "relu", "use_bias": False, "shape": (3, 5)},
        {"units": 4, "activation": "softmax", "bias_initializer": "ones", "shape": (2, 3, 5)},
        {"units": 5, "kernel_regularizer": "l2", "rank": 5, "shape": (1, 5)},
    ),
    *_cases(
        "EinsumDense",
        SEQUENCE,
        4,
        {
            "equation": "abc,cd->abd",
            "output_shape": (None, 4),
            "bias_axes": "d",
            "activity_regularizer": "l2",
        },
        {"equation": "...x,xy->...y", "output_shape": 4, "activation": "tanh"},
        {"equation": "abc,cde->abde", "output_shape": (None, 2, 2), "bias_axes": "de"},
        {
            "equation": "abcd,cde->abe",
            "output_shape": (None, 4),
            "bias_axes": "e",
            "shape": (4, 2, 5),
            "fixed": slice(1, None),
        },
        {"equation": "abc,bd->acd", "output_shape": (None, 4), "fixed": 0, "rank": 4},
    ),
    *_cases(
        "Conv1D",
        (6, 3),
        4,
        {"filters": 4, "kernel_size": 2},
        {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        {"filters": 4, "kernel_size": 3, "padding": "same", "strides": 2, "activation": "relu"},
        {"filters": 4, "kernel_size": 2, "use_bias": False, "shape": (3, 6), **FIRST},
    ),
    *_cases(
        "Conv2D",
        (5, 6, 3),
        4,
        {"filters": 4, "kernel_size": 2, "activation": "gelu"},
        {"filters": 4, "kernel_size": (3, 2), "strides": (2, 1), "padding": "same"},
        {"filters": 4, "kernel_size": (1, 3), "dilation_rate": 2, "use_bias": False, "rank": 4},
        {"filters": 4, "kernel_size": 3, "padding": "same", "shape": (3, 5, 6), **FIRST},
        {"filters": 4, "kernel_size": 3, "padding": "same", "dilation_rate": (2, 1)},
    ),
    *_cases(
        "Conv3D",
        (3, 4, 5, 2),
        4,
        {"filters": 4, "kernel_size": 2},
        {"filters": 4, "kernel_size": (1, 2, 3), "padding": "same", "strides": (1, 2, 1)},
        {"filters": 4, "kernel_size": 2, "dilation_rate": (1, 2, 1), "use_bias": False},
        {"filters": 4, "kernel_size": 2, "shape": (2, 3, 4, 5), **FIRST},
    ),
    *_cases(
        "Conv2DTranspose",
        (3, 4, 3),
        4,
        {"filters": 4, "kernel_size": 2, "activation": "relu"},
        {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1},
        {"filters": 4, "kernel_size": (3, 2), "strides": (1, 2), "use_bias": False},
        {"filters": 4, "kernel_size": 3, "strides": 2, "shape": (3, 3, 4), **FIRST},
        {"filters": 4, "kernel_size": 2, "dilation_rate": 2, "padding": "same"},
    ),
    *_cases(
        "Embedding",
        (4,),
        5,
        {"input_dim": 9, "output_dim": 5, "fixed": slice(0)},
        {"input_dim": 9, "output_dim": 5, "mask_zero": True, "fixed": slice(0)},
        {"input_dim": 9, "output_dim": 5, "mask_zero": True, "shape": (3, 2), "fixed": slice(0)},
        {"input_dim": 9, "output_dim": 5, "shape": (), "fixed": slice(0)},
    ),
    *(
        case
        for layer in ("LSTM", "GRU")
        for case in _cases(
            layer,
            SEQUENCE,
            SEVERAL,
            {"units": 3},
            {"units": 3, "return_sequences": True, "activation": "relu", "use_bias": False},
            {"units": 3, "go_backwards": True, "return_sequences": True},
            {"units": 3, "return_state": True, "outputs": 3 if layer == "LSTM" else 2},
            {
                "units": 3,
                "return_sequences": True,
                "return_state": True,
                "zero_output_for_mask": True,
                "outputs": 3 if layer == "LSTM" else 2,
            },
            {"units": 3, "unroll": True, "recurrent_activation": "hard_sigmoid", "dropout": 0.5},
            {"units": 3, "unit_forget_bias": False, "recurrent_regularizer": "l2"}
            if layer == "LSTM"
            else {"units": 3, "reset_after": False, "return_sequences": True},
        )
    ),
    *(
        case
        for layer in ("LSTMCell", "GRUCell")
        for case in _cases(
            layer,
            SEQUENCE,
            SEVERAL,
            {"units": 3},
            {"units": 3, "use_bias": False, "return_sequences": True},
            {"units": 3, "activation": "relu", "go_backwards": True},
            {"units": 3, "return_state": True, "outputs": 3 if layer == "LSTMCell" else 2},
            {"units": 3, "bias_initializer": "ones", "unroll": True},
        )
    ),
    *_cases(
        "MultiHeadAttention",
        SEQUENCE,
        SEVERAL,
        {"num_heads": 2, "key_dim": 3},
        {"num_heads": 2, "key_dim": 2, "value_dim": 3, "use_bias": False, "output_shape": 4},
        {"num_heads": 1, "key_dim": 3, "attention_axes": 1, "dropout": 0.5},
        {"num_heads": 2, "key_dim": 2, "shape": (3, *SEQUENCE), "attention_axes": (1, 2)},
    ),
    *_cases(
        "GroupQueryAttention",
        SEQUENCE,
        SEVERAL,
        {"head_dim": 3, "num_query_heads": 2, "num_key_value_heads": 1},
        {"head_dim": 2, "num_query_heads": 4, "num_key_value_heads": 2, "use_bias": False},
        {"head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 2, "dropout": 0.5},
    ),
]
LAYERS = list(dict.fromkeys(case.layer for case in CASES))


class Combination(NamedTuple):
    """One value of every axis."""

    case: Case
    wrapper: str
    initializer: str
    policy: str
    data: str
    way: str
    file: str

    def __str__(self):
        """The values, and the number of the case among those of its layer."""
        alike = [case for case in CASES if case.layer == self.case.layer]
        return "-".join([f"{self.case.layer}{alike.index(self.case)}", *self[1:]])


REMAT = ["remat"] if hasattr(keras, "RematScope") else []
WRAPPERS = ["alone", "TimeDistributed", "Bidirectional", "Sequential", "Holder", "Twice", *REMAT]
INITIALIZERS = ["default", "he_normal", "ones", "Constant", "RandomUniform", "Identity", "function"]
POLICIES = [
    "float32",
    "float64",
    "mixed_float16",
    "mixed_bfloat16",
    "bfloat16",
    "inner_mixed_float16",
    "global_mixed_float16",
    "global_float64",
]
DATA = [
    "tensor",
    "numpy",
    "float64",
    "integers",
    "open",
    "masked",
    "dataset",
    "list",
    "dict",
    "empty",
    "one",
    "ragged",
    "sparse",
]
WAYS = [
    "call",
    "build",
    "build_from_config",
    "from_config",
    "sequential",
    "sequential_with_input",
    "functional",
    "clone",
    "from_keras",
]
FILES = ["keras", "weights.h5"]
AXES = [CASES, WRAPPERS, INITIALIZERS, POLICIES, DATA, WAYS, FILES]
GRAPHS = ("functional", "clone", "from_keras")


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
        # Keras gives a wrong shape.
        or (_is_empty_convolution(combination) and not _raises_when_empty(case))
        or (data == "empty" and "data_format" in case.arguments)
        # A function that XLA compiles is not recomputed.
        or (_is_recomputed_in_graph(combination) and case.arguments.get("padding") == "causal")
    )


def _is_empty_convolution(combination):
    """TensorFlow gives the channels of the inputs to an empty batch that it convolves so."""
    return (
        combination.data == "empty"
        and combination.case.layer in ("Conv1D", "Conv2D", "Conv3D")
        and combination.policy in ("float32", "bfloat16", "mixed_bfloat16")
    )


def _raises_when_empty(case):
    """Whether something is added to an empty convolution, along another axis."""
    arguments = case.arguments
    return arguments.get("use_bias", True) and (case.layer, "data_format") not in [
        ("Conv3D", one) for one in arguments
    ]


def _is_recomputed_in_graph(combination):
    return combination.wrapper == "remat" and combination.data in ("open", "dataset")


def _is_convolution(case):
    return case.layer.startswith("Conv")


# Where Keras raises on a CPU, as a rule from TensorFlow, and whether the low-rank layer does.
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
    "empty convolution": (
        lambda c: _is_empty_convolution(c) and _raises_when_empty(c.case),
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
            and c.data != "empty"
            and c.policy.endswith(("float64", "float16"))
            and not c.policy.endswith("bfloat16")
        ),
        False,
    ),
    "dilated transpose": (
        lambda c: (
            c.case.layer == "Conv2DTranspose"
            and "dilation_rate" in c.case.arguments
            and c.policy.endswith(("float64", "float16"))
            and not c.policy.endswith("bfloat16")
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
        lambda c: (
            c.data == "open" and c.case.layer in RECURRENT and "unroll" in c.case.arguments
        ),
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
        r"What a (Holder|Twice) does .* only its code says; .*`keras_lowrank.convert_layer`",
    ),
    "cells": (
        lambda c: c.way == "from_keras" and c.case.layer.endswith("Cell"),
        "needs a layer to convert, .*Received: ",
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
    """The pairs of values of two axes in it, the cases of a layer as one; and a case with its bits.

    Those are what the type has that is computed in.
    """
    values = list(enumerate([combination.case.layer, *combination[1:]]))
    return {(str(combination.case), combination.policy[-2:]), *itertools.combinations(values, 2)}


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
