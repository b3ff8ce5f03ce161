"""What a layer multiplies with while a step has put something in place of its factors."""

import numpy as np
import pytest
import tensorflow as tf
from reference.probing import make

from keras_lowrank.kernels.kernel_override import (
    ProductKernel,
    core_gram,
    low_rank_apply,
    override_kernels,
)
from keras_lowrank.manifold.point import Point


def test_the_trace_of_the_gram_matrix_is_the_squared_norm_of_the_kernel_for_any_factors():
    layer, _, _ = make("dense 2-D")
    rng = np.random.default_rng(5)
    for variable in layer.factors.variables:
        variable.assign(rng.standard_normal(variable.shape))
    with tf.GradientTape() as tape:
        norm = tf.linalg.trace(core_gram(layer.factors))
    U, S, V = (v.numpy() for v in layer.factors.variables)
    W = U @ S @ V.T
    np.testing.assert_allclose(norm, np.sum(W**2))
    dU, dS, dV = tape.gradient(norm, [v.value for v in layer.factors.variables])
    np.testing.assert_allclose(dU, 2 * W @ V @ S.T)
    np.testing.assert_allclose(dS, 2 * U.T @ W @ V)
    np.testing.assert_allclose(dV, 2 * W.T @ U @ S)


def test_the_squared_norm_inside_a_substitution_is_that_of_what_is_there():
    layer, _, _ = make("dense 2-D")
    S = layer.S.numpy()
    rng = np.random.default_rng(5)
    U, C, V = (tf.constant(rng.standard_normal(shape)) for shape in ((6, 3), (3, 3), (5, 3)))
    kernel = ProductKernel.of(Point(U, C, V))
    with override_kernels({layer.factors: kernel}), tf.GradientTape() as tape:
        tape.watch(kernel.core)
        norm = tf.linalg.trace(core_gram(layer.factors))
    W = U @ C @ tf.transpose(V)
    np.testing.assert_allclose(norm, np.sum(W**2))
    np.testing.assert_allclose(tape.gradient(norm, kernel.core), 2 * tf.transpose(U) @ W @ V)
    # A product without a core, as an export holds it, leaves the variables to answer.
    with override_kernels({layer.factors: ProductKernel(tf.zeros([6, 5], tf.float64))}):
        np.testing.assert_allclose(tf.linalg.trace(core_gram(layer.factors)), np.sum(S**2))


def test_a_product_holds_any_number_of_matrices_the_last_one_transposed():
    rng = np.random.default_rng(6)
    A, B, C, x = (rng.standard_normal(s) for s in ((6, 3), (3, 2), (5, 2), (4, 6)))
    layer, _, _ = make("dense 2-D")
    expected = {(A @ B @ C.T).tobytes(): (A, B, C), (A @ B).tobytes(): (A, B.T), A.tobytes(): (A,)}
    for W, matrices in expected.items():
        W = np.frombuffer(W).reshape(6, -1)
        product = ProductKernel(*map(tf.constant, matrices))
        for one in (product, product.folded("float64")):
            with override_kernels({layer.factors: one}):
                y = low_rank_apply(layer.kernel_maps, layer.factors, tf.constant(x), "float64")
            np.testing.assert_allclose(y, x @ W, atol=1e-12)


def test_substitutions_nest_and_end_with_their_block_even_after_an_error():
    layer, _, x = make("dense 2-D", use_bias=False)
    other, _, _ = make("dense 2-D", use_bias=False, seed=1)
    own = layer(x).numpy()

    def scaled(factor):
        u, s, v = layer.factors.read()
        return {layer.factors: ProductKernel.of(Point(u, factor * s, v))}

    with override_kernels(scaled(2.0)):
        with override_kernels(scaled(3.0)):
            np.testing.assert_allclose(layer(x), 3 * own)
        np.testing.assert_allclose(layer(x), 2 * own)
        with pytest.raises(RuntimeError, match="inside"), override_kernels(scaled(5.0)):
            raise RuntimeError("inside")
        np.testing.assert_allclose(layer(x), 2 * own)
        # An inner substitution of another layer leaves the outer one in force.
        with override_kernels({other.factors: ProductKernel.of(layer.factors.read())}):
            np.testing.assert_allclose(layer(x), 2 * own)
            np.testing.assert_allclose(other(x), own)
    np.testing.assert_allclose(layer(x), own)
