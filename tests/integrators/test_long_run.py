"""A hundred thousand steps, or tens of them: bases stay orthonormal, and nothing grows."""

import gc
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel, Tolerance, integrators

# The last step of an execution is a full one: 500 are 25 times 20.
STEPS_PER_EXECUTION, EPOCHS = 500, 10


class CountsTraces(LowRankModel):
    traces = 0

    def train_step(self, data):
        logs = super().train_step(data)
        self.traces += 1
        return logs


def resident():
    """The resident set of this process, in MiB."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Watch(keras.callbacks.Callback):
    """What should stay as it is, at the end of every epoch, and the ranks."""

    def __init__(self):
        super().__init__()
        self.defects, self.sizes, self.counts, self.ranks = [], [], [], set()

    def on_train_batch_end(self, batch, logs=None):
        self.ranks.add(tuple(self.model.ranks.values()))
        if int(self.model.optimizer.iterations) % self.model.integrator.adapt_every == 0:
            self.defects.append(max(map(self._defect, self.model.ranks)))

    def on_epoch_end(self, epoch, logs=None):
        model = self.model
        self.counts.append((len(model.variables), len(model.optimizer.variables), model.traces))
        self.sizes.append(resident())

    def _defect(self, name):
        layer = self.model.get_layer(name)
        return max(
            np.abs(basis.T @ basis - np.eye(basis.shape[1])).max()
            for basis in (layer.U.numpy(), layer.V.numpy())
        )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "integrator, steps", [("parallel", 10_000), ("rank_adaptive", 2_000), ("fixed_rank", 2_000)]
)
def test_ten_times_as_many_steps_change_nothing(integrator, steps):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 12)).astype("float32")
    y = np.tanh(x @ rng.standard_normal((12, 4))) + rng.standard_normal((512, 4))
    batches = tf.data.Dataset.from_tensor_slices((x, y.astype("float32"))).cache()
    batches = batches.shuffle(512, seed=0).batch(8, drop_remainder=True).repeat()
    inputs = keras.Input((12,))
    x = LowRankDense(16, rank=8, activation="tanh", name="first")(inputs)
    x = keras.layers.Dropout(0.1)(keras.layers.BatchNormalization()(x))
    x = LowRankDense(12, rank=8, activation="tanh", name="second")(x)
    model = CountsTraces(inputs, keras.layers.Dense(4)(x))
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        "mse",
        integrator=type(integrators.get(integrator))(adapt_every=20),
        # A tolerance that goes up and down, and the ranks with it.
        truncation=Tolerance(lambda step: 0.3 + 0.25 * tf.sin(step / 300.0)),
        steps_per_execution=STEPS_PER_EXECUTION,
    )
    watch = Watch()
    losses = model.fit(
        batches, steps_per_epoch=steps, epochs=EPOCHS, verbose=0, callbacks=[watch]
    ).history["loss"]
    print(f"largest defect {max(watch.defects):.1e}; resident set, MiB: {watch.sizes}")
    print(f"ranks {sorted(watch.ranks)}; losses {losses}; counts {watch.counts[-1]}")
    assert int(model.optimizer.iterations) == steps * EPOCHS
    assert max(watch.defects) < 1e-5
    assert (len(watch.ranks) > 1) == (integrator != "fixed_rank"), "ranks that move are the test"
    assert abs(watch.sizes[-1] / watch.sizes[0] - 1) < 0.02
    assert set(watch.counts) == {watch.counts[0]} and model.traces == 1
