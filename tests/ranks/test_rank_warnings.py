"""Ranks that do not come to be what was asked for: each is said once, in one line."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import (
    Budget,
    KeepRank,
    LowRankDense,
    LowRankModel,
    Tolerance,
    callbacks,
    from_keras,
    keras_internals,
)
from keras_lowrank.training.rank_warnings import warn_after_training

rng = np.random.default_rng(0)
X, Y = (rng.standard_normal((32, k)).astype("float32") for k in (20, 4))


def make(truncation, own=None, integrator="parallel", **layer):
    inputs = keras.Input((20,))
    x = LowRankDense(18, rank=8, name="first", truncation=own, **layer)(inputs)
    x = LowRankDense(16, rank=8, name="second")(x)
    model = LowRankModel(inputs, keras.layers.Dense(4, name="head")(x))
    optimizer = keras.optimizers.SGD(0.01)
    model.compile(optimizer, "mse", truncation=truncation, integrator=integrator, run_eagerly=True)
    return model


def fit(model, epochs=1, **options):
    """Fits for a step an epoch; returns what was said, each in one line, at the line of `fit`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y, epochs=epochs, verbose=0, **options)
    said = [one for one in caught if issubclass(one.category, UserWarning)]
    assert all(one.filename == __file__ and "\n" not in str(one.message) for one in said)
    return [str(one.message) for one in said]


def late(step):
    return 0.2 if float(step) >= 1 else 0.0


@pytest.mark.parametrize(
    "truncation, words",
    [
        (Budget(compression=0.5, steps=30000), "after steps=30,000, but training took 1"),
        (Tolerance(late), "schedule of their tolerance was 0 at all of the 1 training steps"),
    ],
    ids=["budget", "schedule"],
)
@pytest.mark.parametrize("whose", ["model", "layer"])
def test_a_truncation_that_training_ended_before(truncation, words, whose):
    model = make(truncation) if whose == "model" else make(0.1, own=truncation)
    (text,) = fit(model)
    assert words in text and f"ranks of {2 if whose == 'model' else 1} layers" in text
    assert fit(model) == []  # and once


@pytest.mark.parametrize(
    "truncation",
    [
        0.0,
        0.1,
        KeepRank(),
        Budget(weights=600, steps=1),
        Tolerance(lambda step: 0.1),
        Tolerance(keras.optimizers.schedules.PolynomialDecay(0.2, 1, 0.0)),
    ],
)
def test_nothing_is_said_where_nothing_is_wrong(truncation):
    assert fit(make(truncation)) == []


def test_nor_where_ranks_are_meant_to_stay():
    model = make(Tolerance(late), integrator="fixed_rank")
    assert fit(model) == []
    model = make(Budget(compression=0.5, steps=300))
    model.freeze_ranks()
    assert fit(model) == []


def test_a_budget_of_a_layer_whose_rank_is_to_stay():
    model = make(0.1, own=Budget(weights=90, steps=1), integrator="fixed_rank")
    (text,) = fit(model)
    assert "FixedRank keeps those of the layers ['first']" in text and fit(model) == []


def test_a_budget_that_the_least_ranks_exceed():
    model = make(Budget(weights=300, steps=1), min_rank=7)
    held = 7 * (20 + 18) + 1 * (18 + 16) + 16 * 4
    (text,) = fit(model)
    assert f"Budget` of 300 weights cannot be met: `min_rank` keeps the model at {held}" in text
    assert text.endswith("['first'].") and fit(model) == []
    assert model.compression().factored >= held
    assert fit(make(Budget(weights=held, steps=1), min_rank=7)) == []


def test_a_budget_that_a_layer_of_another_truncation_exceeds():
    model = make(Budget(weights=200, steps=1), own=KeepRank())
    (text,) = fit(model)
    assert f"has {model.compression().factored} weights, more than its `Budget` of 200" in text
    assert text.endswith("['first'].") and fit(model) == []


def test_ranks_that_were_to_be_frozen_later():
    model, freeze = make(0.1), callbacks.FreezeRanks
    (text,) = fit(model, callbacks=[freeze(epoch=5)])
    assert "waits for epoch=5, but training ended with epoch 0" in text
    assert fit(model, callbacks=[freeze(patience=9)]) == []
    assert fit(model, epochs=2, callbacks=[freeze(epoch=1)]) == []


@pytest.fixture(scope="module")
def plain():
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, name="square")(inputs)
    return keras.Model(inputs, keras.layers.Dense(64, name="other")(x))


@pytest.mark.parametrize(
    "options",
    [
        {"rank": {"square": 40, "other": 4}},
        {"rank": {"s*": 40, "other": 4}},
        {"rank": {"square": 32, "other": 4}},
    ],
)
def test_a_layer_that_was_asked_for_by_name_and_stays_dense(plain, options):
    with pytest.warns(UserWarning, match=r"Not every layer.*1 of 2 stay dense: square \(64 x 64\)"):
        assert list(from_keras(plain, **options).ranks) == ["other"]


def test_layers_that_nobody_named_stay_dense_in_silence(plain):
    kernel = plain.get_layer("other").kernel
    kernel.assign(np.outer(np.ones(64), np.ones(64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(from_keras(plain, tolerance=0.1).ranks) == ["other"]
    with pytest.warns(UserWarning, match=r"1 of 2 stay dense: square"):
        from_keras(plain, tolerance=0.1, include=["square", "other"])
    with pytest.warns(UserWarning, match=r"No layer would be smaller.*square \(64 x 64\)"):
        from_keras(plain, rank=40)


def test_it_is_said_under_a_strategy_too(monkeypatch):
    model = make(Budget(compression=0.5, steps=30000))
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        steps = keras.Variable(9, dtype="int32", trainable=False)
    monkeypatch.setattr(keras_internals, "completed_steps", lambda optimizer: steps)
    with pytest.warns(UserWarning, match="training took 9"):
        warn_after_training(model)
