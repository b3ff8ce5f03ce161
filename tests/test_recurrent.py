"""LowRankLSTM, LowRankGRU and their cells against Keras's."""

from itertools import cycle, product

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
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
    FixedRank,
    LowRankGRU,
    LowRankGRUCell,
    LowRankLSTM,
    LowRankLSTMCell,
    LowRankModel,
    Parallel,
    RankAdaptive,
)
from keras_lowrank.factors import Factorization
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.layers import find_low_rank_layers
from keras_lowrank.substitution import Product, substitute


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


# The tangent gradient.

GRADIENT_CASES = {
    "last": {},
    "sequences, masked, backwards": {
        "mask": True, "return_sequences": True, "return_state": True, "go_backwards": True,
    },
    "by gate": {"stacked": False, "return_sequences": True},
    "unrolled": {"unroll": True},
    "dropout": {"dropout": 0.4, "seed": 3},
    "recurrent dropout": {"recurrent_dropout": 0.4, "seed": 3, "unroll": True},
    "reset before": {"reset_after": False, "unroll": True, "stacked": False},
}  # fmt: skip


# Every case once, by kinds and ways in turns; "reset before" is one of a GRU.
IN_TURNS = list(zip(cycle((GRU, LSTM)), GRADIENT_CASES, cycle((False, True, True))))


@pytest.mark.parametrize(
    "kind, case, traced",
    partly_slow(
        IN_TURNS,
        [
            one
            for one in product((LSTM, GRU), GRADIENT_CASES, (False, True))
            if one not in IN_TURNS and (one[0] is GRU or "reset" not in one[1])
        ],
    ),
)
def test_the_gradients_are_those_of_the_kernels(kind, case, traced):
    """Of every matrix in float64, and the gradients of inputs, states and bias."""
    options = {**RANDOM, **GRADIENT_CASES[case], "dtype": "float64"}
    mask = tf.constant(MASK) if options.pop("mask", False) else None
    low, plain = pair(kind, **options)
    rng = np.random.default_rng(7)
    # Ranks below the full ones, so that there is something outside of the bases.
    for layer in (*low.cell.kernels, *low.cell.recurrent_kernels):
        u, _, v = (np.asarray(f) for f in layer.factors.read())
        layer.factors.assign(Factorization(u[:, :2], np.diag([2.0, 1.0]), v[:, :2]))
    for name in ("kernel", "recurrent_kernel"):
        layers = getattr(low.cell, f"{name}s")
        getattr(plain.cell, name).assign(np.concatenate([one.kernel for one in layers], -1))
    x = tf.constant(rng.standard_normal(X.shape))
    states = [tf.constant(rng.standard_normal((BATCH, UNITS))) for _ in low.state_size]

    def loss_of(layer, x, states):
        outputs = tf.nest.flatten(layer(x, initial_state=states, mask=mask, training=True))
        slopes = tf.range(1.0, UNITS + 1.0, dtype=tf.float64)
        return tf.add_n([tf.reduce_sum(tf.sin(slopes * (i + y))) for i, y in enumerate(outputs)])

    sources = [plain.cell.kernel, plain.cell.recurrent_kernel, plain.cell.bias]
    expected = []
    for _ in range(2):  # with other masks of dropout
        with tf.GradientTape() as tape:
            tape.watch([x, states])
            loss = loss_of(plain, x, states)
        expected.append(tape.gradient(loss, [*(v.value for v in sources), x, states]))

    layers = [*low.cell.kernels, *low.cell.recurrent_kernels]
    counts = len(low.cell.kernels), len(low.cell.recurrent_kernels)
    factors = [one.factors for one in layers]
    bases = [
        [
            np.linalg.qr(np.hstack([basis, rng.standard_normal((len(basis), 1))]))[0]
            for basis in (one.U.numpy(), one.V.numpy())
        ]
        for one in layers
    ]
    starts = [l.T @ one.kernel.numpy() @ r for one, (l, r) in zip(layers, bases)]

    def run(x, states):
        with tf.GradientTape() as tape:
            tape.watch([x, states])
            loss = loss_of(low, x, states)
        wanted = [one.variables for one in factors]
        found, *others = tape.gradient(loss, [wanted, low.cell.bias.value, x, states])
        points = [one.read() for one in factors]
        tangents = [
            Chart(point, tf.linalg.diag_part(point.S)).tangent(gradient)
            for point, gradient in zip(points, found)
        ]
        # At augmented bases, which hold the same kernels.
        cores = [tf.constant(start) for start in starts]
        kernels = {
            one: Product(tf.constant(left), core, tf.constant(right), core=core)
            for one, core, (left, right) in zip(factors, cores, bases)
        }
        with substitute(kernels), tf.GradientTape() as tape:
            tape.watch(cores)
            loss = loss_of(low, x, states)
        return tangents, tape.gradient(loss, cores), others

    tangents, cores, others = (tf.function(run) if traced else run)(x, states)
    whole, again = (
        [part for G, count in zip(one, counts) for part in np.split(G.numpy(), count, axis=1)]
        for one in expected
    )
    for layer, G, (K, S, L) in zip(layers, whole, tangents, strict=True):
        U, _, V = (f.numpy() for f in layer.factors.read())
        np.testing.assert_allclose(K, G @ V, atol=1e-10)
        np.testing.assert_allclose(S, U.T @ G @ V, atol=1e-10)
        np.testing.assert_allclose(L, G.T @ U, atol=1e-10)
    for G, core, (left, right) in zip(again, cores, bases, strict=True):
        np.testing.assert_allclose(core, left.T @ G @ right, atol=1e-10)
    for one, other in zip(tf.nest.flatten(others), tf.nest.flatten(expected[0][2:])):
        np.testing.assert_allclose(one, other, atol=1e-10)


def both_ways(lstm, gru, model):
    """All that trains through a loop: a mask, a sequence in both directions, a last state."""
    inputs = keras.Input((STEPS, N))
    both = keras.layers.Bidirectional(lstm, merge_mode="sum")
    x = both(keras.layers.Masking()(inputs))
    model = model(inputs, keras.layers.Dense(2)(gru(x)))
    return model, [both.forward_layer, both.backward_layer, gru]


def one_way(gru, model):
    inputs = keras.Input((STEPS, UNITS))
    return model(inputs, keras.layers.Dense(2)(gru(inputs))), [gru]


@pytest.mark.parametrize("integrator", partly_slow([Parallel(1)], [RankAdaptive(1), FixedRank(1)]))
def test_at_full_rank_it_trains_as_keras_step_by_step(integrator):
    options = {
        "recurrent_regularizer": keras.regularizers.L2(0.01),
        "dropout": 0.3,
        "return_sequences": True,
        "seed": 1,
    }
    if isinstance(integrator, FixedRank):  # is plain descent for square matrices, each gate's here
        options.pop("return_sequences")
        layer = LowRankGRU(UNITS, rank=UNITS, stacked=False, **options)
        low, low_layers = one_way(layer, LowRankModel)
        full, full_layers = one_way(keras.layers.GRU(UNITS, **options), keras.Model)
    else:
        layers = LowRankLSTM(UNITS, rank=ranks(), **options), LowRankGRU(UNITS, rank=UNITS)
        low, low_layers = both_ways(*layers, LowRankModel)
        layers = keras.layers.LSTM(UNITS, **options), keras.layers.GRU(UNITS)
        full, full_layers = both_ways(*layers, keras.Model)
    pairs = [(one.cell, other.cell) for one, other in zip(low_layers, full_layers)]
    for cell, plain_cell in pairs:
        copy_kernels(cell, plain_cell)
    low.layers[-1].set_weights(full.layers[-1].get_weights())
    low.compile(keras.optimizers.SGD(0.3), "mse", integrator=integrator, truncation=0.0)
    full.compile(keras.optimizers.SGD(0.3), "mse")
    start = [np.asarray(cell.recurrent_kernel) for _, cell in pairs]
    for step in range(8):
        x, y = draw(BATCH, *low.input_shape[1:], seed=step), draw(BATCH, 2, seed=100 + step)
        x[0, 1] = x[1, 0] = x[2] = 0.0  # masked
        np.testing.assert_allclose(low.train_on_batch(x, y), full.train_on_batch(x, y), rtol=1e-5)
        for cell, plain_cell in pairs:
            for layers, kernel in (
                (cell.kernels, plain_cell.kernel),
                (cell.recurrent_kernels, plain_cell.recurrent_kernel),
            ):
                whole = np.concatenate([layer.kernel for layer in layers], axis=-1)
                np.testing.assert_allclose(whole, kernel, atol=1e-5)
            np.testing.assert_allclose(cell.bias, plain_cell.bias, atol=1e-5)
    moved = [np.abs(a - b.recurrent_kernel).max() for a, (_, b) in zip(start, pairs)]
    assert min(moved) > 1e-3


@pytest.mark.parametrize("case", partly_slow(["a cell"], ["reset before"]))
def test_a_step_is_the_same_in_a_loop_and_unrolled(case):
    inputs, models = keras.Input((STEPS, N)), []
    for unroll in (False, True):
        keras.utils.set_random_seed(0)
        if case == "a cell":
            layer = keras.layers.RNN(LowRankLSTMCell(UNITS, rank=2), unroll=unroll)
        else:
            layer = LowRankGRU(UNITS, rank=2, reset_after=False, unroll=unroll)
        models.append(LowRankModel(inputs, layer(inputs)))
        models[-1].compile("sgd", "mse", integrator=RankAdaptive(adapt_every=2))
        models[-1].fit(X, draw(BATCH, UNITS), batch_size=2, shuffle=False, verbose=0)
    one, other = models
    assert list(one.ranks.values()) == list(other.ranks.values())
    np.testing.assert_allclose(one(X), other(X), atol=1e-5)


@KINDS
def test_a_plain_model_trains_the_factors_by_their_own_gradients(kind):
    layer = kind[0](UNITS, rank=2, dtype="float64")
    layer.build(X.shape)
    x = tf.constant(X, tf.float64)
    variables = layer.trainable_variables
    evaluate = tf.function(lambda: tf.reduce_sum(tf.sin(layer(x))))
    with tf.GradientTape() as tape:
        loss = evaluate()
    gradients = tape.gradient(loss, [v.value for v in variables])
    rng = np.random.default_rng(3)
    for variable, gradient in zip(variables, gradients):
        value = variable.numpy()
        index = tuple(rng.integers(0, size) for size in value.shape)
        shift = np.zeros_like(value)
        shift[index] = 1e-5
        variable.assign(value + shift)
        above = float(evaluate())
        variable.assign(value - shift)
        below = float(evaluate())
        variable.assign(value)
        np.testing.assert_allclose(gradient.numpy()[index], (above - below) / 2e-5, atol=1e-8)


def test_mixed_precision_trains_with_factors_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = LowRankLSTM(UNITS, rank=2)
    inputs = keras.Input((STEPS, N))
    model = LowRankModel(inputs, layer(inputs))
    assert model.output.dtype == "bfloat16"
    model.compile("sgd", "mse", integrator="rank_adaptive")
    losses = model.fit(X, draw(BATCH, UNITS), epochs=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))
    assert {one.U.dtype for one in find_low_rank_layers(model).values()} == {"float32"}


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
        rank={"kernel": UNITS, "recurrent": 2},
        stacked=False,
        kernel_initializer=lambda shape, dtype=None: keras.ops.cast(whole, dtype),
    )
    layer.build(X.shape)
    found = np.concatenate([one.kernel for one in layer.cell.kernels], axis=-1)
    np.testing.assert_allclose(found, whole, atol=1e-5)
