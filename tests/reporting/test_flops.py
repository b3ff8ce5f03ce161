"""What a step multiplies, counted product by product as it runs, against the formula."""

import keras
import numpy as np
import pytest
from tensorflow.python.framework import op_callbacks

from keras_lowrank import LowRankDense, LowRankModel

BATCH, N, M, RANK, CLASSES = 64, 640, 512, 8, 32


class ProductCounter:
    """Counts the floating-point operations of every matrix product that runs in eager mode."""

    def __init__(self):
        self.flops = 0

    def __call__(self, op_type, inputs, attrs, outputs, op_name=None, graph=None):
        if op_type == "MatMul":
            flags = dict(zip(attrs[::2], attrs[1::2]))
            rows, inner = inputs[0].shape[::-1] if flags["transpose_a"] else inputs[0].shape
            self.flops += 2 * rows * inner * outputs[0].shape[1]

    def __enter__(self):
        op_callbacks.add_op_callback(self)
        return self

    def __exit__(self, *_):
        op_callbacks.remove_op_callback(self)


def flops_of_a_step(layer, integrator="parallel"):
    """Of a step of a network around the layer, less those of the full-rank layers in it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    hidden = layer(keras.layers.Dense(N)(inputs))
    model = LowRankModel(inputs, keras.layers.Dense(CLASSES)(hidden))
    # So small a step that it stays in the chart, as most steps of a training do.
    optimizer = keras.optimizers.SGD(1e-4)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.1, run_eagerly=True)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((BATCH, 8)), rng.standard_normal((BATCH, CLASSES))
    for _ in range(2):  # the look before the second is another one
        model.train_on_batch(x, y)
    with ProductCounter() as counter:
        model.train_on_batch(x, y)
    first = 2 * BATCH * 8 * N * 2  # outputs, gradient of the kernel; the data need none
    head = 2 * BATCH * M * CLASSES * 3
    return counter.flops - first - head


# Forward, and backward to the inputs: two products a side; K and L: one a side. The parts that are
# r x r are next to nothing.
PASS = 2 * BATCH * RANK * 3 * (N + M + RANK)
# What the defect of the bases is measured with, and one pass that adds up what is new.
CHECK = 2 * 2 * RANK * 4 * (N + M)
SMALL = 20 * 2 * RANK**3


@pytest.mark.parametrize("integrator", ["parallel", "rank_adaptive"])
def test_a_step_multiplies_what_the_formula_says(integrator):
    """No more than two plain factors, next to nothing apart."""
    found = flops_of_a_step(LowRankDense(M, rank=RANK), integrator)
    assert found == pytest.approx(PASS + CHECK + SMALL, rel=0.1)


def test_the_counter_counts_a_full_rank_layer():
    """What it is compared with: three products of n x m numbers."""
    with pytest.warns(UserWarning, match="no trainable low-rank layer"):
        counted = flops_of_a_step(keras.layers.Dense(M))
    assert counted == pytest.approx(3 * 2 * BATCH * N * M, rel=0.01)
