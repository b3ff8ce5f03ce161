"""Inputs that are `tf.SparseTensor`s."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankModel, RankAdaptive


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


@pytest.mark.parametrize(
    "integrator", partly_slow(["rank_adaptive"], [RankAdaptive(adapt_every=1)])
)
def test_sparse_inputs_train_as_dense_ones(integrator):
    data = np.where(draw(24, 30) > 1.2, draw(24, 30), 0.0)
    targets, found = draw(24, 5), []
    for x in (data, tf.sparse.from_dense(data)):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((30,), sparse=isinstance(x, tf.SparseTensor))
        model = LowRankModel(inputs, LowRankDense(5, rank=3, activation="tanh")(inputs))
        model.compile(keras.optimizers.SGD(0.5, momentum=0.9), "mse", integrator=integrator)
        history = model.fit(x, targets, batch_size=8, epochs=4, shuffle=False, verbose=0).history
        found.append((history["loss"], model.predict(x, verbose=0)))
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert found[0][0][-1] < 0.95 * found[0][0][0]
