"""LowRankModel: how it is made, what it finds, what it counts, what it traces."""

import warnings

import keras
import numpy as np
import pytest
from reference.cases import partly_slow

from keras_lowrank import (
    FixedRank,
    KeepRank,
    LowRankDense,
    LowRankModel,
    Parallel,
    RankAdaptive,
    Tolerance,
    callbacks,
)

X = np.random.default_rng(0).standard_normal((32, 8)).astype("float32")
Y = np.random.default_rng(1).standard_normal((32, 2)).astype("float32")


def functional(cls=LowRankModel, rank=4, **kwargs):
    inputs = keras.Input((8,))
    x = LowRankDense(12, rank=rank, activation="relu", name="low", **kwargs)(inputs)
    return cls(inputs, keras.layers.Dense(2, name="head")(x))


@keras.saving.register_keras_serializable("keras_lowrank_tests_model")
class Subclassed(LowRankModel):
    def __init__(self, rank=3, **kwargs):
        super().__init__(**kwargs)
        self.rank = rank
        self.low = LowRankDense(12, rank=rank, activation="relu", name="low")
        self.head = keras.layers.Dense(2)

    def call(self, inputs, training=False):
        return self.head(self.low(inputs))

    def get_config(self):
        return {**super().get_config(), "rank": self.rank}


class CountsSteps(LowRankModel):
    """Python runs `train_step` to its end once a trace."""

    traces = 0

    def train_step(self, data):
        logs = super().train_step(data)
        self.traces += 1
        return logs


class ChangesEveryTime(Tolerance):
    """Another rank after every step, up and down."""

    def __init__(self):
        super().__init__(0.1)

    def rank(self, singular_values, current):
        return keras.ops.where(current > 4, 3, current + 1)

    def get_config(self):
        return {}


# Making a model.


def test_functional_model_trains_and_names_its_ranks():
    model = functional()
    assert isinstance(model, LowRankModel) and isinstance(model, keras.Model)
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    assert (type(model.integrator), model.truncation.tolerance) == (RankAdaptive, 0.05)
    history = model.fit(X, Y, epochs=4, verbose=0, validation_data=(X, Y)).history
    assert set(history) == {"loss", "mae", "val_loss", "val_mae"}
    assert history["loss"][-1] < history["loss"][0]
    assert list(model.ranks) == ["low"] and type(model.ranks["low"]) is int


def test_subclassed_model_trains_without_being_built_first():
    model = Subclassed()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    assert model.ranks == {}
    losses = model.fit(X, Y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert list(model.ranks) == ["low"]


def test_sequential_inside_a_functional_model_trains():
    stack = keras.Sequential(
        [LowRankDense(12, rank=3, activation="relu", name="a"), LowRankDense(2, name="b")],
        name="stack",
    )
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, stack(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse", truncation=0.0)
    before = [layer.kernel.numpy() for layer in stack.layers]
    model.fit(X, Y, verbose=0)
    assert list(model.ranks) == ["stack/a", "stack/b"]
    for layer, old in zip(stack.layers, before):
        assert np.any(layer.kernel != old)


class Block(keras.layers.Layer):
    """A layer, not a model, that holds one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = LowRankDense(8, rank=2, name="low")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs):
        return self.inner(inputs)


def test_nested_layers_are_found_by_unique_paths():
    def nested(name):
        inputs = keras.Input((8,))
        x = LowRankDense(8, rank=3, name="low")(inputs)
        x = Block(name="block")(x)
        return keras.Model(inputs, x, name=name)

    inputs = keras.Input((8,))
    x = nested("one")(inputs)
    x = nested("two")(x)
    x = LowRankDense(2, rank=1, name="low")(x)
    model = LowRankModel(inputs, x)
    assert model.ranks == {
        "one/low": 3,
        "one/block/low": 2,
        "two/low": 3,
        "two/block/low": 2,
        "low": 1,
    }
    model.compile("sgd", "mse", truncation=KeepRank(), run_eagerly=True)
    before = model.get_weights()
    model.fit(X, Y, verbose=0)
    assert all(np.any(new != old) for new, old in zip(model.get_weights(), before))


def test_layers_of_one_name_in_a_list_are_all_found():
    class Stack(LowRankModel):
        def __init__(self):
            super().__init__()
            self.stack = [LowRankDense(8, rank=rank, name="same") for rank in (1, 2)]

        def call(self, inputs):
            for layer in self.stack:
                inputs = layer(inputs)
            return inputs

    model = Stack()
    model(X)
    assert sorted(model.ranks.values()) == [1, 2]
    model.compile("sgd", "mse")
    assert [v.name for v in model._training.other_variables] == ["bias", "bias"]


def test_a_layer_called_twice_is_trained_on_both_calls():
    inputs = keras.Input((8,))
    low = LowRankDense(8, rank=8, use_bias=False, name="low")
    dense = keras.layers.Dense(8, use_bias=False)
    model = LowRankModel(inputs, low(keras.ops.tanh(low(inputs))))
    twin = keras.Model(inputs, dense(keras.ops.tanh(dense(inputs))))
    dense.set_weights([low.kernel])
    assert list(model.ranks) == ["low"]
    for one in (model, twin):
        one.compile(keras.optimizers.SGD(0.1), "mse")
    model.integrator, model.truncation = Parallel(adapt_every=1), Tolerance(0.0)
    for one in (model, twin):
        one.fit(X, X, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(low.kernel, dense.kernel, atol=1e-5)


@pytest.mark.parametrize("first", partly_slow(["subclassed"], ["functional"]))
def test_both_ways_of_making_a_model_in_one_process(first):
    # Keras rewrites the bases of keras.Model's subclasses; super().__init__() breaks after it.
    bases = LowRankModel.__bases__

    class Either(LowRankModel):
        """Made in both ways, as LowRankModel itself may be."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if not args:
                self.low = LowRankDense(2, rank=2, name="low")

        def call(self, inputs, *args, **kwargs):
            if hasattr(self, "low"):
                return self.low(inputs)
            return super().call(inputs, *args, **kwargs)

    makers = [functional, lambda: functional(Either), Either, Subclassed]
    for make in makers if first == "functional" else makers[::-1]:
        model = make()
        model.compile("sgd", "mse")
        model.train_on_batch(X, Y)
        assert list(model.ranks) == ["low"]
    assert LowRankModel.__bases__ == bases
    assert Either.__bases__ == (LowRankModel,) and Subclassed.__bases__ == (LowRankModel,)


def test_a_subclass_made_functionally_keeps_its_own_methods():
    class Mine(LowRankModel):
        def train_step(self, data):
            self.called = True
            return super().train_step(data)

    model = functional(Mine)
    assert isinstance(model, Mine) and type(model).__name__ == "Mine"
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    assert model.called


# Compile.


@pytest.mark.parametrize(
    "given, made",
    [
        ("parallel", Parallel),
        ("rank_adaptive", RankAdaptive),
        ("fixed_rank", FixedRank),
        (FixedRank(), FixedRank),
    ],
)
def test_integrator_by_name_and_as_an_object(given, made):
    model = functional()
    model.compile("sgd", "mse", integrator=given)
    assert type(model.integrator) is made


@pytest.mark.parametrize("given", ["rank-adaptive", None, 3, RankAdaptive])
def test_unknown_integrator_raises(given):
    with pytest.raises(ValueError, match=r"`integrator` must be one of .*fixed_rank"):
        functional().compile("sgd", "mse", integrator=given)


@pytest.mark.parametrize("given", [-0.1, 1.0, 2, float("nan"), float("inf")])
def test_tolerance_outside_its_range_raises(given):
    with pytest.raises(ValueError, match=r"`tolerance` must be in \[0, 1\).*tolerance="):
        functional().compile("sgd", "mse", truncation=given)


@pytest.mark.parametrize("given", [None, "0.1", True])
def test_truncation_that_is_no_number_raises(given):
    with pytest.raises(ValueError, match="`truncation` must be a number"):
        functional().compile("sgd", "mse", truncation=given)


# Ranks.


def test_freeze_ranks_keeps_every_rank_and_costs_one_trace():
    model = functional(CountsSteps)
    model.compile("sgd", "mse", truncation=ChangesEveryTime(), integrator=Parallel(adapt_every=1))
    model.fit(X, Y, batch_size=8, verbose=0)
    assert model.traces == 1
    model.freeze_ranks()
    frozen = model.ranks
    weights = model.get_weights()
    watch = callbacks.RankHistory()
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[watch])
    model.fit(X, Y, batch_size=8, verbose=0)
    assert model.ranks == frozen and watch.ranks["low"] == [frozen["low"]] * 2
    assert any(np.any(new != old) for new, old in zip(model.get_weights(), weights))
    assert model.traces == 2
    model.unfreeze_ranks()
    model.fit(X, Y, batch_size=8, steps_per_epoch=1, verbose=0)
    assert model.ranks != frozen


@pytest.mark.parametrize("when", ["before compile", "before fit"])
def test_ranks_frozen_before_training_never_move(when):
    model = functional(CountsSteps)
    if when == "before compile":
        model.freeze_ranks()
    model.compile("sgd", "mse", truncation=ChangesEveryTime(), integrator=Parallel(adapt_every=1))
    model.freeze_ranks()
    model.fit(X, Y, batch_size=8, verbose=0)
    assert model.ranks == {"low": 4} and model.traces == 1


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_one_trace_while_the_ranks_change(steps_per_execution):
    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(self.model.ranks["low"])

    seen = []
    model = functional(CountsSteps)
    model.compile(
        "sgd",
        "mse",
        truncation=ChangesEveryTime(),
        integrator=Parallel(adapt_every=1),
        steps_per_execution=steps_per_execution,
    )
    model.fit(X, Y, batch_size=2, epochs=2, verbose=0, callbacks=[Watch()])
    model.fit(X, Y, batch_size=2, verbose=0)
    # The last entry: with several steps an execution, one entry stands for several changes.
    assert len(set(seen)) >= 2 or steps_per_execution > 1
    assert model.traces == 1


def test_a_short_last_batch_costs_no_trace_of_ranks():
    model = functional(CountsSteps)
    model.compile("sgd", "mse", truncation=ChangesEveryTime(), integrator=Parallel(adapt_every=1))
    # Whatever Keras needs for another batch size, and nothing for the ranks.
    model.fit(X[:30], Y[:30], batch_size=8, epochs=2, verbose=0)
    assert model.traces == 1


# Models that need nothing of ours, and layers that need no LowRankModel.


def test_model_without_low_rank_layers_warns_and_trains_as_keras_does():
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, keras.layers.Dense(2)(inputs))
    twin = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    twin.set_weights(model.get_weights())
    model.compile(keras.optimizers.Adam(0.01), "mse")  # any optimizer: there are no factors
    twin.compile(keras.optimizers.Adam(0.01), "mse")
    with pytest.warns(UserWarning, match="no trainable low-rank layer"):
        model.fit(X, Y, shuffle=False, verbose=0)
    twin.fit(X, Y, shuffle=False, verbose=0)
    for ours, theirs in zip(model.get_weights(), twin.get_weights()):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert model.ranks == {}


def test_keras_model_trains_low_rank_layers_as_ordinary_weights():
    model = functional(keras.Model)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    before = model.get_weights()
    losses = model.fit(X, Y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(np.any(new != old) for new, old in zip(model.get_weights(), before))
    assert model.get_layer("low").rank == 4


def test_summary_shows_the_present_shapes():
    model = functional()
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.summary(print_fn=lambda text, **_: lines.append(text))
    assert str(8 * 4 + 16 + 12 * 4 + 12) in "\n".join(lines)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_layer_that_is_never_called_is_left_out(run_eagerly):
    class Spare(LowRankModel):
        def __init__(self):
            super().__init__()
            self.used, self.unused = LowRankDense(8, rank=2), LowRankDense(3, rank=2)

        def call(self, inputs):
            return self.used(inputs)

    model = Spare()
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    model.fit(X, X, verbose=0)
    assert list(model.ranks) == ["low_rank_dense"]


def test_a_layer_that_is_called_in_training_alone_is_trained():
    class Auxiliary(LowRankModel):
        def __init__(self):
            super().__init__()
            self.body, self.head = LowRankDense(8, rank=2), LowRankDense(8, rank=2)

        def call(self, inputs, training=False):
            x = self.body(inputs)
            return x + self.head(x) if training else x

    model = Auxiliary()
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    before = model.head.kernel.numpy()
    model.fit(X, X, verbose=0)
    assert np.any(model.head.kernel.numpy() != before)
