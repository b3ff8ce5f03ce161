"""Values that are not finite, and mixed precision: what a bad step leaves behind."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.explosions import Explodes, assert_kept, state

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, RankAdaptive

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 6)).astype("float32")
Y = rng.standard_normal((16, 3)).astype("float32")

# A step in a chart takes one pass over the batch; an algorithm step by step takes two.
TWO_PASSES = FixedRank(adapt_every=1)
INTEGRATORS = pytest.mark.parametrize(
    "integrator", ["rank_adaptive", TWO_PASSES], ids=["one pass", "two passes"]
)


def make(integrator="rank_adaptive", **compile_arguments):
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=3, name="low")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.2, name="dropout")(x)
    model = LowRankModel(inputs, keras.layers.Dense(3, name="head")(x))
    model.compile("sgd", "mse", integrator=integrator, **compile_arguments)
    return model


def spoiled(rows=slice(None), value=np.nan):
    data = X.copy()
    data[rows, 0] = value
    return data


@pytest.mark.parametrize(
    "integrator, value",
    partly_slow([("parallel", -np.inf), (TWO_PASSES, np.nan)], [("rank_adaptive", np.nan)]),
)
def test_bad_data_raise_and_nothing_of_the_step_is_kept(integrator, value):
    model = make(integrator)
    model.fit(X, Y, batch_size=8, verbose=0)
    before = state(model)
    assert any("moving_mean" in path for path in before)
    assert any("seed_generator" in path for path in before)
    assert any("iteration" in path for path in before)
    words = r"not finite \(NaN or Inf\) came up in the loss at training step 3\. The step was"
    with pytest.raises(FloatingPointError, match=words):
        model.fit(spoiled(value=value), Y, batch_size=16, verbose=0)
    assert_kept(model, before)
    assert all(np.all(np.isfinite(weight)) for weight in model.get_weights())


def test_infinite_loss_raises_where_all_gradients_are_finite():
    def loss(y, y_pred):
        bad = tf.where(tf.reduce_any(y > 100.0), np.inf, 0.0)
        return tf.square(tf.nn.tanh(y) - y_pred) + bad

    model = make("parallel")
    model.compile("adam", loss, integrator="parallel", run_eagerly=True)
    model.train_on_batch(X, Y)
    before = state(model)
    with pytest.raises(FloatingPointError, match="the loss at training step 2"):
        model.train_on_batch(X, 1e4 * Y)
    assert_kept(model, before)


def test_bad_target_raises():
    model = make(run_eagerly=True)
    model.fit(X, Y, verbose=0)
    before = state(model)
    with pytest.raises(FloatingPointError, match="training step 2"):
        model.train_on_batch(X, np.full_like(Y, np.nan))
    assert_kept(model, before)


@pytest.mark.parametrize("integrator, value", [("rank_adaptive", np.inf), (TWO_PASSES, np.nan)])
def test_bad_gradient_names_the_low_rank_layer_it_came_up_in(integrator, value):
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=3, name="low", use_bias=False)(inputs)
    x = LowRankDense(3, rank=3, name="second", use_bias=False)(Explodes(value)(x))
    model = LowRankModel(inputs, x)
    model.compile("sgd", "mse", integrator=integrator, run_eagerly=integrator is TWO_PASSES)
    model.train_on_batch(X, Y)
    before = state(model)
    words = "in the gradient of layer 'low' at training step 2"
    with pytest.raises(FloatingPointError, match=words):
        model.train_on_batch(1e4 * X, Y)
    assert_kept(model, before)


@pytest.mark.parametrize(
    "integrator, bad",
    partly_slow([("parallel", 2)], [("parallel", 0), (TWO_PASSES, 1), (TWO_PASSES, 2)]),
)
def test_bad_batch_amid_an_execution_keeps_the_steps_before_it(integrator, bad):
    data = spoiled(slice(4 * bad, 4 * bad + 1))
    model = make(integrator, steps_per_execution=4)
    twin = make(integrator)
    twin.set_weights(model.get_weights())
    for one in (model, twin):
        one.get_layer("dropout").seed_generator.state.assign([1, 2])
    with pytest.raises(FloatingPointError, match=f"at training step {bad + 1}"):
        model.fit(data, Y, batch_size=4, shuffle=False, verbose=0)
    for start in range(0, 4 * bad, 4):
        twin.train_on_batch(X[start : start + 4], Y[start : start + 4])
    assert model.ranks == twin.ranks and int(model.optimizer.iterations) == bad
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "way", partly_slow([{}, {"run_eagerly": True}], [{"steps_per_execution": 2}])
)
def test_after_an_error_the_model_can_be_saved_and_fit(way, tmp_path):
    model = make(**way)
    model.fit(X, Y, batch_size=8, verbose=0)
    with pytest.raises(FloatingPointError):
        model.fit(spoiled(), Y, batch_size=8, verbose=0)
    before = model.predict(X, verbose=0)
    model.save(tmp_path / "good.keras")
    again = keras.saving.load_model(tmp_path / "good.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), before)
    # The fault is forgotten, and the reported loss holds nothing of it.
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(history))
    assert int(model.optimizer.iterations) == 6


@pytest.mark.parametrize("bad", [8, 15])  # in the third of four batches, and in the last
@pytest.mark.parametrize("eager", [True, False])
def test_error_comes_in_the_epoch_of_the_bad_batch(eager, bad):
    batches, epochs = [], []
    model = make(run_eagerly=eager)
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda b, logs: batches.append(b),
        on_epoch_end=lambda e, logs: epochs.append(e),
    )
    data, good = spoiled(slice(bad, bad + 1)), bad // 4
    with pytest.raises(FloatingPointError, match=f"at training step {good + 1}"):
        model.fit(data, Y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[watch])
    # In a graph the host looks one step later, and at the end of the epoch.
    assert batches == list(range(good if eager else good + 1)) and not epochs
    assert int(model.optimizer.iterations) == good


# Mixed precision.


def half(initial_scale=None, policy="mixed_float16", integrator="rank_adaptive", **arguments):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=3, name="low", activation="tanh")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    outputs = keras.layers.Dense(3, dtype="float32", name="head")(x)
    model = LowRankModel(inputs, outputs)
    optimizer = keras.optimizers.SGD(0.1)
    if initial_scale:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=initial_scale)
    model.compile(optimizer, "mse", integrator=integrator, **arguments)
    return model


@pytest.mark.parametrize(
    "policy, integrator",
    partly_slow(
        [("mixed_float16", RankAdaptive(adapt_every=4)), ("mixed_bfloat16", TWO_PASSES)],
        [("mixed_float16", TWO_PASSES), ("mixed_bfloat16", "parallel")],
    ),
)
def test_mixed_precision_trains_with_float32_factors(policy, integrator):
    model = half(policy=policy, integrator=integrator, run_eagerly=integrator is TWO_PASSES)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    losses = model.fit(X, Y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert {v.dtype for v in model.get_layer("low").weights} == {"float32"}
    basis = model.get_layer("low").U.numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)


@pytest.mark.parametrize("integrator", partly_slow([TWO_PASSES], ["parallel"]))
def test_loss_scale_does_not_change_the_step(integrator):
    arguments = {"integrator": integrator, "truncation": 0.0, "run_eagerly": True}
    plain = half(policy="float32", **arguments)
    scaled = half(policy="float32", initial_scale=64.0, **arguments)
    scaled.set_weights(plain.get_weights())
    for model in (plain, scaled):
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    assert plain.ranks == scaled.ranks
    np.testing.assert_allclose(
        plain.get_layer("low").kernel, scaled.get_layer("low").kernel, atol=1e-5
    )
    np.testing.assert_allclose(
        plain.get_layer("head").kernel, scaled.get_layer("head").kernel, atol=1e-5
    )


@INTEGRATORS
def test_overflow_of_the_scaled_loss_skips_the_step_and_halves_the_scale(integrator):
    model = half(initial_scale=2.0**40, integrator=integrator)  # far above float16's 65504
    before = {v.path: v.numpy() for v in model.variables}
    model.train_on_batch(X, Y)
    assert float(model.optimizer.dynamic_scale) == 2.0**39
    assert int(model.optimizer.inner_optimizer.iterations) == 0
    for v in model.variables:
        if "seed" not in v.path:
            np.testing.assert_array_equal(v.numpy(), before[v.path], err_msg=v.path)
    # It comes down by itself and trains.
    losses = [model.train_on_batch(X, Y) for _ in range(60)]
    assert float(model.optimizer.dynamic_scale) < 2.0**39
    assert losses[-1] < losses[0]
    assert int(model.optimizer.inner_optimizer.iterations) > 0


@INTEGRATORS
def test_overflow_in_the_factors_alone_skips_the_step_of_all(integrator):
    # The compiled optimizer sees the head's finite gradients only: the decision must be joint.
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=3, name="low", use_bias=False)(inputs)
    model = LowRankModel(inputs, keras.layers.Dense(3, name="head")(Explodes()(x)))
    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0)
    model.compile(scaling, "mse", integrator=integrator, run_eagerly=True)
    before = model.get_weights()
    model.train_on_batch(1e4 * X, Y)
    for new, old in zip(model.get_weights(), before):
        np.testing.assert_array_equal(new, old)
    assert float(scaling.dynamic_scale) == 2.0


def test_overflow_that_no_scale_can_cure_raises_after_a_while():
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=3, name="low", use_bias=False)(inputs)
    model = LowRankModel(inputs, keras.layers.Dense(3, name="head")(Explodes()(x)))
    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0)
    model.compile(scaling, "mse", run_eagerly=True)
    with pytest.raises(FloatingPointError, match="gradient of layer 'low'"):
        for _ in range(10):
            model.train_on_batch(1e4 * X, Y)


def test_nan_in_the_data_raises_under_loss_scaling_and_leaves_the_scale():
    model = half(initial_scale=64.0, run_eagerly=True)
    model.train_on_batch(X, Y)
    before = state(model)
    with pytest.raises(FloatingPointError, match="the loss at training step 2"):
        model.train_on_batch(spoiled(), Y)
    assert_kept(model, before)
