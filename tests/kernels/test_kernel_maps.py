"""What a layer type does with its matrix: two bases, and the whole matrix."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.probing import cases, make

from keras_lowrank import FixedRank, LowRankLayer, LowRankModel, RankAdaptive
from keras_lowrank.kernels.products import matmul_last


def make_arranged(case):
    """A layer and inputs whose axes are as its form takes them."""
    layer, _, x = make(case)
    if "einsum" in case:
        x = tf.constant(np.random.default_rng(0).standard_normal((4, layer.factors.n)))
    elif "channels first" in case:
        x = tf.transpose(x, (0, 2, 3, 1))
    return layer, x


@cases
def test_two_bases_make_what_the_whole_matrix_makes(case):
    layer, x = make_arranged(case)
    rng = np.random.default_rng(1)
    form, n, m = layer.kernel_maps, layer.factors.n, layer.factors.m
    a, b = (tf.constant(rng.standard_normal((size, 3))) for size in (n, m))
    outputs = form.expanded(form.project(x, a), b)
    W = tf.matmul(a, b, transpose_b=True)
    for one in (form, form._replace(whole=None)):
        np.testing.assert_allclose(one.apply_whole(x, W), outputs, atol=1e-11)


class Doubled(LowRankLayer):
    """A layer type of a user's own, whose outputs are sums of two columns."""

    def build(self, input_shape):
        self.build_factors((input_shape[-1], 6), bias_shape=(3,))

    def project(self, inputs, basis):
        return matmul_last(inputs, basis)

    def expand(self, coordinates, basis):
        pairs = tf.gather(basis, [0, 1, 2]) + tf.gather(basis, [3, 4, 5])
        return matmul_last(coordinates, pairs, transpose=True)


@pytest.mark.parametrize("integrator", partly_slow([RankAdaptive(4)], [FixedRank(1)]))
def test_an_expansion_of_ones_own_is_trained_and_exported(integrator, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    model = LowRankModel(inputs, Doubled(rank=2)(inputs))
    model.compile(keras.optimizers.SGD(0.05), "mse", integrator=integrator, truncation=0.01)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5)).astype("float32")
    y = x @ rng.standard_normal((5, 3)).astype("float32")
    losses = model.fit(x, y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    model.export(tmp_path / "model", verbose=False, report=True)  # compares, at full rank too
