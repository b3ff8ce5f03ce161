"""Ranks that start too low grow, in training by the defaults."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankModel, RankAdaptive


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


def test_bases_are_orthonormal_after_each_full_step_with_what_is_on_trial():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 16)).astype("float32")
    y = np.tanh(x @ rng.standard_normal((16, 12))).astype("float32")
    inputs = keras.Input((16,))
    layer = LowRankDense(12, rank=4, use_bias=False)
    model = LowRankModel(inputs, layer(inputs))
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9)
    model.compile(optimizer, "mse", integrator=RankAdaptive(adapt_every=2), truncation=0.3)
    ranks = set()
    for start in range(0, 160, 2):
        for step in (start, start + 1):
            rows = np.arange(8 * step, 8 * step + 8) % 64
            model.train_on_batch(x[rows], y[rows])
        ranks.add(layer.rank)
        for basis in (layer.U.numpy(), layer.V.numpy()):
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    assert max(ranks) > 4


def test_momentum_goes_on_for_columns_on_trial():
    """Under a constant gradient, what a trial has learned grows at every step."""
    gradient = np.array([[0.0, 0.1, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 0.0]], "float32")
    inputs = keras.Input((3,))
    layer = LowRankDense(3, rank=1, use_bias=False)
    model = LowRankModel(inputs, layer(inputs))
    first = np.eye(3, 1)
    layer.factors.assign([first, np.eye(1), first])
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    linear = lambda weights, outputs: keras.ops.sum(weights * outputs)  # noqa: E731
    model.compile(optimizer, linear, integrator=RankAdaptive(adapt_every=3), truncation=0.5)
    learned = []
    for _ in range(15):
        model.train_on_batch(np.eye(3, dtype="float32"), gradient)
        learned.append(-float(model(np.eye(3))[1, 1]))
    assert learned[-1] > 1e-3
    assert np.all(np.diff(learned[3:]) > 0), learned
