"""Small models for the tests of files and weights, and a comparison of models."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankModel, Parallel

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 6)).astype("float32")
Y = rng.standard_normal((16, 3)).astype("float32")

# A few steps then include both kinds, and change the ranks.
OFTEN = Parallel(adapt_every=2)


def functional(rank=3, width=6):
    inputs = keras.Input((6,))
    x = LowRankDense(width, rank=rank, activation="tanh", name="low")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return LowRankModel(inputs, keras.layers.Dense(3, name="head")(x))


def nested(rank=3):
    inputs = keras.Input((6,))
    body = keras.Sequential(
        [keras.Input((6,)), LowRankDense(6, rank=rank, name="low")], name="body"
    )
    return LowRankModel(inputs, LowRankDense(3, rank=rank, name="low")(body(inputs)))


@keras.saving.register_keras_serializable("keras_lowrank_tests_saving")
class Subclassed(LowRankModel):
    def __init__(self, rank=3, **kwargs):
        super().__init__(**kwargs)
        self.rank = rank
        self.low = LowRankDense(6, rank=rank, name="low")
        self.head = keras.layers.Dense(3, name="head")

    def call(self, inputs):
        return self.head(self.low(inputs))

    def get_config(self):
        return {**super().get_config(), "rank": self.rank}


MAKERS = pytest.mark.parametrize("make", [functional, nested, Subclassed])


def trained(make=functional, rank=3, epochs=1, truncation=0.75, **kwargs):
    model = make(rank=rank)
    kwargs = {"integrator": OFTEN, "run_eagerly": True, **kwargs}
    model.compile(keras.optimizers.SGD(0.1), "mse", truncation=truncation, **kwargs)
    model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return model


def predict(model):
    return model.predict(X, verbose=0)


def assert_same(one, other):
    assert list(one.ranks.values()) == list(other.ranks.values())
    np.testing.assert_array_equal(predict(one), predict(other))
