"""Layers that start as zero."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankModel


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_layer_that_starts_as_zero_trains_with_adam(policy):
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    outputs = LowRankDense(7, rank=3, kernel_initializer="zeros")(inputs)
    model = LowRankModel(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.02), "mse")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 8)).astype("float32")
    y = x @ rng.standard_normal((8, 7)).astype("float32")
    losses = model.fit(x, y, batch_size=16, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
