"""Optimizers without a meaning for a low-rank weight, Muon, and rules of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.two_layers import NEEDS_MUON, X, Y, make

from keras_lowrank import (
    FixedRank,
    LowRankDense,
    LowRankEmbedding,
    LowRankLSTM,
    LowRankModel,
    Parallel,
    RankAdaptive,
    from_keras,
)
from keras_lowrank.layers import find_low_rank_layers
from keras_lowrank.optimizers import Direction, Rule, register_rule

Adam, RMSprop, SGD = (getattr(keras.optimizers, name) for name in ("Adam", "RMSprop", "SGD"))


@pytest.mark.parametrize(
    "optimizer, words",
    [
        (
            lambda: keras.optimizers.Lion(),
            "Lion has no rule.*signs of the entr.*Use one of.*SGD",
        ),
        (lambda: keras.optimizers.Ftrl(), "Ftrl has no rule.*Use one of.*SGD"),
        (lambda: SGD(clipvalue=1.0), "`clipvalue`.*depends on the basis.*clipnorm"),
        (lambda: SGD(use_ema=True), "`use_ema`.*learning rate that falls"),
        (lambda: Adam(amsgrad=True), "`amsgrad`.*Use Adam without it"),
        (lambda: RMSprop(centered=True), "`centered`.*Use RMSprop without it"),
        (
            lambda: SGD(global_clipnorm=1.0, gradient_accumulation_steps=2),
            "`global_clipnorm`.*Use `clipnorm`",
        ),
        (lambda: keras.optimizers.LossScaleOptimizer(SGD(use_ema=True)), "`use_ema`"),
    ],
)
def test_what_has_no_meaning_is_refused_at_compile(optimizer, words):
    with pytest.raises(ValueError, match=words):
        make(optimizer())


@pytest.mark.parametrize("scaling", [lambda inner: inner, keras.optimizers.LossScaleOptimizer])
def test_an_optimizer_that_was_built_on_factors_is_refused(scaling):
    optimizer, model = scaling(Adam()), make("sgd")
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="`compile` builds.*Received: .* built on 'first/U'"):
        model.compile(optimizer, "mse")


@NEEDS_MUON
@pytest.mark.parametrize("integrator", partly_slow([Parallel], [RankAdaptive, FixedRank]))
def test_muon_at_full_rank_is_that_of_keras(integrator):
    options = {"learning_rate": 0.03, "weight_decay": 0.1, "exclude_layers": ["head"]}
    inputs = keras.Input((7,))
    models = []
    for kind in (LowRankDense, keras.layers.Dense):
        full_rank = {"rank": 7} if kind is LowRankDense else {}
        hidden = kind(7, name="hidden", activation="tanh", **full_rank)
        outputs = keras.layers.Dense(5, name="head")(hidden(inputs))
        make_model = LowRankModel if kind is LowRankDense else keras.Model
        models.append(make_model(inputs, outputs))
    low, full = models
    full.get_layer("head").set_weights(low.get_layer("head").get_weights())
    full.get_layer("hidden").set_weights(
        [low.get_layer("hidden").kernel.numpy(), np.zeros(7, "float32")]
    )
    integrator = integrator(adapt_every=1)
    low.compile(keras.optimizers.Muon(**options), "mse", integrator=integrator, truncation=0.0)
    full.compile(keras.optimizers.Muon(**options), "mse")
    for _ in range(8):
        losses = [model.train_on_batch(X, Y) for model in models]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    kernels = [model.get_layer("hidden").kernel.numpy() for model in models]
    np.testing.assert_allclose(*kernels, atol=1e-4)


@NEEDS_MUON
@pytest.mark.parametrize(
    "integrator", partly_slow(["parallel"], [RankAdaptive(adapt_every=1), FixedRank(adapt_every=1)])
)
def test_what_muon_excludes_moves_by_its_adamw(integrator):
    """All of it here, so that the model trains as by an AdamW of its own."""
    muon = keras.optimizers.Muon(
        0.02,
        adam_lr_ratio=0.5,
        adam_beta_1=0.8,
        adam_beta_2=0.95,
        epsilon=1e-3,
        adam_weight_decay=0.05,
        exclude_layers=["first/kern", "^sec", "head"],
    )
    # Keras lets weights decay by the whole learning rate.
    adamw = keras.optimizers.AdamW(0.01, beta_1=0.8, beta_2=0.95, epsilon=1e-3, weight_decay=0.1)
    models = [make(optimizer, integrator, truncation=0.3) for optimizer in (muon, adamw)]
    models[1].set_weights(models[0].get_weights())
    for _ in range(6):
        losses = [model.train_on_batch(X, Y) for model in models]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    assert models[0].ranks == models[1].ranks
    for one, other in zip(*(model.layers for model in models)):
        if isinstance(one, LowRankDense):
            np.testing.assert_allclose(one.kernel, other.kernel, atol=1e-5)


@NEEDS_MUON
@pytest.mark.parametrize("excluded", [True, False])
def test_muon_leaves_embeddings_to_adamw_unless_it_is_told_otherwise(excluded):
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Flatten()(LowRankEmbedding(9, 6, rank=2, name="table")(inputs))
    outputs = keras.layers.Dense(1, name="head")(LowRankDense(5, rank=2, name="hidden")(x))
    model = LowRankModel(inputs, outputs)
    optimizer = keras.optimizers.Muon(exclude_embeddings=excluded, exclude_layers=["head"])
    model.compile(optimizer, "mse")
    model.fit(np.arange(32).reshape(8, 4) % 9, np.ones((8, 1)), verbose=0)
    names = {variable.name for variable in optimizer.variables}
    assert "hidden_momentum_K" in names and "hidden_rows" not in names
    assert {"table_momentum_K"} <= names
    assert ("table_rows" in names) == ("table_columns" in names) == excluded


def test_weights_have_the_paths_that_they_have_in_keras():
    inside = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(9, 8, name="table")(inside)
    x = keras.layers.MultiHeadAttention(2, 4, name="attend")(x, x)
    body = keras.Model(inside, keras.layers.GRU(6, name="loop")(x), name="body")
    inputs = keras.Input((4,), dtype="int32")
    full = keras.Model(inputs, keras.layers.Dense(5, name="head")(body(inputs)))
    layers = find_low_rank_layers(from_keras(full, rank=2, only_smaller=False)).values()
    matrices = {v.path for v in full.weights if len(v.shape) > 1 and not v.path.endswith("bias")}
    assert {layer.weight_path for layer in layers} == matrices
    by_gate = LowRankLSTM(3, rank=2, stacked=False, name="gates")
    by_gate(np.zeros((1, 2, 4)))
    kernels = {layer.weight_path for layer in by_gate.cell.recurrent_kernels}
    assert kernels == {"gates/lstm_cell/recurrent_kernel"}
    alone = LowRankDense(3, rank=2, name="alone")
    alone.build_factors((4, 3))  # by hand, in no name scope
    assert alone.weight_path == "alone/kernel"


@NEEDS_MUON
def test_an_optimizer_that_would_keep_something_else_is_refused():
    optimizer = keras.optimizers.Muon()
    model = make(optimizer)
    model.train_on_batch(X, Y)
    optimizer.exclude_layers = ["first"]
    with pytest.raises(ValueError, match="with a new optimizer.*stores .'momentum'. for .*'rows'"):
        model.compile(optimizer, "mse")


@pytest.mark.parametrize("integrator", [RankAdaptive, FixedRank])
def test_accumulation_is_refused_where_a_step_takes_a_second_pass(integrator):
    with pytest.raises(ValueError, match="`gradient_accumulation_steps`.*integrator='parallel'"):
        make(SGD(gradient_accumulation_steps=2), integrator(adapt_every=1))


class SignedMomentum(keras.optimizers.SGD):
    """Somebody's own optimizer, whose step has the length of the learning rate."""


@register_rule(SignedMomentum)
class NormalizedMomentum(Rule):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.state = {"average": "tangent", "steps": "scalar"}

    def direction(self, gradient, state, point, learning_rate, step):
        average = state["average"].scaled(0.9).plus(gradient.scaled(0.1))
        length = 1.0 / (tf.sqrt(average.squared_norm()) + 1e-12)
        new = {"average": average, "steps": state["steps"] + 1.0}
        return Direction(average.scaled(length), gradient_weight=0.1 * length), new


@pytest.mark.parametrize("integrator", ["parallel", RankAdaptive(adapt_every=1)])
def test_a_rule_of_ones_own(integrator):
    model = make(SignedMomentum(0.01), integrator, truncation=0.0)
    layer = model.get_layer("first")
    # What rank_adaptive adds of the gradient outside of the tangent space comes on top.
    tolerance = 0.05 if integrator == "parallel" else 0.3
    for number in range(1, 4):
        before = layer.kernel.numpy()
        model.train_on_batch(X, Y)
        assert np.linalg.norm(layer.kernel - before) == pytest.approx(0.01, rel=tolerance)
        (steps,) = (v for v in model.optimizer.variables if "first_steps" in v.name)
        assert float(steps) == number


class TwoKinds(keras.optimizers.SGD):
    """Somebody's optimizer that treats one layer in another way."""


class Known(Rule):
    def direction(self, gradient, state, point, learning_rate, step):
        return Direction(gradient, gradient_weight=None), state


@register_rule(TwoKinds)
class Either(Known):
    def direction(self, gradient, state, point, learning_rate, step):
        return Direction(gradient), state

    def of_layer(self, path):
        return Known(self.optimizer) if path == "second/kernel" else self


@pytest.mark.parametrize(
    "integrator",
    partly_slow(["parallel", FixedRank(adapt_every=1)], [RankAdaptive(adapt_every=1)]),
)
def test_layers_move_by_rules_of_their_own(integrator):
    """One by what the gradient has outside of its tangent space too, the other without."""
    models = [make(kind(0.3), integrator, truncation=0.0) for kind in (TwoKinds, SGD)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.train_on_batch(X, Y)
    first, second = (
        [model.get_layer(name).kernel.numpy() for model in models] for name in ("first", "second")
    )
    np.testing.assert_allclose(*first, atol=1e-6)
    difference = np.abs(second[0] - second[1]).max()
    assert (difference > 1e-4) == (integrator != "parallel")  # which has the tangent alone


def test_a_kind_of_state_that_there_is_not_is_named():
    class Wrong(keras.optimizers.SGD):
        pass

    @register_rule(Wrong)
    class WrongRule(Rule):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            self.state = {"moment": "matrix"}

    with pytest.raises(ValueError, match="'tangent', 'squares', 'rows'.*Received: moment='matrix'"):
        make(Wrong(0.1))
