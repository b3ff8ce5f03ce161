"""What a layer type does with its matrix: both adjoints of `expand`, and the whole matrix."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.probing import cases, eager_and_traced, make

from keras_lowrank import LowRankLayer, LowRankModel
from keras_lowrank.linalg import matmul_last


def make_arranged(case):
    """A layer and inputs whose axes are as its form takes them."""
    layer, _, x = make(case)
    if "einsum" in case:
        x = tf.constant(np.random.default_rng(0).standard_normal((4, layer.factors.n)))
    elif "channels first" in case:
        x = tf.transpose(x, (0, 2, 3, 1))
    return layer, x


def inner(a, b):
    return np.sum(np.asarray(a) * np.asarray(b))


@cases
def test_two_bases_make_what_the_whole_matrix_makes(case):
    layer, x = make_arranged(case)
    rng = np.random.default_rng(1)
    form, n, m = layer.form, layer.factors.n, layer.factors.m
    a, b = (tf.constant(rng.standard_normal((size, 3))) for size in (n, m))
    outputs = form.expanded(form.project(x, a), b)
    W = tf.matmul(a, b, transpose_b=True)
    for one in (form, form._replace(whole=None)):
        np.testing.assert_allclose(one.apply_whole(x, W), outputs, atol=1e-11)


@cases
@eager_and_traced
def test_adjoints_of_expand(case, traced):
    layer, x = make_arranged(case)
    rng = np.random.default_rng(2)
    form = layer.form
    z = form.project(x, layer.factors.read().U)
    b = tf.constant(rng.standard_normal((layer.factors.m, z.shape[-1])))
    d = tf.constant(rng.standard_normal(form.expanded(z, b).shape))

    def adjoints(z, b, d):
        return form.pulled_back(d, b, z), form.of_basis(d, z, b)

    by_z, by_b = (tf.function(adjoints) if traced else adjoints)(z, b, d)
    assert by_z.shape == z.shape and by_b.shape == b.shape
    # <expand(z', b), d> = <z', adjoint>, for other z' and b' than those it was taken at.
    other_z, other_b = (tf.constant(rng.standard_normal(t.shape)) for t in (z, b))
    np.testing.assert_allclose(inner(form.expanded(other_z, b), d), inner(other_z, by_z))
    np.testing.assert_allclose(inner(form.expanded(z, other_b), d), inner(other_b, by_b))


class Doubled(LowRankLayer):
    """A layer type of a user's own, whose outputs are sums of two columns."""

    def build(self, input_shape):
        self.build_factors((input_shape[-1], 6), bias_shape=(3,))

    def project(self, inputs, basis):
        return matmul_last(inputs, basis)

    def expand(self, coordinates, basis):
        pairs = tf.gather(basis, [0, 1, 2]) + tf.gather(basis, [3, 4, 5])
        return matmul_last(coordinates, pairs, transpose=True)


@pytest.mark.parametrize("integrator", partly_slow(["parallel", "rank_adaptive"], ["fixed_rank"]))
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
