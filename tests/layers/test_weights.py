"""Weights alone: out of a model and into another, from files and in memory, across ranks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.small_models import (
    Subclassed,
    X,
    Y,
    assert_same,
    functional,
    nested,
    trained,
)

from keras_lowrank import LowRankDense, LowRankModel


@pytest.mark.parametrize(
    "make, started",
    partly_slow([(functional, True), (nested, False)], [(functional, False), (Subclassed, False)]),
)
def test_weights_file_loads_into_other_starting_ranks(make, started, tmp_path):
    model = trained(make)
    model.save_weights(tmp_path / "m.weights.h5")
    other = trained(make, rank=1, truncation=0.0) if started else make(rank=1)
    other(X)
    other.load_weights(tmp_path / "m.weights.h5")
    assert_same(other, model)
    if not started:
        other.compile("sgd", "mse")
    other.fit(X, Y, verbose=0)


@pytest.mark.parametrize("make", partly_slow([functional], [nested, Subclassed]))
def test_get_and_set_weights_carry_the_ranks(make):
    model = trained(make)
    other = make(rank=1)
    other(X)
    other.set_weights(model.get_weights())
    assert_same(other, model)


def test_a_layer_sets_weights_across_ranks():
    model, other = trained(), functional(rank=2)
    other.get_layer("low").set_weights(model.get_layer("low").get_weights())
    assert other.ranks == model.ranks != {"low": 2}


def nested_twins():
    """Two models inside one, whose layers have the same names, and so their variables the paths."""

    def branch(units):
        inputs = keras.Input((8,))
        return keras.Model(inputs, LowRankDense(units, rank=4, name="hidden")(inputs))

    inputs = keras.Input((8,))
    return LowRankModel(inputs, keras.layers.Concatenate()([branch(8)(inputs), branch(6)(inputs)]))


def test_weights_of_layers_with_equal_paths_go_out_and_in():
    model, other = nested_twins(), nested_twins()
    other.set_weights(model.get_weights())
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def bits(model):
    return [weight.tobytes() for weight in model.get_weights()]


def test_set_weights_that_do_not_fit_change_nothing():
    model = functional()
    before, weights = bits(model), model.get_weights()
    cases = {
        "needs 10 arrays.*Received: 3 arrays": weights[:3],
        "must have the shapes U": [np.zeros((6, 2), "float32"), *weights[1:]],
        "'head/bias' has the shape": [*weights[:-3], np.zeros(9), *weights[-2:]],
    }
    variables = [v.path for v in model.weights]
    index = variables.index("head/bias")
    cases["'head/bias' has the shape"] = [
        np.zeros(9) if i == index else w for i, w in enumerate(weights)
    ]
    for words, values in cases.items():
        with pytest.raises(ValueError, match=words):
            model.set_weights(values)
        assert bits(model) == before


def test_weights_of_another_width_raise_and_leave_the_layer_alone(tmp_path):
    functional(width=5).save_weights(tmp_path / "m.weights.h5")
    other = functional()
    before = [w.tobytes() for w in other.get_layer("low").get_weights()]
    with pytest.raises(ValueError, match="6 x 6 matrix must have the shapes U"):
        other.load_weights(tmp_path / "m.weights.h5")
    assert [w.tobytes() for w in other.get_layer("low").get_weights()] == before


@pytest.mark.parametrize("keep", partly_slow([0.5], [0.0, 0.2, 0.95]))
def test_truncated_weights_file_raises_and_changes_nothing(tmp_path, keep):
    path = tmp_path / "m.weights.h5"
    trained().save_weights(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    other = functional(rank=2)
    before = bits(other)
    with pytest.raises((ValueError, OSError, KeyError)):
        other.load_weights(path)
    assert bits(other) == before


def test_weights_saved_by_tensorflow_restore(tmp_path):
    model, other = trained(), functional(rank=1)
    path = tf.train.Checkpoint(model).write(tmp_path / "point")
    tf.train.Checkpoint(other).read(path)
    assert_same(other, model)
