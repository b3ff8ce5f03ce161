"""A kernel regularizer is what the same penalty is, written by hand on the kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import (
    Conditioning,
    FixedRank,
    LowRankDense,
    LowRankModel,
    Parallel,
    RankAdaptive,
    from_keras,
    to_keras,
)

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((24, 9)), rng.standard_normal((24, 4))
L2 = 0.3

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.02, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.02),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5),
    "adagrad": lambda: keras.optimizers.Adagrad(0.05),
}


class ByHand(LowRankModel):
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        kernel = self.get_layer("low").kernel
        return loss + L2 * keras.ops.sum(keras.ops.square(kernel))


def kernels(cls, optimizer, integrator, **arguments):
    """The matrix after each of some steps."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9,))
    low = LowRankDense(7, rank=2, activation="tanh", name="low", **arguments)
    model = cls(inputs, keras.layers.Dense(4, name="head")(low(inputs)))
    model.compile(optimizer(), "mse", integrator=integrator, truncation=0.1, run_eagerly=True)
    found = []
    for _ in range(5):
        model.train_on_batch(X, Y)
        found.append(np.asarray(low.kernel))
    return found


@pytest.mark.parametrize(
    "integrator", [Parallel(1), RankAdaptive(1), FixedRank(1), RankAdaptive(3)]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_regularizer_trains_as_the_penalty_by_hand(optimizer, integrator, float64):
    keras.config.set_dtype_policy("float64")
    optimizer = OPTIMIZERS[optimizer]
    by_hand = kernels(ByHand, optimizer, integrator)
    found = kernels(
        LowRankModel, optimizer, integrator, kernel_regularizer=keras.regularizers.L2(L2)
    )
    np.testing.assert_allclose(found, by_hand, rtol=1e-9, atol=1e-11)
    without = kernels(LowRankModel, optimizer, integrator)
    assert not np.allclose(found, without, rtol=1e-3)


# The spread of the singular values.


def spread(values, rank):
    """`||S^2 - a^2 I||_F` of singular values, as the paper writes it."""
    squares = np.square(values[:rank])
    return np.linalg.norm(squares - squares.mean())


@pytest.mark.parametrize("shape", [(9, 7), (5, 8), (6, 1), (3, 3, 4, 5)])
def test_conditioning_is_the_spread_of_the_singular_values(shape):
    kernel = rng.standard_normal(shape)
    matrix = kernel.reshape(-1, shape[-1])
    expected = spread(np.linalg.svd(matrix, compute_uv=False), min(matrix.shape))
    found = Conditioning(0.3, l2=0.1)(tf.constant(kernel))
    np.testing.assert_allclose(found, 0.3 * expected + 0.1 * np.sum(kernel**2), rtol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_a_layer_is_penalized_as_its_kernel_is(rank, float64):
    keras.config.set_dtype_policy("float64")
    low = LowRankDense(7, rank=rank, kernel_regularizer=Conditioning(0.3))
    low.build((None, 9))
    for variable in low.factors.variables:  # not orthonormal, as between full steps
        variable.assign(rng.standard_normal(variable.shape))
    values = np.linalg.svd(np.asarray(low.kernel), compute_uv=False)
    np.testing.assert_allclose(low.losses[0], 0.3 * spread(values, rank), rtol=1e-8, atol=1e-12)


class SpreadByHand(LowRankModel):
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        low = self.get_layer("low")
        gram = keras.ops.matmul(keras.ops.transpose(low.kernel), low.kernel)
        square = keras.ops.trace(gram)
        return loss + L2 * keras.ops.sqrt(keras.ops.sum(gram**2) - square**2 / low.rank)


@pytest.mark.parametrize("integrator", [Parallel(1), Parallel(3)])
def test_conditioning_trains_as_the_penalty_by_hand(integrator, float64):
    keras.config.set_dtype_policy("float64")
    optimizer = OPTIMIZERS["sgd"]
    by_hand = kernels(SpreadByHand, optimizer, integrator)
    found = kernels(LowRankModel, optimizer, integrator, kernel_regularizer=Conditioning(L2))
    np.testing.assert_allclose(found, by_hand, rtol=1e-7, atol=1e-9)
    without = kernels(LowRankModel, optimizer, integrator)
    assert not np.allclose(found, without, rtol=1e-3)


def test_conditioning_alone_makes_singular_values_equal():
    inputs = keras.Input((9,))
    low = LowRankDense(7, rank=3, kernel_regularizer=Conditioning(1.0))
    model = LowRankModel(inputs, 0.0 * low(inputs))
    model.compile(keras.optimizers.SGD(0.05), "mse", truncation=0.0, run_eagerly=True)
    low.S.assign(np.diag([1.0, 0.7, 0.4]))  # it starts with equal ones
    for _ in range(60):
        model.train_on_batch(X, np.zeros((24, 7)))
    after = low.factors.singular_values()[:3]
    assert after[0] / after[-1] < 1.05 and after[-1] > 0.3


def test_equal_singular_values_cost_nothing():
    low = LowRankDense(5, rank=3, kernel_initializer="zeros", kernel_regularizer=Conditioning(1.0))
    low.build((None, 4))
    assert float(low.losses[0]) == 0.0
    kernel = tf.eye(4)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        loss = Conditioning(1.0)(kernel)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(tape.gradient(loss, kernel), np.zeros((4, 4)))


def test_conditioning_is_saved_and_converted(tmp_path):
    inputs = keras.Input((9,))
    plain = keras.Model(
        inputs, keras.layers.Dense(7, kernel_regularizer=Conditioning(0.2), name="one")(inputs)
    )
    low = from_keras(plain, rank=3, only_smaller=False)
    low.save(tmp_path / "low.keras")
    again = keras.saving.load_model(tmp_path / "low.keras")
    back = to_keras(again, style="merged")
    for model in (low, again, back):
        assert model.get_layer("one").kernel_regularizer.get_config() == {"strength": 0.2, "l2": 0}
    np.testing.assert_allclose(low.losses[0], again.losses[0])


@pytest.mark.parametrize("arguments", [{"strength": -1}, {"strength": 0.1, "l2": "much"}])
def test_wrong_strengths_are_refused(arguments):
    with pytest.raises(ValueError, match="must be a number that is not negative. Received: "):
        Conditioning(**arguments)
