"""A model of two small layers, and data, for the tests of optimizers."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.optimizers import muon

INTEGRATORS = pytest.mark.parametrize("integrator", ["parallel", "rank_adaptive", "fixed_rank"])
NEEDS_MUON = pytest.mark.skipif(not muon.RUNS, reason="Keras < 3.13")

rng = np.random.default_rng(0)
X, Y = (rng.standard_normal((24, k)).astype("float32") for k in (7, 5))


def make(optimizer, integrator="parallel", ranks=(4, 3), truncation=0.05, **kwargs):
    inputs = keras.Input((7,))
    x = LowRankDense(6, rank=ranks[0], name="first", activation="tanh")(inputs)
    model = LowRankModel(inputs, LowRankDense(5, rank=ranks[1], name="second")(x))
    model.compile(optimizer, "mse", integrator=integrator, truncation=truncation, **kwargs)
    return model
