"""Counting weights, as the paper does and as they are held."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel, Parallel


def small():
    inputs = keras.Input((8,))
    x = LowRankDense(12, rank=4, name="low")(inputs)
    return LowRankModel(inputs, keras.layers.Dense(2)(x))


def lenet5(ranks):
    inputs = keras.Input((28, 28, 1))
    x = LowRankConv2D(20, 5, rank=ranks[0])(inputs)
    x = keras.layers.MaxPooling2D()(x)
    x = LowRankConv2D(50, 5, rank=ranks[1])(x)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
    x = LowRankDense(500, rank=ranks[2])(x)
    return LowRankModel(inputs, LowRankDense(10, rank=ranks[3])(x))


def test_compression_counts_lenet5_as_the_paper_does():
    count = lenet5([15, 46, 13, 10]).compression()
    assert (count.full, count.factored) == (430_500, 47_975)
    assert round(count.saved(count.factored), 4) == 0.8886
    # Exported, the matrices whose factors are larger are dense: two of the convolutions' and
    # the head's here.
    pairs = [(25, 20, 15), (500, 50, 46), (800, 500, 13), (500, 10, 10)]
    assert count.deployed == sum(min(r * (n + m), n * m) for n, m, r in pairs) == 47_400
    assert count.training == sum(r * (n + m + r) for n, m, r in pairs)
    assert str(count).splitlines() == [
        "weights          number    saved",
        "full            430,500",
        "factored         47,975   88.86%",
        "deployed         47,400   88.99%",
        f"training         {count.training:,}   {count.saved(count.training):.2%}",
    ]


def test_compression_counts_dense_weights_and_no_biases():
    count = small().compression()
    assert count.full == 8 * 12 + 12 * 2
    assert count.factored == count.deployed == 4 * (8 + 12) + 12 * 2
    assert count.training == 4 * (8 + 12 + 4) + 12 * 2


def test_compression_follows_the_ranks():
    model = small()
    model.compile("sgd", "mse", integrator=Parallel(adapt_every=1), truncation=0.5)
    model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    assert model.ranks["low"] != 4
    assert model.compression().factored == model.ranks["low"] * (8 + 12) + 12 * 2


def test_compression_of_an_unbuilt_model_raises():
    with pytest.raises(ValueError, match=r"must be built before.*'unbuilt'"):
        LowRankModel(name="unbuilt").compression()
