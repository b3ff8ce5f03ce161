"""The chart between two full steps, against full matrices."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from reference import optimizers as reference
from reference.cases import few, seeds, shapes
from reference.closed_form import matrix, orthonormal
from reference.probing import (
    cases,
    eager_and_traced,
    full_gradient,
    loss_of,
    make,
    tangent_gradient,
)
from reference.trajectories import defect, tangent_of, to_tensors

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector, transport


def at_origin(rng, n, m, r):
    """A matrix of moderate singular values as `(factors, chart)`."""
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    values = np.sort(rng.uniform(0.5, 2.0, r))[::-1]
    factors = u, np.diag(values), v
    return factors, Chart(to_tensors(factors, "float64"), tf.constant(values))


def moved(rng, chart, size):
    """The chart after a step of that size in a random direction."""
    n, m = chart.U.shape[0], chart.V.shape[0]
    A = rng.standard_normal((n, m))
    direction = tangent_of(A / np.linalg.norm(A), (chart.U.numpy(), None, chart.V.numpy()))
    step = chart.step(direction, size)
    assert step.factors.U.shape[0] == n and step.factors.V.shape[0] == m
    return Chart(step.factors, chart.scale)


@cases
@eager_and_traced
def test_the_gradients_of_the_factors_give_the_tangent_gradient(case, traced):
    """`(G V, U^T G V, G^T U)`, where G is the gradient of a full kernel."""
    layer, full, x = make(case, bias_initializer="normal", activation="tanh")
    full.bias.assign(layer.bias)
    G, dx = full_gradient(full, layer, x)
    U, _, V = (factor.numpy() for factor in layer.factors.read())
    K, S, L, found_dx = tangent_gradient(layer, x, traced)
    np.testing.assert_allclose(K, G @ V, atol=1e-10)
    np.testing.assert_allclose(S, U.T @ G @ V, atol=1e-10)
    np.testing.assert_allclose(L, G.T @ U, atol=1e-10)
    np.testing.assert_allclose(found_dx, dx, atol=1e-10)


def test_a_layer_called_twice_adds_up_both_calls():
    layer, full, x = make("dense 2-D", use_bias=False)
    pad = tf.constant(np.eye(5, 6))

    def forward(model):
        return lambda x: model(model(x) @ pad) + 2.0 * model(x)

    full.kernel.assign(layer.kernel)
    with tf.GradientTape() as tape:
        loss = loss_of(forward(full)(x))
    G = tape.gradient(loss, full.kernel.value).numpy()
    U, _, V = (factor.numpy() for factor in layer.factors.read())
    K, S, L, _ = tangent_gradient(layer, x, forward=forward(layer))
    for found, right in ((K, G @ V), (S, U.T @ G @ V), (L, G.T @ U)):
        np.testing.assert_allclose(found, right, atol=1e-10)


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((1, 5, 1), 0)
@example((5, 1, 1), 0)
def test_a_step_follows_the_direction_to_second_order(shape, seed):
    """`W - h A` with A tangent: what else there is at h is normal, and a quarter at h / 2."""
    rng = np.random.default_rng(seed)
    factors, chart = at_origin(rng, *shape)
    W, A = matrix(factors), reference.project(rng.standard_normal(shape[:2]), factors)
    A /= np.linalg.norm(A)
    rest = []
    for h in (2.0**-6, 2.0**-7):  # float32 holds them, which a number is read as
        new = chart.step(tangent_of(A, factors), h).factors
        off = matrix([part.numpy() for part in new]) - (W - h * A)
        tangential = np.linalg.norm(reference.project(off, factors))
        assert tangential <= 20.0 * h**3
        rest.append(np.linalg.norm(off))
        assert np.linalg.matrix_rank(W + off - h * A, tol=1e-9) <= shape[2]
    assert rest[1] <= 0.3 * rest[0] + 1e-12


@few
@given(shapes(), seeds)
def test_gradients_anywhere_in_the_chart_are_those_of_its_bases(shape, seed):
    """The parts `(G V, U^T G V, G^T U)` for the bases U and V of the present W."""
    rng = np.random.default_rng(seed)
    chart = moved(rng, at_origin(rng, *shape)[1], 0.1)
    u, s, v = (part.numpy() for part in chart.factors)
    G = rng.standard_normal(shape[:2])
    plain = [tf.constant(one) for one in (G @ v @ s.T, u.T @ G @ v, G.T @ u @ s)]
    U, V = chart.U.numpy(), chart.V.numpy()
    for found, right in zip(chart.tangent(plain), (G @ V, U.T @ G @ V, G.T @ U)):
        np.testing.assert_allclose(found, right, atol=1e-9)
    # Bases of the row and column space of W, orthonormal up to the square of the angle.
    W = u @ s @ v.T
    np.testing.assert_allclose(U @ np.linalg.pinv(U) @ W, W, atol=1e-9)
    np.testing.assert_allclose(W @ np.linalg.pinv(V.T) @ V.T, W, atol=1e-9)
    assert max(defect(U), defect(V)) < 0.1


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((5, 1, 1), 0)
def test_the_defect_is_that_of_the_bases(shape, seed):
    """An estimate by few columns of signs: within a factor, and nothing at the origin."""
    rng = np.random.default_rng(seed)
    _, chart = at_origin(rng, *shape)
    zero = tangent_of(np.zeros(shape[:2]), (chart.U.numpy(), None, chart.V.numpy()))
    assert float(chart.step(zero, 1.0).defect) < 1e-12
    direction = tangent_of(rng.standard_normal(shape[:2]), (chart.U.numpy(), None, chart.V.numpy()))
    step = chart.step(direction, 0.05 / np.sqrt(shape[0] + shape[1]))
    there = Chart(step.factors, chart.scale)
    right = max(abs(np.sum(b.numpy() ** 2) - shape[2]) for b in (there.U, there.V))
    assert 0.02 * right - 1e-9 <= float(step.defect) <= 20 * right + 1e-3


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((1, 5, 1), 0)
def test_refreshed_factors_are_the_same_matrix_with_orthonormal_bases(shape, seed):
    rng = np.random.default_rng(seed)
    chart = moved(rng, at_origin(rng, *shape)[1], 0.2)
    new = [part.numpy() for part in chart.refreshed()]
    W = matrix([part.numpy() for part in chart.factors])
    np.testing.assert_allclose(matrix(new), W, atol=1e-10)
    assert max(defect(new[0]), defect(new[2])) < 1e-12


@pytest.mark.parametrize("frozen", [1, 3])
def test_of_frozen_columns_only_the_core_learns(frozen):
    rng = np.random.default_rng(0)
    n, m, r = 9, 7, 4
    (u, s, v), _ = at_origin(rng, n, m, r)
    scale = np.where(np.arange(r) < r - frozen, np.diag(s), 0.0)
    chart = Chart(Point(*map(tf.constant, (u, s, v))), tf.constant(scale))
    G = rng.standard_normal((n, m))
    tangent = chart.tangent([tf.constant(a) for a in (G @ v @ s.T, u.T @ G @ v, G.T @ u @ s)])
    h = 1e-4
    new = [part.numpy() for part in chart.step(tangent, h).factors]
    np.testing.assert_array_equal(new[0][:, -frozen:], u[:, -frozen:])
    np.testing.assert_array_equal(new[2][:, -frozen:], v[:, -frozen:])
    a, q, b, z = u[:, :-frozen], u[:, -frozen:], v[:, :-frozen], v[:, -frozen:]
    step = reference.project(G, (a, None, b)) + q @ (q.T @ G @ z) @ z.T
    np.testing.assert_allclose(matrix(new), u @ s @ v.T - h * step, atol=1e-6)
    # A momentum that comes to the chart moves the matrix as a gradient there does.
    pair = [tf.constant(part) for part in tangent_of(G, (u, None, v))]
    carried = chart.from_pair(transport(TangentVector(*pair), (u, v), (u, v)))
    again = [part.numpy() for part in chart.step(carried, h).factors]
    np.testing.assert_allclose(matrix(again), matrix(new), atol=1e-12)
