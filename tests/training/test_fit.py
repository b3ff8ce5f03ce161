"""Training by `fit`: everything that Keras offers behaves as in Keras."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow

from keras_lowrank import (
    FixedRank,
    KeepRank,
    LowRankDense,
    LowRankModel,
    Parallel,
    RankAdaptive,
    Tolerance,
)

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 6)).astype("float32")
Y = rng.standard_normal((16, 3)).astype("float32")
LABELS = rng.integers(0, 3, 16)

# Algorithms step by step, of two passes over a batch.
RANK_ADAPTIVE, FIXED_RANK = RankAdaptive(adapt_every=1), FixedRank(adapt_every=1)
STEP_BY_STEP = pytest.mark.parametrize(
    "integrator", [RANK_ADAPTIVE, FIXED_RANK], ids=["rank_adaptive", "fixed_rank"]
)
INTEGRATORS = pytest.mark.parametrize("integrator", ["rank_adaptive", FIXED_RANK])


def make(rank=3, middle=(), seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=rank, activation="tanh", name="low", **kwargs)(inputs)
    for layer in middle:
        x = layer(x)
    return LowRankModel(inputs, keras.layers.Dense(3, name="head")(x))


def twins(wrap=lambda outputs: outputs, **kwargs):
    """A square low-rank layer at full rank, and the same function in layers of Keras alone.

    Its bases span everything, so each integrator's step is the step of gradient descent.
    """
    inputs = keras.Input((6,))
    low = LowRankDense(6, rank=6, **kwargs)
    dense = keras.layers.Dense(6, **kwargs)
    ours = LowRankModel(inputs, wrap(low(inputs)))
    theirs = keras.Model(inputs, wrap(dense(inputs)))
    dense.set_weights([low.kernel, low.bias])
    return ours, theirs, low, dense


def assert_same_weights(one, other, atol=1e-5):
    """Of the factors only their product is compared: close singular values rotate freely."""
    assert one.ranks == other.ranks
    for path in one.ranks:
        ours, theirs = (m.get_layer(path).kernel for m in (one, other))
        np.testing.assert_allclose(ours, theirs, atol=atol)
    rest = [[v for v in m.variables if v.name not in "USV"] for m in (one, other)]
    for ours, theirs in zip(*rest, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=atol)


# Against keras.Model.


WEIGHTED = {
    "plain": {},
    "sample weights": {"sample_weight": np.linspace(0.0, 2.0, 16, dtype="float32")},
    "class weights": {"class_weight": {0: 1.0, 1: 5.0, 2: 0.1}},
}


@STEP_BY_STEP
@pytest.mark.parametrize("case", list(WEIGHTED))
def test_losses_metrics_and_steps_equal_those_of_keras(case, integrator):
    ours, theirs, low, dense = twins(activation="softmax")
    arguments = {
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        "weighted_metrics": ["accuracy"],
        "run_eagerly": True,
    }
    ours.compile(
        keras.optimizers.SGD(0.5), integrator=integrator, truncation=KeepRank(), **arguments
    )
    theirs.compile(keras.optimizers.SGD(0.5), **arguments)
    fits = [
        one.fit(X, LABELS, batch_size=6, shuffle=False, verbose=0, **WEIGHTED[case])
        for one in (ours, theirs)
    ]
    assert fits[0].history.keys() == fits[1].history.keys()
    for name, values in fits[1].history.items():
        np.testing.assert_allclose(fits[0].history[name], values, rtol=1e-5)
    np.testing.assert_allclose(low.kernel, dense.kernel, atol=1e-5)
    np.testing.assert_allclose(low.bias, dense.bias, atol=1e-5)


def test_fit_on_a_data_set_and_train_on_batch_take_the_same_step():
    models = [make() for _ in range(2)]
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    models[0].fit(tf.data.Dataset.from_tensors((X, Y)), verbose=0)
    models[1].train_on_batch(X, Y)
    assert_same_weights(*models)


class Pull(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


@STEP_BY_STEP
@pytest.mark.parametrize("kind", ["add_loss", "activity_regularizer"])
def test_losses_that_layers_add_are_trained_and_reported(kind, integrator):
    if kind == "add_loss":
        ours, theirs, low, dense = twins(wrap=lambda outputs: Pull()(outputs))
    else:
        ours, theirs, low, dense = twins(activity_regularizer=keras.regularizers.L2(0.1))
    ours.compile("sgd", "mse", integrator=integrator, truncation=KeepRank(), run_eagerly=True)
    theirs.compile("sgd", "mse", run_eagerly=True)
    losses = [m.fit(X, X, epochs=2, verbose=0).history["loss"] for m in (ours, theirs)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(low.kernel, dense.kernel, atol=1e-5)


# Ways to run.


@pytest.mark.parametrize(
    "way, integrator",
    partly_slow(
        [
            ({"steps_per_execution": 4}, RankAdaptive(adapt_every=4)),
            ({"run_eagerly": True}, FIXED_RANK),
        ],
        [
            ({"steps_per_execution": 4}, FIXED_RANK),
            ({"run_eagerly": True}, RankAdaptive(adapt_every=4)),
        ],
    ),
)
def test_ways_to_run_agree_with_the_plain_run(way, integrator):
    models = [make() for _ in range(2)]
    histories = []
    for model, arguments in zip(models, ({}, way)):
        model.compile(keras.optimizers.SGD(0.1), "mse", integrator=integrator, **arguments)
        fit = model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        histories.append(fit.history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-5)
    assert_same_weights(*models)
    assert [int(m.optimizer.iterations) for m in models] == [8, 8]


def test_validation_split_and_callbacks_see_what_keras_gives():
    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((batch, set(logs)))

    seen = []
    model = make()
    model.compile("sgd", "mse", metrics=["mae"], run_eagerly=True)
    stop = keras.callbacks.EarlyStopping(patience=0, min_delta=1e9)
    history = model.fit(
        X, Y, validation_split=0.25, batch_size=4, epochs=9, verbose=0, callbacks=[stop, Watch()]
    ).history
    assert set(history) == {"loss", "mae", "val_loss", "val_mae"}
    assert len(history["loss"]) == 2  # stopped after the first epoch without improvement
    assert seen == [(b, {"loss", "mae"}) for _ in range(2) for b in range(3)]


def test_callback_that_sets_the_learning_rate_reaches_the_factors():
    model = make(truncation=KeepRank())
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.0 if epoch else 0.1)
    model.fit(X, Y, verbose=0, callbacks=[schedule])
    kernel = model.get_layer("low").kernel.numpy()
    model.fit(X, Y, verbose=0, initial_epoch=1, epochs=2, callbacks=[schedule])
    np.testing.assert_allclose(model.get_layer("low").kernel, kernel, atol=1e-6)


# Optimizers.


@INTEGRATORS
def test_learning_rate_schedule_moves_the_factors(integrator):
    class Once(keras.optimizers.schedules.LearningRateSchedule):
        """A step in the second step only."""

        def __call__(self, step):
            return tf.where(tf.equal(step, 1), 0.1, 0.0)

    model = make()
    arguments = {"integrator": integrator, "truncation": 0.0, "run_eagerly": True}
    model.compile(keras.optimizers.SGD(Once()), "mse", **arguments)
    kernels = [model.get_layer("low").kernel.numpy()]
    for _ in range(3):
        model.train_on_batch(X, Y)
        kernels.append(model.get_layer("low").kernel.numpy())
    moves = [np.linalg.norm(new - old) for old, new in itertools.pairwise(kernels)]
    assert moves[1] > 1e-3 > 1e-5 > max(moves[0], moves[2])


def test_optimizer_that_is_refused_once_a_subclass_is_built_raises_in_fit():
    class Late(LowRankModel):
        def build(self, shape):
            self.low = LowRankDense(3, rank=2)
            self.low.build(shape)

        def call(self, inputs):
            return self.low(inputs)

    model = Late()
    model.compile("lion", "mse")  # no low-rank layer is known yet
    with pytest.raises(ValueError, match="Lion has no rule"):
        model.fit(X, Y, verbose=0)


def test_any_optimizer_is_free_when_all_low_rank_layers_are_frozen():
    model = make()
    model.get_layer("low").trainable = False
    model.compile("lion", "mse", run_eagerly=True)
    before = model.get_layer("low").kernel.numpy()
    losses = model.fit(X, Y, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    np.testing.assert_array_equal(model.get_layer("low").kernel, before)


def test_frozen_layer_does_not_move_beside_one_that_does():
    model = make(middle=[LowRankDense(6, rank=2, name="frozen")])
    model.get_layer("frozen").trainable = False
    model.compile("sgd", "mse", run_eagerly=True)
    before = {name: model.get_layer(name).get_weights() for name in ("low", "frozen")}
    model.fit(X, Y, verbose=0)
    for new, old in zip(model.get_layer("frozen").get_weights(), before["frozen"]):
        np.testing.assert_array_equal(new, old)
    assert np.any(model.get_layer("low").bias != before["low"][3])


@INTEGRATORS
def test_model_without_other_variables_trains_and_counts_its_steps(integrator):
    inputs = keras.Input((6,))
    model = LowRankModel(inputs, LowRankDense(3, rank=2, use_bias=False)(inputs))
    model.compile("sgd", "mse", integrator=integrator, run_eagerly=integrator is FIXED_RANK)
    losses = model.fit(X, Y, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
    assert int(model.optimizer.iterations) == 12
    assert len(model.weights) == 3  # what the optimizer is given in their place is no weight


# State that a forward pass changes.


@pytest.mark.parametrize("integrator", partly_slow(["parallel", FIXED_RANK], [RANK_ADAPTIVE]))
def test_batch_statistics_are_updated_once_a_step(integrator):
    norm = keras.layers.BatchNormalization(momentum=0.5)
    model = make(middle=[norm])
    eager = {"run_eagerly": integrator == "parallel"}
    model.compile(keras.optimizers.SGD(0.0), "mse", integrator=integrator, **eager)
    seen = model.get_layer("low")(X).numpy()
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(norm.moving_mean, 0.5 * seen.mean(axis=0), atol=1e-5)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(norm.moving_mean, 0.75 * seen.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    "integrator, passes", [("rank_adaptive", 1), (RANK_ADAPTIVE, 2), (FIXED_RANK, 2)]
)
def test_dropout_uses_one_mask_a_step(integrator, passes):
    class Spy(keras.layers.Layer):
        def call(self, inputs):
            if hasattr(inputs, "numpy"):  # not while the model is built on symbols
                masks.append(inputs.numpy() == 0)
            return inputs

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    masks = []
    dropout = keras.layers.Dropout(0.5, seed=3)
    model = make(middle=[dropout, Spy()])
    model.compile(keras.optimizers.SGD(0.1), "mse", integrator=integrator, run_eagerly=True)
    masks.clear()
    for _ in range(2):
        model.train_on_batch(X, Y)
    # The model may run once more to be built, before the first step.
    first, second = masks[-2 * passes : -passes], masks[-passes:]
    assert 0.2 < np.mean(first[0]) < 0.8
    for mask in first[1:]:
        np.testing.assert_array_equal(mask, first[0])
    for mask in second[1:]:
        np.testing.assert_array_equal(mask, second[0])
    assert np.any(first[0] != second[0])


@INTEGRATORS
def test_layer_that_runs_eagerly_only_trains_with_run_eagerly(integrator):
    class Debug(keras.layers.Layer):
        def call(self, inputs):
            seen.append(inputs.numpy())
            return inputs

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    seen = []
    model = make(middle=[Debug()])
    model.compile("sgd", "mse", integrator=integrator, run_eagerly=True)
    model.fit(X, Y, verbose=0)
    assert seen


# Ranks in training.


def test_truncation_of_a_layer_goes_before_that_of_the_model():
    keep, cut = LowRankDense(6, rank=5, name="keep", truncation=KeepRank()), 0.9
    model = make(rank=5, middle=[keep])
    integrator = Parallel(adapt_every=1)
    model.compile("sgd", "mse", integrator=integrator, truncation=cut, run_eagerly=True)
    model.fit(X, Y, verbose=0)
    assert model.ranks["keep"] == 5 and model.ranks["low"] < 5


@pytest.mark.parametrize(
    "integrator", partly_slow([RankAdaptive(adapt_every=2)], [Parallel(adapt_every=1)])
)
@pytest.mark.parametrize(
    "bounds, tolerance, rank",
    [({"min_rank": 3, "rank": 5}, 0.99, 3), ({"max_rank": 4, "rank": 2}, 0.0, 4)],
)
def test_bounds_hold_in_training(bounds, tolerance, rank, integrator):
    model = make(**bounds)
    arguments = {"truncation": Tolerance(tolerance), "run_eagerly": True}
    model.compile("sgd", "mse", integrator=integrator, **arguments)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(model.ranks["low"])
    )
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[watch])
    assert model.ranks == {"low": rank}
    assert all(bounds.get("min_rank", 1) <= r <= bounds.get("max_rank", 6) for r in seen)


def test_fixed_rank_never_changes_a_rank():
    model = make(rank=4)
    model.compile("sgd", "mse", integrator="fixed_rank", truncation=0.9)
    model.fit(X, Y, batch_size=4, epochs=10, verbose=0)  # past some full steps
    assert model.ranks == {"low": 4}


@pytest.mark.parametrize("integrator", ["parallel", FIXED_RANK])
def test_a_loss_on_the_kernel_is_that_of_a_regularizer(integrator):
    class Penalised(LowRankModel):
        def compute_loss(self, *args, **kwargs):
            kernel = self.get_layer("low").kernel
            return super().compute_loss(*args, **kwargs) + 0.1 * tf.reduce_sum(kernel**2)

    model, twin = make(), make(kernel_regularizer=keras.regularizers.L2(0.1))
    model = Penalised(model.inputs, model.outputs)
    for one in (model, twin):
        optimizer = keras.optimizers.SGD(0.1)
        one.compile(optimizer, "mse", integrator=integrator, run_eagerly=True)
        one.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    assert_same_weights(model, twin)
