"""How LowRankLSTM and LowRankGRU train, against Keras's layers."""

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
    LowRankLSTM,
    LowRankLSTMCell,
    LowRankModel,
    Parallel,
    RankAdaptive,
)
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.layers import find_low_rank_layers
from keras_lowrank.manifold.point import Point

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
        layer.factors.assign(Point(u[:, :2], np.diag([2.0, 1.0]), v[:, :2]))
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
            one: ProductKernel(tf.constant(left), core, tf.constant(right), core=core)
            for one, core, (left, right) in zip(factors, cores, bases)
        }
        with override_kernels(kernels), tf.GradientTape() as tape:
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
