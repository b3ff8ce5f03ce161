"""A kernel regularizer is what the same penalty is, written by hand on the kernel."""

import keras
import numpy as np
import pytest

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, Parallel, RankAdaptive

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((24, 9)), rng.standard_normal((24, 4))
L2 = 0.3

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.02, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.02),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5),
    "adagrad": lambda: keras.optimizers.Adagrad(0.05),
}


class ByHand(LowRankModel):
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        kernel = self.get_layer("low").kernel
        return loss + L2 * keras.ops.sum(keras.ops.square(kernel))


def kernels(cls, optimizer, integrator, **arguments):
    """The matrix after each of some steps."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9,))
    low = LowRankDense(7, rank=2, activation="tanh", name="low", **arguments)
    model = cls(inputs, keras.layers.Dense(4, name="head")(low(inputs)))
    model.compile(optimizer(), "mse", integrator=integrator, truncation=0.1, run_eagerly=True)
    found = []
    for _ in range(5):
        model.train_on_batch(X, Y)
        found.append(np.asarray(low.kernel))
    return found


@pytest.mark.parametrize(
    "integrator", [Parallel(1), RankAdaptive(1), FixedRank(1), RankAdaptive(3)]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_regularizer_trains_as_the_penalty_by_hand(optimizer, integrator, float64):
    keras.config.set_dtype_policy("float64")
    optimizer = OPTIMIZERS[optimizer]
    by_hand = kernels(ByHand, optimizer, integrator)
    found = kernels(
        LowRankModel, optimizer, integrator, kernel_regularizer=keras.regularizers.L2(L2)
    )
    np.testing.assert_allclose(found, by_hand, rtol=1e-9, atol=1e-11)
    without = kernels(LowRankModel, optimizer, integrator)
    assert not np.allclose(found, without, rtol=1e-3)
