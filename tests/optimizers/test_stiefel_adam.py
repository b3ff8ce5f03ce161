"""What is particular to Adam on the coordinates of U, S and V."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.adapted import dense, train
from reference.closed_form import LeastSquares, orthonormal
from reference.trajectories import defect, tangent_of, to_tensors
from reference.two_layers import X, Y, make

from keras_lowrank import LowRankDense, LowRankModel, Parallel, RankAdaptive, add_adapters
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold import Squares
from keras_lowrank.optimizers import StiefelAdam
from keras_lowrank.optimizers.options import make_rule


def first_move(chart, gradient, rate=0.01):
    """`h D` of the first step, as its parts."""
    rule = make_rule(StiefelAdam(rate), Parallel())
    zero, number = gradient.scaled(0.0), tf.constant(1.0, tf.float64)
    state = {"momentum": zero, "squares": Squares(*zero)}
    direction, _ = rule.direction(gradient, state, chart, rate, number)
    return direction.tangent.scaled(rule.step_size(rate, number))


def test_the_first_step_moves_every_coordinate_by_the_learning_rate():
    """As in Keras: U, S and V up to the part of the move that leaves the Stiefel manifold."""
    rng = np.random.default_rng(0)
    values = np.array([3.0, 1.0, 0.2])
    factors = orthonormal(rng, 9, 3), np.diag(values), orthonormal(rng, 7, 3)
    U, _, V = factors
    G = rng.standard_normal((9, 7))
    chart = Chart(to_tensors(factors, "float64"), tf.constant(values))
    K, S, L = (part.numpy() for part in first_move(chart, tangent_of(G, factors)))
    np.testing.assert_allclose(S, 0.01 * np.sign(U.T @ G @ V), rtol=1e-4)
    for part, basis, gradient, core in ((K, U, G @ V, S), (L, V, G.T @ U, S.T)):
        outside = np.eye(len(basis)) - basis @ basis.T
        signs = np.sign(outside @ gradient)
        move = (part - basis @ core) / values
        np.testing.assert_allclose(move, 0.01 * outside @ signs, atol=5e-6)


def test_of_a_column_on_trial_only_the_core_moves():
    """And active columns may turn to it."""
    rng = np.random.default_rng(0)
    U, S, V = orthonormal(rng, 9, 3), np.diag([3.0, 1.0, 1e-18]), orthonormal(rng, 7, 3)
    chart = Chart(to_tensors((U, S, V), "float64"), tf.constant([3.0, 1.0, 0.0], tf.float64))
    G = rng.standard_normal((9, 7))
    ordinary = (G @ V @ S.T, U.T @ G @ V, G.T @ U @ S)
    move = first_move(chart, chart.tangent([tf.constant(part) for part in ordinary]))
    for part in (move.K, move.L):
        np.testing.assert_array_equal(part[:, 2], 0.0)
    new = chart.step(move, 1.0).factors
    for before, after in ((U, new.U), (V, new.V)):
        np.testing.assert_array_equal(after[:, 2], before[:, 2])
    np.testing.assert_allclose(new.S[2, 2], -0.01 * np.sign(U.T @ G @ V)[2, 2], rtol=1e-4)
    turned = U[:, 2] @ new.U.numpy()[:, :2]
    outside = G @ V[:, :2] - U[:, :2] @ (U.T @ G @ V)[:2, :2]
    np.testing.assert_allclose(turned, -0.01 * U[:, 2] @ np.sign(outside), rtol=1e-3)


def test_it_descends_on_a_quadratic():
    rng = np.random.default_rng(0)
    problem = LeastSquares.random(rng, 8, 6)
    inputs = keras.Input((8,))
    layer = LowRankDense(6, rank=4, use_bias=False)
    model = LowRankModel(inputs, layer(inputs))
    x = problem.A.astype("float32")
    y = (problem.C @ np.linalg.inv(problem.B)).astype("float32")
    model.compile(StiefelAdam(0.02), "mse", integrator=Parallel(adapt_every=4), truncation=0.0)
    losses = [float(model.train_on_batch(x, y)) for _ in range(120)]
    best = np.sum(np.linalg.svd(y)[1][4:] ** 2) / y.size  # of rank 4, for an orthogonal A
    assert losses[-1] < 0.01 * losses[0] + 2 * best
    assert max(defect(layer.U.numpy()), defect(layer.V.numpy())) < 0.3


def test_an_adapter_that_starts_as_zero_trains():
    model = dense()
    add_adapters(model, rank=2)
    losses = train(model, steps=12, optimizer=StiefelAdam(0.02))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("units, rank", [(1, 1), (5, 1), (7, 5)])
def test_one_column_and_full_rank(units, rank):
    """Where nothing is outside of a basis, its coordinates are rounding and must not move it."""
    inputs = keras.Input((7,))
    layer = LowRankDense(units, rank=rank, use_bias=False)
    model = LowRankModel(inputs, layer(inputs))
    model.compile(StiefelAdam(0.02), "mse", integrator=RankAdaptive(adapt_every=4))
    y = np.resize(Y, (len(X), units))
    losses = [float(model.train_on_batch(X, y)) for _ in range(40)]
    assert losses[-1] < losses[0] and np.all(np.isfinite(layer.kernel))


def test_weights_of_another_rank_keep_the_means_of_the_squares():
    model, other = make(StiefelAdam(0.01)), make("sgd", ranks=(2, 2))
    model.train_on_batch(X, Y)

    def squares():
        named = {v.name: v.numpy() for v in model.optimizer.variables}
        return [named[f"first_squares_{part}"] for part in ("K", "S", "L")]

    before = squares()
    model.set_weights(other.get_weights())
    model._training.verify()
    for old, new in zip(before, squares()):
        means = np.mean(old, axis=1) if len(old) > 4 else np.full(2, np.mean(old))
        np.testing.assert_allclose(new, means[:, None] * np.ones(2), rtol=1e-5)
    losses = [float(model.train_on_batch(X, Y)) for _ in range(12)]
    assert losses[-1] < losses[0]


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="`amsgrad`.*Received: amsgrad=True"):
        make(StiefelAdam(amsgrad=True))
