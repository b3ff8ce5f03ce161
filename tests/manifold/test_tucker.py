"""Tucker-2 kernels: tangent vectors, retraction and truncation, against dense formulas."""

import numpy as np
import pytest
import tensorflow as tf
from reference import tucker as reference

from keras_lowrank.integrators.tucker_frame import TuckerFrame
from keras_lowrank.manifold.tucker import (
    TuckerPoint,
    cut,
    product_of_columns,
    product_of_rows,
    whitening,
)
from keras_lowrank.manifold.tucker_factors import tucker_factors_of

# Places, input and output channels, and the two ranks: also one channel, a 1 x 1 kernel, full rank.
SHAPES = [(9, 7, 8, 3, 4), (1, 7, 8, 3, 3), (9, 1, 8, 1, 2), (4, 5, 5, 5, 5), (2, 6, 3, 2, 3)]


def point_of(rng, places, n, m, p, q):
    u, v = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in ((n, p), (m, q)))
    return TuckerPoint(*map(tf.constant, (u, rng.standard_normal((places, p, q)), v)))


def arrays(parts):
    return tuple(part.numpy() for part in parts)


def dense(frame, vector):
    """The tangent vector as a kernel, from its definition."""
    u, s, v = arrays(frame.factors)
    k, core, l = arrays(vector)
    roots = [
        np.linalg.inv(
            np.linalg.cholesky(reference.unfolded(s, axis) @ reference.unfolded(s, axis).T)
        )
        for axis in (1, 2)
    ]
    return (
        reference.kernel_of(k, roots[0] @ s, v)
        + reference.kernel_of(u, core, v)
        + reference.kernel_of(u, s @ roots[1].T, l)
    )


def gradients_at(point, gradient):
    with tf.GradientTape() as tape:
        tape.watch(tuple(point))
        loss = tf.reduce_sum(gradient * tf.einsum("cp,kpq,fq->kcf", *point))
    return tape.gradient(loss, tuple(point))


@pytest.fixture(params=SHAPES, ids=str)
def case(request):
    rng = np.random.default_rng(0)
    point = point_of(rng, *request.param)
    gradient = rng.standard_normal(request.param[:3])
    frame = TuckerFrame(point)
    return frame, frame.tangent(gradients_at(point, gradient)), gradient


def test_the_tangent_gradient_is_the_projection_of_the_gradient(case):
    frame, vector, gradient = case
    expected = reference.tangent_projection(arrays(frame.factors))(gradient)
    np.testing.assert_allclose(dense(frame, vector), expected, atol=1e-6)
    np.testing.assert_allclose(vector.squared_norm(), np.sum(expected**2), rtol=1e-6)


def test_a_step_is_a_retraction_of_second_order(case):
    frame, vector, _ = case
    kernel, direction = reference.kernel_of(*arrays(frame.factors)), dense(frame, vector)
    project = reference.tangent_projection(arrays(frame.factors))
    tangential = []
    for h in (0.02, 0.01):
        point, _ = frame.step(vector, tf.constant(h, tf.float64))
        for basis in arrays((point.U, point.V)):
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
        off = reference.kernel_of(*arrays(point)) - (kernel - h * direction)
        tangential.append(np.linalg.norm(project(off)))
    assert tangential[1] <= 0.2 * tangential[0] + 1e-8  # of third order: an eighth
    assert float(frame.step(vector, tf.constant(1e3, tf.float64))[1]) > 0.25


def test_augmentation_adds_the_step_exactly_and_truncation_costs_its_tails(case):
    frame, vector, _ = case
    h = tf.constant(0.3, tf.float64)
    augmented = frame.augmented(vector, h)
    expected = reference.kernel_of(*arrays(frame.factors)) - 0.3 * dense(frame, vector)
    sizes, tails = (2, 2), []

    def choose(values, mode):
        tails.append(float(tf.norm(values[sizes[mode] :])))
        return tf.minimum(sizes[mode], tf.size(values))

    everything = augmented.core.shape[1:]
    p, core, q = cut(augmented.core, lambda values, mode: everything[mode], everything)
    np.testing.assert_allclose(
        reference.kernel_of(*arrays(frame.rotated(augmented, p, core, q))), expected, atol=1e-7
    )
    p, core, q = cut(augmented.core, choose, everything)
    error = reference.kernel_of(*arrays(frame.rotated(augmented, p, core, q))) - expected
    np.testing.assert_allclose(np.linalg.norm(error), np.linalg.norm(tails), atol=1e-6)


def test_transport_is_the_projection_onto_the_new_tangent_space(case):
    frame, vector, _ = case
    other = TuckerFrame(frame.step(vector, tf.constant(0.2, tf.float64))[0])
    found = dense(other, frame.transport(vector, other, 0.9))
    expected = reference.tangent_projection(arrays(other.factors))(0.9 * dense(frame, vector))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_odd_function_of_the_singular_values_is_projected(case):
    frame, vector, _ = case
    matrix = dense(frame, vector)
    shape = matrix.shape

    def function(core):
        core = core / tf.norm(core)
        return 1.5 * core - tf.matmul(core, tf.matmul(core, core, transpose_a=True))

    expected = function(tf.constant(matrix.reshape(-1, shape[2]))).numpy().reshape(shape)
    expected = reference.tangent_projection(arrays(frame.factors))(expected)
    found = frame.mapped(vector, function)
    np.testing.assert_allclose(dense(frame, found), expected, atol=1e-6)
    for basis, part in ((frame.U, found.K), (frame.V, found.L)):
        np.testing.assert_allclose(basis.numpy().T @ part.numpy(), 0.0, atol=1e-6)


def test_separate_outer_parts_of_one_vector_give_it_back(case):
    frame, vector, _ = case
    again, size = frame.to_tangent(*frame.outer_parts(vector), vector.S)
    np.testing.assert_allclose(dense(frame, again), dense(frame, vector), atol=1e-6)
    np.testing.assert_allclose(size, vector.squared_norm(), rtol=1e-6)


def test_faint_and_absent_directions_stay_finite():
    rng = np.random.default_rng(0)
    u, s, v = point_of(rng, 9, 8, 8, 5, 5)
    for scale in (10.0**-2.0 * np.arange(5), np.zeros(5), np.eye(5)[0]):
        core = tf.constant(scale[:, None] * s.numpy() * scale)
        point = TuckerPoint(*(tf.cast(part, tf.float32) for part in (u, core, v)))
        frame = TuckerFrame(point)
        vector = frame.tangent(gradients_at(point, rng.standard_normal((9, 8, 8)).astype("f")))
        augmented = frame.augmented(vector, tf.constant(0.1))
        new = frame.rotated(
            augmented,
            *cut(augmented.core, lambda values, _: tf.minimum(5, tf.size(values)), (5, 5)),
        )
        for basis in (new.U, new.V):
            excess = tf.matmul(basis, basis, transpose_a=True) - tf.eye(basis.shape[1])
            assert float(tf.reduce_max(tf.abs(excess))) < 1e-5
        assert np.isfinite(new.S).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whitened_rows_are_orthonormal_down_to_faint_ones(dtype):
    rng = np.random.default_rng(0)
    rows = np.linalg.qr(rng.standard_normal((630, 80)))[0].T * np.logspace(0, -2, 80)[:, None]
    core = tf.constant(np.moveaxis(rows.reshape(80, 9, 70), 0, 1), dtype)
    white = tf.matmul(whitening(product_of_rows(core, core)), core)
    np.testing.assert_allclose(product_of_rows(white, white), np.eye(80), atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [1, 2])
def test_cores_whose_rows_are_parallel_stay_finite(dtype, rank):
    """As after the first step from a core of zeros: rounding makes their Gram matrix indefinite."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        core = rng.standard_normal((512, rank)) @ rng.standard_normal((rank, 512))
        core = tf.constant(core[None], dtype)
        for gram in (product_of_rows(core, core), product_of_columns(core, core)):
            assert np.all(np.isfinite(whitening(gram)))


def test_the_higher_order_svd_of_a_kernel():
    rng = np.random.default_rng(0)
    exact = arrays(point_of(rng, 6, 7, 5, 3, 2))
    kernel = reference.kernel_of(*exact).reshape(2, 3, 7, 5)
    found = tucker_factors_of(kernel, (3, 2))
    np.testing.assert_allclose(
        reference.kernel_of(*found).reshape(kernel.shape), kernel, atol=1e-12
    )
