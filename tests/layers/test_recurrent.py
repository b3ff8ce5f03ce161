"""LowRankLSTM, LowRankGRU and their cells against Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.recurrent import (
    BATCH,
    GRU,
    KINDS,
    LSTM,
    MASK,
    RANDOM,
    STEPS,
    UNITS,
    N,
    X,
    copy_kernels,
    draw,
    pair,
    ranks,
)

from keras_lowrank import (
    LowRankGRUCell,
    LowRankLSTM,
    LowRankLSTMCell,
    LowRankModel,
    Parallel,
)


@KINDS
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "by gate"])
def test_recurrent_basics(kind, stacked):
    low, plain = kind
    layer = low(UNITS, rank=2, stacked=stacked)
    assert layer(X).shape == plain(UNITS)(X).shape == (BATCH, UNITS)
    gates = 4 if kind is LSTM else 3
    width = gates * UNITS if stacked else UNITS
    matrices = [(N, 2), (2, 2), (width, 2)], [(UNITS, 2), (2, 2), (width, 2)]
    count = 1 if stacked else gates
    shapes = [shape for matrix in matrices for _ in range(count) for shape in matrix]
    bias = (4 * UNITS,) if kind is LSTM else (2, 3 * UNITS)
    assert sorted(tuple(v.shape) for v in layer.trainable_weights) == sorted([*shapes, bias])
    name = "lstm" if kind is LSTM else "gru"
    inputs = keras.Input((STEPS, N))
    model = LowRankModel(inputs, layer(inputs))
    stem = f"low_rank_{name}/{name}_cell/"
    if stacked:
        assert set(model.ranks) == {stem + "kernel", stem + "recurrent_kernel"}
    else:
        letters = "ifco" if kind is LSTM else "zrh"
        names = [f"{stem}{matrix}_{gate}" for matrix in ("kernel", "recurrent_kernel")
                 for gate in letters]  # fmt: skip
        assert list(model.ranks) == names
    if not stacked or kind is GRU:  # a trace takes seconds
        return
    optimizer, integrator = keras.optimizers.SGD(0.1), Parallel(adapt_every=1)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.0)
    losses = model.fit(X, draw(BATCH, UNITS), epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]
    assert max(model.ranks.values()) > 2


# Equal to Keras.

CASES = {
    "default": {},
    "by gate": {"stacked": False},
    "bias of ones": {"bias_initializer": "ones", "unit_forget_bias": True},
    "no bias": {"use_bias": False},
    "activations": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    "sequences": {"return_sequences": True, "return_state": True},
    "backwards": {"go_backwards": True, "return_sequences": True},
    "unrolled": {"unroll": True, "return_state": True},
    "mask": {"mask": True, "return_sequences": True, "go_backwards": True},
    "mask, zeros": {"mask": True, "return_sequences": True, "zero_output_for_mask": True},
    "mask, unrolled": {"mask": True, "unroll": True},
    "dropout": {"dropout": 0.4, "seed": 3},
    "dropout by gate": {
        "dropout": 0.4,
        "seed": 3,
        "implementation": 1,
        "stacked": False,
        "use_cudnn": False,
    },
    "recurrent dropout": {"recurrent_dropout": 0.4, "dropout": 0.3, "seed": 3},
    "recurrent dropout by gate": {"recurrent_dropout": 0.4, "seed": 3, "stacked": False},
    "float64": {"dtype": "float64"},
    "mixed": {"dtype": "mixed_bfloat16"},
}
GRU_CASES = {
    "reset before": {"reset_after": False, "return_sequences": True},
    "reset before, by gate": {"reset_after": False, "stacked": False},
    "reset before, dropout": {"reset_after": False, "recurrent_dropout": 0.4, "seed": 3},
    "reset before, no bias": {"reset_after": False, "use_bias": False},
}


@pytest.mark.parametrize(
    "kind, case",
    [(LSTM, case) for case in CASES] + [(GRU, case) for case in [*CASES, *GRU_CASES]],
    ids=[f"lstm {case}" for case in CASES] + [f"gru {case}" for case in [*CASES, *GRU_CASES]],
)
def test_forward_equals_keras(kind, case):
    options = {**RANDOM, **{**CASES, **GRU_CASES}[case]}
    call = {"training": True}
    if options.pop("mask", False):
        call["mask"] = tf.constant(MASK)
    low, plain = pair(kind, **options)
    atol = 0.05 if "mixed" in case else 1e-5
    states = [draw(BATCH, UNITS, seed=seed) for seed in ((1, 2) if kind is LSTM else (1,))]
    for more in ({}, {"initial_state": [tf.constant(s) for s in states]}):
        found, expected = low(X, **call, **more), plain(X, **call, **more)
        for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape
            one, other = (tf.cast(y, tf.float64) for y in (one, other))
            np.testing.assert_allclose(one, other, atol=atol)
    assert low.compute_output_shape(X.shape) == plain.compute_output_shape(X.shape)


@KINDS
def test_stateful_layers_go_on_where_they_were(kind):
    low, plain = pair(kind, stateful=True)
    first = np.asarray(low(X))
    for _ in range(2):
        plain(X)
    np.testing.assert_allclose(low(X), plain.states[0], atol=1e-5)
    low.reset_state()
    np.testing.assert_allclose(low(X), first, atol=1e-6)


@KINDS
def test_cells_work_in_the_layers_that_keras_has_for_cells(kind):
    low_cell, plain_cell = (
        (LowRankLSTMCell, keras.layers.LSTMCell)
        if kind is LSTM
        else (LowRankGRUCell, keras.layers.GRUCell)
    )
    cells = [low_cell(UNITS, rank=ranks(), dropout=0.2, seed=1) for _ in range(2)]
    plain_cells = [plain_cell(UNITS, dropout=0.2, seed=1) for _ in range(2)]
    cells[1], plain_cells[1] = low_cell(UNITS, rank=UNITS), plain_cell(UNITS)
    low, plain = keras.layers.RNN(cells), keras.layers.RNN(plain_cells)
    low.build(X.shape)
    plain.build(X.shape)
    for one, other in zip(cells, plain_cells):
        copy_kernels(one, other)
    np.testing.assert_allclose(low(X, training=True), plain(X, training=True), atol=1e-5)
    again = keras.layers.RNN.from_config(low.get_config())
    assert again.get_config() == low.get_config()
    # A lone step; a state comes back in the form in which it was given, as in Keras.
    states = [draw(BATCH, UNITS)] * (2 if kind is LSTM else 1)
    for form in (states, states[0]) if kind is GRU else (states,):
        one, other = (cell(X[:, 0], form) for cell in (cells[0], plain_cells[0]))
        tf.nest.assert_same_structure(one, other)
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other)):
            np.testing.assert_allclose(a, b, atol=1e-5)


# Where it starts from.


@KINDS
def test_gates_start_with_the_energy_of_their_columns_in_keras(kind):
    low, plain = kind
    for stacked in (True, False):
        layer = low(30, rank=8, stacked=stacked)
        layer.build((None, None, 20))
        other = plain(30)
        other.build((None, None, 20))
        for layers, kernel in (
            (layer.cell.kernels, other.cell.kernel),
            (layer.cell.recurrent_kernels, other.cell.recurrent_kernel),
        ):
            energy = sum(np.sum(np.square(one.kernel)) for one in layers)
            np.testing.assert_allclose(energy, np.sum(np.square(kernel)), rtol=0.1)


def test_a_definite_initializer_means_its_columns():
    whole = draw(N, 4 * UNITS)
    layer = LowRankLSTM(
        UNITS,
        rank={"kernel": UNITS, "recurrent_kernel": 2},
        stacked=False,
        kernel_initializer=lambda shape, dtype=None: keras.ops.cast(whole, dtype),
    )
    layer.build(X.shape)
    found = np.concatenate([one.kernel for one in layer.cell.kernels], axis=-1)
    np.testing.assert_allclose(found, whole, atol=1e-5)
