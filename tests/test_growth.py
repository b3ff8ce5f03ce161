"""Ranks that start too low grow, in training by the defaults."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankModel


@pytest.mark.parametrize("integrator", ["rank_adaptive", "parallel"])
def test_ranks_grow_where_a_rank_was_given_and_not_beyond_where_they_started_otherwise(integrator):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 24)).astype("float32")
    y = x @ np.linalg.qr(rng.standard_normal((24, 24)))[0].astype("float32")
    for rank, most in ((3, 24), (None, 9)):
        inputs = keras.Input((24,))
        model = LowRankModel(inputs, LowRankDense(24, rank=rank, use_bias=False)(inputs))
        model.compile(keras.optimizers.SGD(0.5), "mse", integrator=integrator)
        model.fit(x, y, batch_size=32, epochs=30, verbose=0)
        (found,) = model.ranks.values()
        assert found == (most if integrator == "rank_adaptive" or rank is None else rank)
