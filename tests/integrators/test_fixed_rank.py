import keras
import numpy as np
import tensorflow as tf
from hypothesis import assume, example, given
from reference.cases import few, seeds, shapes, start
from reference.closed_form import (
    matrix,
    with_spectrum,
)
from reference.trajectories import (
    one_step,
)

from keras_lowrank import (
    FixedRank,
    LowRankConv2D,
    LowRankDense,
    LowRankEmbedding,
    LowRankGRU,
    LowRankModel,
)


@few
@given(shapes(), seeds)
@example((6, 6, 6), 0)
@example((1, 5, 1), 0)
@example((5, 1, 1), 0)
@example((7, 8, 1), 0)
def test_a_step_of_constant_gradient_to_a_matrix_of_the_same_rank_lands_on_it(shape, seed):
    rng = np.random.default_rng(seed)
    n, m, r = shape
    factors, h = start(rng, n, m, r), 0.25
    W1 = with_spectrum(rng, n, m, np.linspace(1, 0.5, r))
    G = (matrix(factors) - W1) / h
    overlaps = (W1 @ factors[2], W1.T @ factors[0])
    assume(min(np.linalg.svd(part, compute_uv=False)[r - 1] for part in overlaps) > 1e-2)
    new = one_step(FixedRank(), factors, lambda W: G, h)
    np.testing.assert_allclose(matrix(new), W1, atol=1e-9)


def test_the_second_pass_knows_the_extents_that_are_no_ranks():
    """Layers that ask for the last extent of their inputs come behind ones without a bias."""
    inputs = keras.Input((6,), dtype="int32")
    x = LowRankEmbedding(11, 8, rank=3)(inputs)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.LayerNormalization()(LowRankGRU(7, rank=3, use_bias=False)(x))
    x = keras.layers.Reshape((3, 3, 1))(LowRankDense(9, rank=3, use_bias=False)(x))
    x = LowRankConv2D(4, 2, rank=2, use_bias=False)(x)
    x = keras.layers.DepthwiseConv2D(2)(x)
    model = LowRankModel(inputs, LowRankDense(2, rank=1)(keras.layers.Flatten()(x)))
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), "mse", integrator=FixedRank(adapt_every=1)
    )
    rng = np.random.default_rng(0)
    history = model.fit(
        rng.integers(0, 11, (16, 6)), rng.standard_normal((16, 2)), epochs=3, verbose=0
    )
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_both_passes_draw_the_same_random_numbers_also_without_a_seed():
    drawn = []

    class Noise(keras.layers.Layer):
        def call(self, inputs, training=False):
            noise = keras.random.normal(keras.ops.shape(inputs))
            if training:
                tf.py_function(lambda values: drawn.append(values.numpy()), [noise], [])
            return inputs + noise

    inputs = keras.Input((4,))
    model = LowRankModel(inputs, LowRankDense(3, rank=2)(Noise()(inputs)))
    model.compile(keras.optimizers.SGD(0.01), "mse", integrator=FixedRank(adapt_every=1))
    model.fit(np.ones((8, 4)), np.ones((8, 3)), batch_size=4, verbose=0)
    first, again, second, once_more = drawn[-4:]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(second, once_more)
    assert np.abs(first - second).max() > 0.1


def test_both_passes_of_a_stateful_layer_go_on_from_the_same_state():
    seen = []

    class Spy(keras.layers.Layer):
        def call(self, inputs, training=False):
            if training:
                tf.py_function(lambda values: seen.append(values.numpy()), [inputs], [])
            return inputs

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((4, 3), batch_size=2)
    x = Spy()(keras.layers.LSTM(5, stateful=True, trainable=False)(inputs))
    model = LowRankModel(inputs, LowRankDense(3, rank=2)(x))
    model.compile(keras.optimizers.SGD(0.01), "mse", integrator=FixedRank(adapt_every=1))
    model.fit(np.ones((4, 4, 3)), np.ones((4, 3)), batch_size=2, shuffle=False, verbose=0)
    first, again, second, once_more = seen[-4:]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(second, once_more)
    assert np.abs(first - second).max() > 1e-3
