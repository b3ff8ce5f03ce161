import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, example, given
from hypothesis import strategies as st
from reference import rank_adaptive
from reference.cases import few, partly_slow, seeds, shapes, start
from reference.closed_form import (
    LeastSquares,
    LogCosh,
    matrix,
    orthonormal,
    with_spectrum,
)
from reference.trajectories import (
    compare_trajectories,
    one_step,
)
from reference.truncation import RelativeTolerance

from keras_lowrank import LowRankDense, LowRankModel, RankAdaptive, Tolerance, Truncation
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.manifold.point import Point
from keras_lowrank.ranks.policy import Policy


class KeepAll(Truncation):
    def rank(self, singular_values, current):
        return tf.shape(singular_values)[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ranks_grow_and_fall_as_the_paper_says(dtype):
    """From rank 1 up to what the tolerance asks of the target, and from full rank down to it."""
    rng = np.random.default_rng(0)
    problem = LeastSquares.random(rng, 14, 10)
    up, down = (
        compare_trajectories(
            RankAdaptive(adapt_every=1), rank_adaptive, problem, start(rng, 14, 10, r), 0.05, dtype
        )
        for r in (1, 10)
    )
    assert up[0] <= 2 and up[-1] >= 3
    assert down[0] > down[-1]


def literal_step(model, layers, x, y, h, tau):
    """Algorithm 1 on a network by three passes: gradients of K, of L, and of S at the new bases.

    Returns the new factors and the new biases; changes nothing.
    """
    points = [[t.numpy() for t in layer.factors.read()] for layer in layers]
    biases = [layer.bias.value for layer in layers]

    def gradients(products, sources):
        table = {layer.factors: product for layer, product in zip(layers, products)}
        with override_kernels(table), tf.GradientTape() as tape:
            tape.watch(sources)
            loss = model.compute_loss(x, y, model(x, training=True))
        return tape.gradient(loss, [*sources, *biases])

    K = [tf.constant(u @ s) for u, s, _ in points]
    L = [tf.constant(v @ s.T) for _, s, v in points]
    dK = gradients([ProductKernel(k, tf.constant(v)) for k, (_, _, v) in zip(K, points)], K)
    dL = gradients([ProductKernel(tf.constant(u), t) for t, (u, _, _) in zip(L, points)], L)
    U = [np.linalg.qr(np.hstack([k - h * d, u]))[0] for k, d, (u, _, _) in zip(K, dK, points)]
    V = [np.linalg.qr(np.hstack([t - h * d, v]))[0] for t, d, (_, _, v) in zip(L, dL, points)]
    S = [tf.constant(u.T @ matrix(point) @ v) for u, point, v in zip(U, points, V)]
    dS = gradients(
        [ProductKernel(tf.constant(u), s, tf.constant(v)) for u, s, v in zip(U, S, V)], S
    )
    new = []
    for u, s, d, v in zip(U, S, dS, V):
        P, values, Qt = np.linalg.svd(s - h * d)
        r = RelativeTolerance(tau)(values)
        new.append((u @ P[:, :r], np.diag(values[:r]), v @ Qt[:r].T))
    return new, [bias - h * d for bias, d in zip(biases, dS[len(layers) :])]


def test_the_step_is_the_literal_three_pass_step_of_a_network(float64):
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((32, 10)), rng.standard_normal((32, 6))
    layers = [
        LowRankDense(14, rank=3, activation="tanh", bias_initializer="normal", dtype="float64"),
        LowRankDense(12, rank=12, activation="softplus", dtype="float64"),
        LowRankDense(6, rank=2, dtype="float64"),
    ]
    inputs = outputs = keras.Input((10,))
    for layer in layers:
        outputs = layer(outputs)
    model = LowRankModel(inputs, outputs)
    h, tau = 2.0, 0.05
    integrator = RankAdaptive(adapt_every=1)
    model.compile(keras.optimizers.SGD(h), "mse", integrator=integrator, truncation=tau)
    ranks = []
    for _ in range(8):
        expected, biases = literal_step(model, layers, tf.constant(x), tf.constant(y), h, tau)
        model.fit(x, y, batch_size=32, verbose=0)
        for layer, factors, bias in zip(layers, expected, biases):
            assert layer.rank == len(factors[1])
            np.testing.assert_allclose(layer.kernel, matrix(factors), atol=1e-10)
            np.testing.assert_allclose(layer.bias, bias, atol=1e-10)
        ranks.append(tuple(model.ranks.values()))
    assert len(set(ranks)) > 1


@few
@given(shapes(), seeds, st.booleans())
@example((6, 6, 6), 0, True)
@example((1, 5, 1), 0, False)
@example((5, 1, 1), 0, True)
@example((7, 8, 1), 0, True)
def test_a_step_to_a_matrix_of_the_same_rank_lands_on_it(shape, seed, constant):
    """`W0 - h G(W0)` is W1 of rank r, for a gradient that changes with W and for one that does not.

    Random W1 meets the condition: `W1 V0` and `W1^T U0` keep rank r.
    """
    rng = np.random.default_rng(seed)
    n, m, r = shape
    factors, h = start(rng, n, m, r), 0.25
    W0, W1 = matrix(factors), with_spectrum(rng, n, m, np.linspace(1, 0.5, r))
    G0 = (W0 - W1) / h
    overlaps = (W1 @ factors[2], W1.T @ factors[0])
    assume(min(np.linalg.svd(part, compute_uv=False)[r - 1] for part in overlaps) > 1e-2)

    def gradient(W):
        return G0 if constant else G0 + (W - W0)

    new = one_step(RankAdaptive(adapt_every=1), factors, gradient, h, Policy(Tolerance(1e-5)))
    assert len(new[1]) == r
    np.testing.assert_allclose(matrix(new), W1, atol=1e-9)


@pytest.mark.parametrize("kind", partly_slow([LogCosh], [LeastSquares]))
@few
@given(shapes(), seeds, st.sampled_from([0.01, 0.1, 0.4]), st.sampled_from([1.0, 0.5]))
@example((5, 5, 5), 0, 0.4, 1.0)
@example((1, 6, 1), 0, 0.4, 1.0)
@example((6, 1, 1), 0, 0.4, 1.0)
def test_the_loss_descends_up_to_the_truncation(kind, shape, seed, tau, scale):
    """`loss_after <= loss_before + ||G(W^)|| theta + L theta^2 / 2` with W^ before truncation.

    And `loss(W^) <= loss_before - h/2 ||P||^2` for the part P of the gradient that the K- and
    the L-step see, because the augmented bases hold it.
    """
    rng = np.random.default_rng(seed)
    problem = kind.random(rng, *shape[:2])
    h = scale / problem.lipschitz
    factors = start(rng, *shape)
    for _ in range(15):
        before = problem.loss(matrix(factors))
        grown = one_step(
            RankAdaptive(adapt_every=1), factors, problem.gradient, h, Policy(KeepAll())
        )
        after = one_step(
            RankAdaptive(adapt_every=1), factors, problem.gradient, h, Policy(Tolerance(tau))
        )
        W = matrix(grown)
        G, U, V = problem.gradient(matrix(factors)), factors[0], factors[2]
        seen = max(np.sum((G @ V) ** 2), np.sum((G.T @ U) ** 2))
        slack = 1e-10 * (1 + before)
        assert problem.loss(W) <= before - h / 2 * seen + slack
        theta = tau * np.linalg.norm(W)
        bound = np.linalg.norm(problem.gradient(W)) * theta + problem.lipschitz * theta**2 / 2
        assert problem.loss(matrix(after)) <= before + bound + slack
        factors = after


def test_a_step_does_not_depend_on_how_the_matrix_is_factored():
    """`(U O)(O^T S R)(V R)^T` is the same W, and so are the tangent space and the step."""
    rng = np.random.default_rng(7)
    problem, (u, s, v) = LogCosh.random(rng, 9, 8), start(rng, 9, 8, 3)
    left, right = orthonormal(rng, 3, 3), orthonormal(rng, 3, 3)
    other = Point(u @ left, left.T @ s @ right, v @ right)
    policy = Policy(Tolerance(0.05))
    first, second = (
        one_step(RankAdaptive(adapt_every=1), f, problem.gradient, 0.5, policy)
        for f in ((u, s, v), other)
    )
    np.testing.assert_allclose(matrix(first), matrix(second), atol=1e-12)
    np.testing.assert_allclose(first[1], second[1], atol=1e-12)
