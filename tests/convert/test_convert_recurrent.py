"""LSTM and GRU, alone and in both directions: from Keras and back."""

import keras
import numpy as np
import pytest
from reference.recurrent import draw

from keras_lowrank import convert_layer, from_keras, to_keras
from keras_lowrank.convert.inspection import kernels
from keras_lowrank.layers import LowRankGRU, LowRankLSTM

layers = keras.layers
STEPS, N, UNITS = 5, 6, 8
X = draw(4, STEPS, N)
DRAWN = {"kernel_initializer": "glorot_normal", "bias_initializer": "random_normal"}


@pytest.fixture(scope="module")
def full_model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((STEPS, N))
    x = layers.Masking()(inputs)
    lstm = layers.LSTM(UNITS, return_sequences=True, dropout=0.2, **DRAWN, name="inside")
    x = layers.Bidirectional(lstm, merge_mode="ave", name="both")(x)
    x = layers.LSTM(UNITS, return_sequences=True, activation="softsign", name="lstm")(x)
    x = layers.GRU(UNITS, reset_after=False, name="gru", **DRAWN)(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


PATHS = {
    f"{holder}/{cell}_cell/{kernel}": {"kernel": n, "recurrent_kernel": UNITS}[kernel]
    for holder, cell, n in (
        ("both/forward_inside", "lstm", N),
        ("both/backward_inside", "lstm", N),
        ("lstm", "lstm", UNITS),
        ("gru", "gru", UNITS),
    )
    for kernel in ("kernel", "recurrent_kernel")
}


def test_at_full_rank_the_outputs_are_the_same_and_again_on_the_way_back(full_model):
    low = from_keras(full_model, tolerance=0.0, only_smaller=False)
    assert low.ranks == {**PATHS, "head": 3}
    assert [type(one) for one in low.layers] == [
        layers.InputLayer,
        layers.Masking,
        layers.Bidirectional,
        LowRankLSTM,
        LowRankGRU,
        type(low.get_layer("head")),
    ]
    x = X.copy()
    x[1, 3:] = 0.0
    np.testing.assert_allclose(low(x), full_model(x), atol=1e-5)
    plain = to_keras(low)
    assert [one.path for one in plain.weights][:-2] == [one.path for one in full_model.weights][:-2]
    for one, other in zip(plain.weights[:-2], full_model.weights):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(plain(x), full_model(x), atol=1e-5)


@pytest.mark.parametrize(
    "arguments, ranks",
    [
        # Of 8 x 32 only ranks below 6.4 save anything.
        ({"rank": {"lstm": 7, "gru/*": 2}}, dict.fromkeys(list(PATHS)[-2:], 2)),
        ({"rank": 2, "include": layers.Bidirectional}, dict.fromkeys(list(PATHS)[:4], 2)),
        ({"rank": 2, "include": layers.GRU}, dict.fromkeys(list(PATHS)[-2:], 2)),
        ({"rank": 2, "include": "*/kernel", "exclude": ["both", "gru"]}, {list(PATHS)[4]: 2}),
        ({"rank": 2, "include": lambda one: getattr(one, "name", "") == "lstm"},
         dict.fromkeys(list(PATHS)[4:6], 2)),
        ({"rank": 3, "include": "both/backward_inside/lstm_cell/recurrent_*"},
         {list(PATHS)[3]: 3}),
    ],
)  # fmt: skip
def test_kernels_that_are_meant_are_cut_and_others_stay(full_model, arguments, ranks):
    low = from_keras(full_model, **arguments)
    assert low.ranks == ranks
    for one, back in zip(full_model.weights, to_keras(low).weights):
        tail = 0.0
        if one.path in ranks:
            values = np.linalg.svd(one, compute_uv=False)
            tail = np.linalg.norm(values[ranks[one.path] :])
        assert np.linalg.norm(one - back) == pytest.approx(tail, rel=1e-4, abs=1e-6)


def test_a_budget_is_kept(full_model):
    budget = int(0.7 * full_model.count_params())
    low = from_keras(full_model, budget=budget)
    assert 0.9 * budget < low.compression().factored <= budget


def test_what_is_converted_trains_and_comes_back(tmp_path):
    inputs = keras.Input((STEPS, N))
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(inputs)
    full = keras.Model(inputs, layers.GRU(UNITS, name="gru")(x))
    model = from_keras(full, rank=2, include=["*_lstm/*/kernel", "gru/gru_cell/recurrent_kernel"])
    assert list(model.ranks.values()) == [2, 2, 2]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    losses = model.fit(X, np.ones((4, UNITS)), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.ranks == model.ranks
    np.testing.assert_allclose(again(X), model(X), atol=1e-6)


def test_data_says_what_matters(full_model):
    inputs = keras.Input((STEPS, N))
    full = keras.Model(inputs, layers.LSTM(UNITS, name="lstm")(inputs))
    x = draw(64, STEPS, N)
    x[..., 3:] *= 1e-3  # nothing happens in half of the axes
    plain, aware = (
        from_keras(full, rank=3, include="*/kernel", only_smaller=False, data=data)
        for data in (None, x)
    )
    expected = full(x)
    plain, aware = (np.linalg.norm(one(x) - expected) for one in (plain, aware))
    assert aware < 0.5 * plain


def test_trainable_flags_of_both_directions_stay():
    inputs = keras.Input((STEPS, N))
    both = layers.Bidirectional(layers.LSTM(UNITS), name="both")
    full = keras.Model(inputs, both(inputs))
    both.backward_layer.trainable = False
    for copy in (from_keras(full, rank=2), to_keras(from_keras(full, rank=2))):
        inside = copy.get_layer("both")
        assert inside.forward_layer.trainable and not inside.backward_layer.trainable
        assert not any(one.trainable for one in inside.backward_layer.weights)


def test_one_layer_is_converted_alone_and_all_are_inspected(full_model):
    gru = full_model.get_layer("gru")
    twin = convert_layer(gru, rank=8)
    x = draw(2, STEPS, UNITS)
    np.testing.assert_allclose(twin(x), gru(x), atol=1e-5)
    found = {one.path: one for one in kernels(full_model)}
    assert list(found) == [*PATHS, "head"]
    assert found["lstm/lstm_cell/kernel"][1:4] == ("LSTM", (UNITS, 4 * UNITS), None)
    low = from_keras(full_model, rank=2, include="lstm/lstm_cell/recurrent_kernel")
    ranks = {one.path: one.rank for one in kernels(low)}
    assert ranks == {**dict.fromkeys([*PATHS, "head"]), "lstm/lstm_cell/recurrent_kernel": 2}


@pytest.mark.filterwarnings("error:Some layers stay")
def test_a_direction_that_is_low_rank_stays_as_it_is():
    low_rank = LowRankLSTM(UNITS, rank={"kernel": 2}, name="low")
    plain = layers.LSTM(UNITS, go_backwards=True, name="plain", **DRAWN)
    both = layers.Bidirectional(low_rank, backward_layer=plain, name="both")
    tower = keras.Sequential([keras.Input((STEPS, N)), both], name="tower")
    inputs = keras.Input((STEPS, N))
    full = keras.Model(inputs, tower(inputs))
    low = from_keras(full, tolerance=0.0, only_smaller=False)
    path = "tower/both/{}/lstm_cell/{}".format
    before = {path("forward_low", "kernel"): 2}
    made = {path("plain", "kernel"): N, path("plain", "recurrent_kernel"): UNITS}
    assert low.ranks == {**before, **made}
    assert from_keras(full, rank={"plain": 3}).ranks == {**before, **dict.fromkeys(made, 3)}
    for copy in (low, to_keras(low), to_keras(full)):
        np.testing.assert_allclose(copy(X), full(X), atol=1e-5)


def test_arguments_without_a_meaning_leave_a_layer_as_it_is():
    inputs = keras.Input((STEPS, N))
    x = layers.LSTM(UNITS, recurrent_constraint="non_neg", name="lstm")(inputs)
    x = layers.Reshape((1, UNITS))(x)
    x = layers.Bidirectional(layers.SimpleRNN(UNITS), name="simple")(x)
    full = keras.Model(inputs, layers.Dense(UNITS, name="head")(x))
    with pytest.warns(UserWarning, match="lstm_cell/.*kernel: `recurrent_constraint` must be None"):
        low = from_keras(full, rank=2)
    assert list(low.ranks) == ["head"]
