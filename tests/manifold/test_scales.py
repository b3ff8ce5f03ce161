"""What is decided about a matrix does not depend on its unit, nor on the type that holds it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from reference.cases import few, seeds

from keras_lowrank import Budget, LowRankDense, LowRankModel, Tolerance
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.options import clip_factors
from keras_lowrank.training.faults import FaultRecord, are_finite

SCALES = [1e-36, 1e-30, 1e-19, 1.0, 1e19, 1e30]


@few
@given(seed=seeds, tau=st.sampled_from([0.0, 0.01, 0.1, 0.5]), scale=st.sampled_from(SCALES))
def test_a_tolerance_keeps_the_same_rank_in_every_unit(seed, tau, scale):
    rng = np.random.default_rng(seed)
    values = np.sort(10.0 ** rng.uniform(-1.5, 0, 8))[::-1]
    small = tf.constant(values * scale, tf.float32)
    rank = int(Tolerance(tau).rank(tf.constant(values, tf.float32), None))
    assert int(Tolerance(tau).rank(small, None)) == rank
    absolute = Tolerance(tau * scale * 1.0001, relative=False).rank(small, None)
    expected = Tolerance(tau * 1.0001, relative=False).rank(tf.constant(values), None)
    assert int(absolute) == int(expected)


def test_a_matrix_of_zeros_keeps_nothing():
    for tolerance in (Tolerance(0.0), Tolerance(0.5), Tolerance(0.1, relative=False)):
        assert int(tolerance.rank(tf.zeros([4]), None)) == 0
    assert int(Tolerance(0.0, relative=False).rank(tf.zeros([4]), None)) == 0


@pytest.mark.parametrize("scale", SCALES)
def test_a_budget_is_spent_alike_in_every_unit(scale):
    def ranks(scales):
        cores = [np.diag([1.0, 0.5, 0.25, 0.1]), np.diag([1.0, 0.9, 0.01, 0.001])]
        cores = [tf.constant(core * unit, tf.float32) for core, unit in zip(cores, scales)]
        matrices = [Point(tf.zeros([9, 4]), core, tf.zeros([7, 4])) for core in cores]
        planned = Budget(weights=16 * 5, steps=1).plan(matrices, tf.constant(2.0), (0, 0), [1, 1])
        return [int(one.rank(None, 4)) for one in planned]

    assert ranks([1.0, scale]) == ranks([1.0, 1.0]) == [3, 2]


def gradients(scale, dtype):
    rng = np.random.default_rng(0)
    parts = (rng.standard_normal(shape) for shape in ((9, 3), (3, 3), (7, 3)))
    tangent = TangentVector(*(tf.constant(scale * part, dtype) for part in parts))
    return tangent, tf.constant(scale * rng.standard_normal(5), dtype)


@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
def test_gradients_in_float64_are_clipped_in_float64(option, scale):
    tangent, other = gradients(scale, "float64")
    limit = 0.5 * scale
    optimizer = keras.optimizers.SGD(**{option: limit})
    (factor,), common = clip_factors(optimizer, [tangent], [other, None])
    assert factor.dtype == tf.float64
    square = tangent.squared_norm()
    square += 0.0 if common is None else tf.reduce_sum(other**2)
    np.testing.assert_allclose(factor * tf.sqrt(square), limit, rtol=1e-14)


@pytest.mark.parametrize("value", [1e39, 1e200, -1e300])
def test_what_float32_does_not_hold_is_finite_in_float64(value):
    large = [tf.constant([[value, 1.0]], tf.float64), tf.ones([3]), tf.constant(value, tf.float64)]
    assert bool(are_finite(large))
    record = FaultRecord()
    for bad in (np.nan, np.inf):
        wrong = tf.constant([[bad, value]], tf.float64)
        assert not bool(are_finite([*large, wrong]))
        record.record(tf.constant(True), {}, [("here", large), ("there", [wrong])], 3)
        with pytest.raises(FloatingPointError, match="came up in there at training step 4"):
            raise record.pop_error()


def test_a_model_in_float64_trains_where_its_loss_is_beyond_float32(float64):
    keras.config.set_dtype_policy("float64")
    inputs = keras.Input((6,))
    low = LowRankDense(5, rank=3)
    model = LowRankModel(inputs, low(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse", truncation=0.0, run_eagerly=True)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 6)), 1e60 * rng.standard_normal((8, 5))
    losses = [model.train_on_batch(x, y) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2] > 1e100
    assert np.max(np.abs(low.kernel)) > 1e55
