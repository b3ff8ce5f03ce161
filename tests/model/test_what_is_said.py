"""What the documentation warns of, seen to be so."""

import keras
import numpy as np
import pytest

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, Parallel, RankAdaptive
from keras_lowrank.manifold.complement import Complement
from keras_lowrank.optimizers import muon

rng = np.random.default_rng(0)
NEEDS_MUON = pytest.mark.skipif(not muon.RUNS, reason="this version of Keras has no Muon that runs")


class Counted(keras.layers.Layer):
    """Counts the passes over a batch."""

    passes = 0

    def call(self, inputs):
        self.passes += 1
        return inputs


def kernel_after(integrator, n, m, steps=10):
    """The kernel after steps of full rank in which its norm cannot grow less than by GD."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((n,))
    low = LowRankDense(m, rank=min(n, m), use_bias=False)
    model = LowRankModel(inputs, keras.layers.UnitNormalization()(low(inputs)))
    optimizer = keras.optimizers.SGD(0.3)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.0, run_eagerly=True)
    x, y = rng.standard_normal((16, n)), rng.standard_normal((16, m))
    before = np.linalg.norm(low.kernel)
    for _ in range(steps):
        model.train_on_batch(x, y)
    return np.linalg.norm(low.kernel) / before


def test_the_fixed_rank_integrator_of_the_paper_loses_norm_unless_the_kernel_is_square():
    # The gradient of what does not depend on the norm is orthogonal to W: descent lengthens it.
    for integrator in (Parallel(1), FixedRank(16)):
        assert kernel_after(integrator, 12, 4) > 1.0
    assert kernel_after(FixedRank(1), 6, 6) > 1.0
    assert kernel_after(FixedRank(1), 12, 4) < 1.0
    assert kernel_after(FixedRank(1), 4, 12) < 1.0


@NEEDS_MUON
@pytest.mark.parametrize("excluded, passes", [([], 1), (["two"], 2)])
def test_muon_pays_for_no_fourth_block_that_it_has_not(monkeypatch, excluded, passes):
    formed = []
    form = Complement.formed
    monkeypatch.setattr(Complement, "formed", lambda self, u: formed.append(u) or form(self, u))
    inputs, counted = keras.Input((8,)), Counted()
    x = LowRankDense(9, rank=2, name="one")(counted(inputs))
    model = LowRankModel(inputs, LowRankDense(7, rank=2, name="two")(x))
    optimizer = keras.optimizers.Muon(0.01, exclude_layers=excluded)
    integrator = RankAdaptive(adapt_every=1)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.0, run_eagerly=True)
    x, y = rng.standard_normal((16, 8)), rng.standard_normal((16, 7))
    model.train_on_batch(x, y)
    counted.passes, formed[:] = 0, []
    model.train_on_batch(x, y)
    assert counted.passes == passes
    assert len(formed) == 2 * len(excluded)


def test_the_momentum_of_weights_that_were_set_starts_anew():
    x, y = rng.standard_normal((16, 8)), rng.standard_normal((16, 9))
    inputs, models = keras.Input((8,)), []
    for _ in range(2):
        model = LowRankModel(inputs, LowRankDense(9, rank=2, use_bias=False)(inputs))
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", run_eagerly=True)
        models.append(model)
    for _ in range(3):
        models[0].train_on_batch(x, y)
    bases = [np.linalg.qr(rng.standard_normal((size, 2)))[0] for size in (8, 9)]
    for model in models:
        model.set_weights([bases[0], np.diag([3.0, 1.0]), bases[1]])
        model.train_on_batch(x, y)
    kernels = [model.layers[1].kernel for model in models]
    np.testing.assert_allclose(*kernels, atol=1e-6)
