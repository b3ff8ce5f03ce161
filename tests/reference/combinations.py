"""Layers with arguments, and the ways to wrap, build and call them."""

from typing import NamedTuple

import keras


class Case(NamedTuple):
    """A layer with arguments.

    Attributes:
        layer: str, the name of the Keras class; cells stand for a `keras.layers.RNN` of them.
        arguments: dict.
        shape: tuple, of one input, without the batch.
        rank: int, the full rank of its kernel.
        fixed: int or slice, the axes of an input that must be known.
        outputs: int, the number of outputs.
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
SEVERAL = 99  # the full rank of each of several kernels
FIRST = {"data_format": "channels_first", "fixed": 0}


def _cases(layer, shape, rank, *arguments):
    """Yields one case for each dict of arguments, which may include attributes of `Case`."""
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
    """One value of every axis.

    Attributes:
        case: `Case`.
        wrapper: str, the layer around it. `"Holder"` and `"Twice"` are custom layers.
        initializer: str, the initializer of its kernels.
        policy: str, the dtype policy of layer and wrapper as an argument; `"global_..."` sets the
            default, `"inner_..."` the layer only.
        data: str, the kind of inputs.
        way: str, how the layer or the model is built.
        file: str, the ending of the file that it is saved to, or None.
    """

    case: Case
    wrapper: str
    initializer: str
    policy: str
    data: str
    way: str
    file: str | None

    def __str__(self):
        """The values, joined; the case by its layer and number."""
        alike = [case for case in CASES if case.layer == self.case.layer]
        values = [f"{self.case.layer}{alike.index(self.case)}", *self[1:-1], self.file or "unsaved"]
        return "-".join(values)


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
