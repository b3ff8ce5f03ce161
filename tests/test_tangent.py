"""The tangent gradient and the corner of every kind of layer, in one pass."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import parallel
from reference.closed_form import matrix
from reference.probing import (
    cases,
    eager_and_traced,
    full_gradient,
    loss_of,
    make,
    probe_gradients,
    random_sides,
)

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.linalg import complement
from keras_lowrank.substitution import substitute
from keras_lowrank.tangent import TangentProbe


@cases
@eager_and_traced
def test_one_pass_gives_the_tangent_gradient_and_the_corner(case, traced):
    """`(G V, G^T U)`, `Q^T G Z` and dx, where G is the gradient of a full kernel."""
    layer, full, x = make(case, bias_initializer="normal", activation="tanh")
    full.bias.assign(layer.bias)
    G, dx = full_gradient(full, layer, x)
    U, _, V = (factor.numpy() for factor in layer.factors.read())
    K, L, found_dx, corner, q, z = probe_gradients(layer, x, random_sides(layer, 3), traced)
    np.testing.assert_allclose(K, G @ V, atol=1e-10)
    np.testing.assert_allclose(L, G.T @ U, atol=1e-10)
    np.testing.assert_allclose(found_dx, dx, atol=1e-10)
    assert q.shape[1] == z.shape[1] == 3
    np.testing.assert_allclose(corner, q.T @ G @ z, atol=1e-10)


@cases
def test_a_substitution_does_not_change_the_outputs(case):
    layer, full, x = make(case)
    full.kernel.assign(layer.kernel)
    full.bias.assign(layer.bias)
    with substitute({layer.factors: TangentProbe(layer.factors.read())}):
        inside = layer(x)
    np.testing.assert_allclose(inside, full(x), atol=1e-12)
    np.testing.assert_allclose(layer(x), full(x), atol=1e-12)


@eager_and_traced
def test_a_layer_called_twice_adds_up_both_calls(traced):
    """On its own output and on the inputs again: pair, dx and corner are those of the sum."""
    layer, full, x = make("dense 2-D", use_bias=False)
    pad = tf.constant(np.eye(5, 6))

    def forward(model):
        return lambda x: model(model(x) @ pad) + 2.0 * model(x)

    full.kernel.assign(layer.kernel)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = loss_of(forward(full)(x))
    G, dx = (t.numpy() for t in tape.gradient(loss, [full.kernel.value, x]))
    sides = random_sides(layer, 2)
    K, L, found_dx, corner, q, z = probe_gradients(layer, x, sides, traced, forward(layer))
    U, _, V = (factor.numpy() for factor in layer.factors.read())
    np.testing.assert_allclose(K, G @ V, atol=1e-10)
    np.testing.assert_allclose(L, G.T @ U, atol=1e-10)
    np.testing.assert_allclose(found_dx, dx, atol=1e-10)
    np.testing.assert_allclose(corner, q.T @ G @ z, atol=1e-10)


@pytest.mark.parametrize("faint", [1.0, 1e-2, 1e-3])
def test_a_faint_direction_costs_the_corner_its_faintness_and_not_the_square_of_it(faint):
    """In float32, against `Q^T G Z` in float64 with the same Q and Z; ten roundings at 1."""
    layer, full, x = make("dense 2-D", dtype="float32")
    full.bias.assign(layer.bias)
    G, _ = full_gradient(full, layer, x)
    # Two columns that differ by little: then the faint direction is a difference of large ones.
    mix = tf.constant([[1.0, 1.0], [0.0, faint]])
    sides = [(block @ mix, basis) for block, basis in random_sides(layer, 2)]
    corner = probe_gradients(layer, x, sides)[3]
    left, right = (complement(*side) for side in sides)
    q, z = (
        side.formed(basis).numpy().astype("float64")
        for side, (_, basis) in zip((left, right), sides)
    )
    assert corner.shape == (2, 2)
    bound = 10 * 2.0**-23 / faint * np.linalg.norm(G)
    np.testing.assert_allclose(corner, q.T @ G @ z, atol=bound)


def test_the_corner_of_a_layer_without_calls_or_without_directions():
    layer, _, x = make("dense 2-D")
    probe = TangentProbe(layer.factors.read(), keep_calls=True)
    (left, right) = (complement(*side) for side in random_sides(layer, 2))
    corner = probe.coupling(left, right)
    assert corner.dtype == tf.float64
    np.testing.assert_array_equal(corner, np.zeros((2, 2)))
    nothing = complement(tf.zeros([6, 2], tf.float64), layer.factors.read().U)
    with substitute({layer.factors: probe}), tf.GradientTape() as tape:
        tape.watch(probe.K)
        loss = loss_of(layer(x))
    tape.gradient(loss, probe.K)
    assert probe.coupling(nothing, right).shape == (0, 2)


@cases
def test_mixed_precision_computes_in_bfloat16_and_returns_float32(case):
    layer, _, x = make(case, dtype="mixed_bfloat16")
    assert layer.U.dtype == layer.S.dtype == layer.V.dtype == "float32"
    exact, exact_full, wide = make(case, dtype="float64")
    for variable, source in zip(exact.factors.variables, layer.factors.variables):
        variable.assign(tf.cast(source.value, tf.float64))
    G, _ = full_gradient(exact_full, exact, wide)
    U, _, V = (factor.numpy() for factor in exact.factors.read())
    with substitute({layer.factors: TangentProbe(layer.factors.read())}):
        assert layer(x).dtype == tf.bfloat16
    K, L, _, corner, q, z = probe_gradients(layer, x, random_sides(layer, 2))
    for found, expected in ((K, G @ V), (L, G.T @ U), (corner, q.T @ G @ z)):
        assert found.dtype == np.float32
        # 8 bits of mantissa, summed over a few dozen products.
        np.testing.assert_allclose(found, expected, atol=0.05 * np.linalg.norm(G))


def test_a_corner_out_of_a_loop_is_refused_with_a_way_out():
    class Looped(LowRankModel):
        def __init__(self):
            super().__init__()
            self.layer = LowRankDense(4, rank=2)

        def call(self, x):
            return tf.while_loop(lambda i, _: i < 2, lambda i, y: (i + 1, self.layer(y)), (0, x))[1]

    model = Looped()
    x = np.random.default_rng(9).standard_normal((8, 4)).astype("float32")
    model(x)
    model.compile("sgd", "mse", integrator="rank_adaptive")
    with pytest.raises(ValueError, match=r"cannot read them where .* use `integrator='parallel'`"):
        model.fit(x, x, verbose=0)
    # The way out is one: the whole tangent gradient is found through the loop.
    h, W = 0.01, model.layer.kernel.numpy().astype("float64")
    factors = [np.asarray(factor, "float64") for factor in model.layer.factors.read()]
    model.compile(keras.optimizers.SGD(h), "mse", integrator="parallel")
    model.freeze_ranks()
    model.fit(x, x, verbose=0)

    def gradient(W):
        d = 2 / x.size * (x @ W @ W - x)
        return x.T @ d @ W.T + (x @ W).T @ d

    expected = matrix(parallel.riemannian_step(factors, gradient, h))
    assert np.abs(expected - W).max() > 1e-3
    np.testing.assert_allclose(model.layer.kernel, expected, atol=1e-6)


@cases
def test_in_a_plain_model_autodiff_gives_the_gradients_of_the_factors(case):
    """Against central differences, at factors that are not orthonormal either."""
    layer, _, x = make(case, bias_initializer="normal", activation="tanh")
    model = keras.Sequential([keras.Input(batch_shape=x.shape, dtype="float64"), layer])
    rng = np.random.default_rng(3)
    for variable in layer.factors.variables:
        variable.assign(rng.standard_normal(variable.shape))
    assert len(model.trainable_variables) == 4
    with tf.GradientTape() as tape:
        loss = loss_of(model(x))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    evaluate = tf.function(lambda: loss_of(model(x)))
    for variable, gradient in zip(model.trainable_variables, gradients):
        value, found = variable.numpy(), gradient.numpy()
        for index in zip(*np.unravel_index(rng.permutation(value.size)[:6], value.shape)):
            shift = np.zeros_like(value)
            shift[index] = 1e-5
            variable.assign(value + shift)
            above = float(evaluate())
            variable.assign(value - shift)
            below = float(evaluate())
            variable.assign(value)
            np.testing.assert_allclose(found[index], (above - below) / 2e-5, atol=1e-7, rtol=1e-6)


def test_a_plain_model_trains_the_factors_by_their_own_gradients():
    """One step of SGD moves each factor by its gradient: nothing of the manifold acts here."""
    layer, _, x = make("dense 2-D", dtype="float32", use_bias=False)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    y = np.random.default_rng(4).standard_normal((7, 5)).astype("float32")
    U, S, V = (factor.numpy() for factor in layer.factors.read())
    G = 2 / y.size * x.numpy().T @ (x.numpy() @ U @ S @ V.T - y)
    model.fit(x, y, batch_size=7, verbose=0)
    np.testing.assert_allclose(layer.U, U - 0.5 * G @ V @ S.T, atol=1e-6)
    np.testing.assert_allclose(layer.S, S - 0.5 * U.T @ G @ V, atol=1e-6)
    np.testing.assert_allclose(layer.V, V - 0.5 * G.T @ U @ S, atol=1e-6)
