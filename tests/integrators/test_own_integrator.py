"""An integrator of the user's own, as docs/guide.md writes it."""

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import Integrator, LowRankDense, LowRankModel, integrators


class Shrinking(Integrator):
    """Steps of `Parallel` whose ranks never grow; it counts those that leave the chart."""

    count = 0

    def move(self, factors, direction, step_size, policy):
        self.count += 1
        augmented = integrators.augment(factors, direction)
        core = integrators.moved_core(augmented, step_size)
        most = policy.most(tf.shape(factors.S)[0])
        return integrators.truncate(augmented, core, policy._replace(max_rank=most))


def test_a_step_that_leaves_the_chart_keeps_the_rank_until_ranks_adapt():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, LowRankDense(8, rank=4, use_bias=False)(inputs))
    integrator = Shrinking(adapt_every=3)
    model.compile("sgd", "mse", integrator=integrator, truncation=0.9, run_eagerly=True)
    model.optimizer.learning_rate = 50.0
    x = np.random.default_rng(0).standard_normal((64, 8))
    ranks = []
    for _ in range(3):
        model.train_on_batch(x, x)
        ranks += model.ranks.values()
    assert integrator.count == 3
    assert ranks[:2] == [4, 4] and ranks[2] < 4
