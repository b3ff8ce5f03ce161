"""LowRankLSTM and LowRankGRU: configs, files, conversion and errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.recurrent import GRU, KINDS, LSTM, MASK, RANDOM, STEPS, UNITS, N, X, draw

from keras_lowrank import (
    LowRankGRU,
    LowRankLSTM,
    LowRankModel,
    Tolerance,
    to_keras,
)
from keras_lowrank.layers import find_low_rank_layers
from keras_lowrank.manifold.point import Point


@KINDS
def test_config_round_trip_keeps_every_argument(kind):
    low, _ = kind
    layer = low(
        UNITS,
        activation="relu",
        recurrent_activation="hard_sigmoid",
        rank={"kernel": 3, "recurrent_kernel": 2},
        min_rank=2,
        max_rank={"recurrent_kernel": 3},
        truncation={"kernel": 0.2, "recurrent_kernel": Tolerance(0.1, relative=False)},
        stacked=False,
        kernel_regularizer=keras.regularizers.L2(0.25),
        recurrent_initializer=keras.initializers.HeNormal(seed=3),
        bias_constraint="non_neg",
        dropout=0.1,
        recurrent_dropout=0.2,
        seed=4,
        return_sequences=True,
        zero_output_for_mask=True,
        trainable=False,
        dtype="mixed_bfloat16",
        name="mine",
    )
    config = layer.get_config()
    again = low.from_config(config)
    assert again.get_config() == config
    kernel, recurrent = again.cell.kernels[0], again.cell.recurrent_kernels[0]
    assert (kernel.rank, kernel.min_rank, kernel.max_rank) == (3, 2, None)
    assert (recurrent.rank, recurrent.min_rank, recurrent.max_rank) == (2, 2, 3)
    assert (kernel.truncation.tolerance, recurrent.truncation.relative) == (0.2, False)
    assert kernel.kernel_regularizer.l2 == 0.25 and recurrent.kernel_regularizer is None
    assert again.recurrent_initializer.seed == 3 and again.cell.seed == 4
    again.build(X.shape)
    gates = again.cell.gates
    ranks = {f"kernel_{gate}": 3 for gate in gates} | {f"recurrent_kernel_{g}": 2 for g in gates}
    assert again.rank == again.cell.rank == ranks and again.get_config() == config
    assert not again.trainable_weights and not kernel.trainable
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config
    cell = type(layer.cell).from_config(layer.cell.get_config())
    assert cell.get_config() == layer.cell.get_config()


def small(rank=2, **options):
    inputs = keras.Input((STEPS, N))
    lstm = LowRankLSTM(UNITS, rank=rank, return_sequences=True, **options)
    x = keras.layers.Bidirectional(lstm, name="both")(inputs)
    x = LowRankGRU(UNITS, rank=rank, stacked=False, name="gru", **options)(x)
    return LowRankModel(inputs, keras.layers.Dense(2)(x))


def test_files_keep_the_ranks_and_agree(tmp_path):
    model = small()
    for layer in find_low_rank_layers(model).values():
        layer.factors.assign(
            Point(*(draw(size, 3) for size in (layer.factors.n, 3, layer.factors.m)))
        )
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.ranks == model.ranks
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    other = small(rank=1)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(X, verbose=0), expected)
    third = small(rank=1)
    third.get_layer("gru").set_weights(model.get_layer("gru").get_weights())
    assert list(third.ranks.values())[4:] == list(model.ranks.values())[4:]


def test_a_saved_model_agrees_on_any_batch_and_length(tmp_path):
    inputs = keras.Input((None, N))
    x = LowRankLSTM(UNITS, rank=1, return_sequences=True)(inputs)
    model = LowRankModel(inputs, LowRankGRU(UNITS, rank=3)(x))
    model.export(tmp_path / "1", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "1"))  # held: it owns the variables
    for x in (X, draw(2, 9, N)):
        np.testing.assert_allclose(loaded.serve(tf.constant(x)), model(x), atol=1e-5)


def test_litert_runs_an_unrolled_layer_as_it_does_keras(tmp_path):
    model = small(unroll=True)
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    run = tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    (name,) = run.get_input_details()
    (outputs,) = run(**{name: X}).values()
    np.testing.assert_allclose(outputs, model.predict(X, verbose=0), atol=1e-5)
    # A loop with a free batch size has no builtin operation, in a file of Keras's layer either.
    inputs = keras.Input((STEPS, N))
    for layer in (LowRankLSTM(UNITS, rank=2), keras.layers.LSTM(UNITS)):
        looped = LowRankModel(inputs, layer(inputs))
        with pytest.raises(ValueError, match="LiteRT must have a builtin operation"):
            looped.export(tmp_path / "looped.tflite", format="litert", verbose=False)


def test_to_keras_merges_the_kernels():
    inputs = keras.Input((STEPS, N))
    x = LowRankLSTM(UNITS, rank=2, return_sequences=True, **RANDOM, name="lstm")(inputs)
    model = LowRankModel(inputs, LowRankGRU(UNITS, rank=2, stacked=False, use_bias=False)(x))
    for style in ("smaller", "factored", "merged"):
        plain = to_keras(model, style)
        kinds = [type(layer) for layer in plain.layers[1:]]
        assert kinds == [keras.layers.LSTM, keras.layers.GRU]
        assert plain.layers[1].weights[0].path == "lstm/lstm_cell/kernel"
        np.testing.assert_allclose(plain(X), model(X), atol=1e-5)


@pytest.mark.parametrize(
    "kind, which, dtype, stacked",
    partly_slow(
        [(LSTM, "kernel", "mixed_float16", True), (GRU, "recurrent_kernel", "mixed_float16", True)],
        [(LSTM, "recurrent_kernel", "float32", False), (GRU, "kernel", "float32", False)],
    ),
)
def test_a_kernel_without_a_rank_is_plain(kind, which, dtype, stacked):
    low = kind[0](UNITS, rank={which: 2}, stacked=stacked, dtype=dtype, return_sequences=True)
    inputs = keras.Input(X.shape[1:])
    model = LowRankModel(inputs, low(inputs, mask=tf.constant(MASK)))
    assert len(model.ranks) == (1 if stacked else len(low.cell.gates))
    assert all(f"/{which}" in path for path in model.ranks)
    plain = kind[1](UNITS, dtype=dtype, return_sequences=True)
    plain.build(X.shape)
    plain.cell.kernel.assign(np.concatenate([one.kernel for one in low.cell.kernels], -1))
    recurrent = [one.kernel for one in low.cell.recurrent_kernels]
    plain.cell.recurrent_kernel.assign(np.concatenate(recurrent, -1))
    plain.cell.bias.assign(low.cell.bias)
    expected = plain(X, mask=tf.constant(MASK))
    np.testing.assert_allclose(model(X), expected, atol=1e-5 if dtype == "float32" else 5e-3)
    model.compile(keras.optimizers.SGD(0.1), "mse", integrator="rank_adaptive", truncation=0.1)
    before = [one.kernel.numpy() for one in (*low.cell.kernels, *low.cell.recurrent_kernels)]
    model.fit(X, np.ones((*X.shape[:2], UNITS)), verbose=0)
    after = [one.kernel.numpy() for one in (*low.cell.kernels, *low.cell.recurrent_kernels)]
    assert all(np.linalg.norm(a - b) > 0 for a, b in zip(after, before))
    config = kind[0](UNITS, rank={which: 2}, truncation=0.2).get_config()
    again = kind[0].from_config(config)
    assert again.get_config() == config and again.truncation.tolerance == 0.2


# Errors.


@KINDS
@pytest.mark.parametrize(
    "argument, words",
    [
        ({"rank": {"kernel": 2, "hidden": 2}}, r"`rank` must be one value.*or a dict.*hidden"),
        ({"rank": {"hidden": 2}}, r"`rank` must be one value.*or a dict.*hidden"),
        ({"rank": {}}, r"`rank` must be one value.*a dict.*Received: rank={}"),
        *(
            (
                {"rank": {"recurrent_kernel": 2}, name: {"kernel": one}},
                rf"`{name}` must be for.*{name}=",
            )
            for name, one in (("min_rank", 1), ("max_rank", 3), ("truncation", 0.1))
        ),
        ({"max_rank": {"hidden": 2}}, r"`max_rank` must be one value.*or a dict.*hidden"),
        ({"rank": 0}, "`rank` must be a positive integer"),
        ({"truncation": {"recurrent_kernel": 1.5}}, r"must be in \[0, 1\)"),
        ({"kernel_constraint": "non_neg"}, "`kernel_constraint` must be None"),
        ({"recurrent_constraint": "non_neg"}, "`recurrent_constraint` must be None"),
        ({"recurrent_regularizer": "l1"}, "`recurrent_regularizer` must be L2"),
        ({"use_cudnn": True}, "`use_cudnn` must be .* whole kernel.*Received: use_cudnn=True"),
        ({"rnk": 2}, "rnk"),
        ({"units": "8"}, "`units` must be a positive integer. Received: units='8'"),
    ],
)
def test_argument_outside_its_range_raises(kind, argument, words):
    with pytest.raises((ValueError, TypeError), match=words):
        kind[0](**{"units": UNITS, **argument})


@KINDS
def test_rank_above_the_size_of_a_kernel_raises_when_built(kind):
    layer = kind[0](UNITS, rank={"recurrent_kernel": UNITS + 1})
    with pytest.raises(ValueError, match=r"'recurrent_kernel' must be at most min\(n, m\) = 4"):
        layer.build(X.shape)
    with pytest.raises(ValueError, match=r"units"):
        kind[0](0)
