"""Truncations that change during training: scheduled tolerances, and budgets."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from reference.cases import few, partly_slow, seeds

from keras_lowrank import (
    Budget,
    KeepRank,
    LowRankDense,
    LowRankModel,
    Parallel,
    Tolerance,
    callbacks,
)
from keras_lowrank.manifold.point import Point
from keras_lowrank.ranks.policy import Policy, plan
from keras_lowrank.ranks.truncation import get_truncation

rng = np.random.default_rng(0)
X, Y = (rng.standard_normal((32, k)).astype("float32") for k in (20, 4))
RISING = keras.optimizers.schedules.PolynomialDecay(0.0, 24, 0.6)


def make(truncation, own=None, **layer):
    inputs = keras.Input((20,))
    x = LowRankDense(18, rank=12, name="first", activation="tanh", truncation=own, **layer)(inputs)
    x = LowRankDense(16, rank=12, name="second", activation="tanh")(x)
    model = LowRankModel(inputs, keras.layers.Dense(4, name="head")(x))
    optimizer, every_step = keras.optimizers.SGD(0.05), Parallel(adapt_every=1)
    model.compile(optimizer, "mse", truncation=truncation, integrator=every_step)
    return model


def ranks_in_fit(model, epochs=8):
    history = callbacks.RankHistory()
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[history])
    return history.ranks


def with_values(n, m, values):
    r = len(values)
    return Point(tf.zeros([n, r]), tf.linalg.diag(tf.constant(values, "float32")), tf.zeros([m, r]))


# Schedules.


@pytest.mark.parametrize(
    "schedule", partly_slow([RISING], [lambda step: 0.6 * tf.minimum(step / 24.0, 1.0)])
)
def test_a_rising_tolerance_cuts_late_what_a_constant_one_cuts_at_once(schedule):
    rising = ranks_in_fit(make(Tolerance(schedule)))["first"]
    constant = ranks_in_fit(make(Tolerance(0.6)))["first"]
    assert rising[0] > constant[0] + 2
    assert rising[-1] < rising[0]


def test_a_schedule_is_asked_for_the_steps_that_were_completed():
    asked = []

    def schedule(step):
        asked.append(float(step))
        return 0.25

    (now,) = Tolerance(schedule).plan([None], tf.constant(3.0), (0, 0), [1])
    assert asked == [2.0] and float(now.tolerance) == 0.25
    assert int(now.rank(tf.constant([1.0, 0.5, 0.1]), 3)) == 2


def test_a_scheduled_tolerance_is_saved_and_goes_on(tmp_path):
    model = make(Tolerance(RISING))
    before = ranks_in_fit(model, 4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.truncation.tolerance.get_config() == RISING.get_config()
    after = ranks_in_fit(again, 4)
    assert after["first"][-1] < before["first"][-1]


@pytest.mark.parametrize(
    "way", partly_slow([{"run_eagerly": True}], [{"steps_per_execution": 4}, {}])
)
def test_a_schedule_that_leaves_its_range_raises_before_the_step(way):
    model = make(Tolerance(lambda step: 0.3 * step), own=0.1)
    way = {"integrator": Parallel(adapt_every=1), **way}
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), "mse", truncation=model.truncation, **way
    )
    twin = make(Tolerance(lambda step: 0.3 * step), own=0.1)
    twin.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", truncation=twin.truncation, **way)
    twin.set_weights(model.get_weights())
    twin.fit(X, Y, batch_size=8, shuffle=False, verbose=0)  # 0, 0.3, 0.6, 0.9: four steps are fine
    words = r"in \[0, 1\), or a schedule .* Received: tolerance=1.2.* at training step 5, which"
    with pytest.raises(ValueError, match=words):
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    ours, theirs = ([*m.variables, *m.optimizer.variables] for m in (model, twin))
    for one, other in zip(ours, theirs, strict=True):
        if not any(one is v for v in model.metrics_variables):
            np.testing.assert_array_equal(one, other)
    model.truncation = Tolerance(0.1)
    model.make_train_function(force=True)
    model.fit(X, Y, batch_size=8, verbose=0)


@pytest.mark.parametrize("value, relative", [(-1e-3, True), (np.nan, True), (np.inf, False)])
def test_a_schedule_outside_its_range_raises_under_loss_scaling_too(value, relative):
    model = make(Tolerance(lambda step: value + 0.0 * step, relative))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05))
    model.compile(optimizer, "mse", truncation=model.truncation, run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(ValueError, match="`tolerance` must be .* at training step 1, which"):
        model.train_on_batch(X, Y)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


# Budgets.


@few
@given(seeds, st.integers(1, 4), st.floats(0.02, 1.0))
def test_a_budget_keeps_the_largest_shares_that_it_can_pay_for(seed, count, share):
    rng = np.random.default_rng(seed)
    shapes = rng.integers(3, 12, (count, 2))
    values = [np.sort(rng.uniform(0.1, 2, min(shape)))[::-1] for shape in shapes]
    matrices = [with_values(*shape, v) for shape, v in zip(shapes.tolist(), values)]
    others = (50, 20)
    full = others[0] + sum(n * m for n, m in shapes)
    min_ranks = [int(rng.integers(1, min(3, len(v)) + 1)) for v in values]
    spent = others[1] + int(np.dot(min_ranks, shapes.sum(axis=1)))
    weights = max(spent, round(share * full))
    caps = Budget(weights=weights, steps=10).plan(matrices, tf.constant(10.0), others, min_ranks)
    ranks = [int(cap.rank(None, 99)) for cap in caps]
    # By hand: the least ranks, then all other values in the order of their share.
    queue = [
        (v[i] ** 2 / np.sum(v**2), layer)
        for layer, v in enumerate(values)
        for i in range(min_ranks[layer], len(v))
    ]
    expected = min_ranks[:]
    for _, layer in sorted(queue, reverse=True):
        spent += sum(shapes[layer])
        if spent > weights:
            break
        expected[layer] += 1
    assert ranks == expected


def test_a_budget_falls_from_all_weights_to_its_own_by_the_cubic():
    matrices = [with_values(30, 30, np.linspace(2, 1, 30))]
    budget = Budget(weights=300, steps=10)
    ranks = []
    for step in range(0, 14):
        (cap,) = budget.plan(matrices, tf.constant(float(step)), (0, 0), [1])
        ranks.append(int(cap.rank(None, 99)))
    allowed = [300 + 600 * max(1 - step / 10, 0) ** 3 for step in range(14)]
    assert ranks == [int(count // 60) for count in allowed]


@pytest.mark.parametrize("goal", [{"compression": 0.6}, {"weights": 330}])
def test_a_model_meets_its_budget_with_all_other_kernels_counted(goal):
    model = make(Budget(**goal, steps=24))
    ranks = ranks_in_fit(model)
    count = model.compression()
    allowed = goal.get("weights") or 0.4 * count.full
    dearest = 20 + 18
    assert allowed - dearest < count.factored <= allowed
    assert ranks["first"][5:] == [ranks["first"][-1]] * 3
    assert ranks["first"][0] > ranks["first"][-1]


def test_a_layer_keeps_its_least_rank_and_its_own_truncation():
    model = make(Budget(weights=150, steps=8), min_rank=5)
    assert min(ranks_in_fit(model, 4)["first"]) == 5
    model = make(Budget(weights=650, steps=8), own=KeepRank())
    ranks_in_fit(model, 4)
    # What a layer with a truncation of its own holds is not there to be spent.
    assert model.ranks["first"] == 12
    assert model.compression().factored <= 650


def test_a_budget_pays_for_the_least_ranks_first():
    inputs = keras.Input((20,))
    x = LowRankDense(20, rank=10, min_rank=6, name="first", use_bias=False)(inputs)
    model = LowRankModel(inputs, LowRankDense(4, rank=4, name="second", use_bias=False)(x))
    model.compile(keras.optimizers.SGD(1e-3), "mse", truncation=Budget(weights=290, steps=8))
    # By the values alone all would go to the second layer, and the first keep its 6 beside that.
    model.get_layer("first").S.assign(np.diag([1.0] + [1e-3] * 9).astype("float32"))
    ranks_in_fit(model)
    assert model.ranks == {"first": 6, "second": 2}
    assert model.compression().factored == 288


def test_policies_that_share_no_truncation_are_planned_apart():
    matrices = [with_values(10, 10, [1.0] * 10), with_values(10, 10, [1.0] * 10)]
    budget, tolerance = Budget(weights=260, steps=1), Tolerance(0.1)
    one, two = plan([Policy(budget), Policy(tolerance)], matrices, tf.constant(5.0), (0, 0))
    assert two.truncation is tolerance
    assert int(one.rank(tf.ones([10]), 10)) == 3  # 60 of the 260 are left


def test_a_budget_comes_back_from_its_config(tmp_path):
    model = make(Budget(compression=0.6, steps=24))
    ranks_in_fit(model, 1)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").truncation
    assert again.get_config() == {"weights": None, "compression": 0.6, "steps": 24}
    copy = get_truncation(keras.saving.serialize_keras_object(Budget(weights=9, steps=2)))
    assert (copy.weights, copy.steps) == (9, 2)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"steps": 5}, "exactly one of `weights` and `compression`.*weights=None"),
        (
            {"weights": 5, "compression": 0.5, "steps": 5},
            "exactly one of `weights` and `compression`",
        ),
        ({"weights": 0, "steps": 5}, r"`weights`.*\[1, inf\).*weights=0"),
        ({"weights": "9", "steps": 5}, "`weights`.*weights='9'"),
        (
            {"compression": 95, "steps": 5},
            r"`compression`.*\[0, 1\), such as 0.95 to.*compression=95",
        ),
        ({"compression": 1, "steps": 5}, r"`compression`.*\[0, 1\).*compression=1"),
        ({"compression": -0.1, "steps": 5}, r"`compression`.*\[0, 1\).*compression=-0.1"),
        ({"compression": 0.9, "steps": 0}, "`steps`.*steps=0"),
        ({"compression": 0.9, "steps": 5.5}, "`steps` .* an integer.*steps=5.5"),
        ({"compression": 0.9, "steps": True}, "`steps`.*steps=True"),
        ({"compression": 0.9, "steps": None}, "`steps`.*steps=None"),
    ],
)
def test_a_budget_outside_its_range_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Budget(**arguments)


def test_layers_that_shared_a_budget_share_it_after_loading(tmp_path):
    def budget():
        return Budget(weights=60, steps=1)

    inputs = keras.Input((8,))
    x = LowRankDense(8, rank=4, truncation=budget(), name="a")(inputs)
    model = LowRankModel(inputs, LowRankDense(8, rank=4, truncation=budget(), name="b")(x))
    model.save(tmp_path / "model.keras")
    for one in (model, keras.saving.load_model(tmp_path / "model.keras")):
        one.compile("sgd", "mse", run_eagerly=True)
        one.fit(np.ones((16, 8)), np.ones((16, 8)), verbose=0, epochs=2)
        assert sum(one.ranks.values()) == 3  # of 16 weights each


def test_a_budget_reads_a_core_that_is_diagonal_up_to_a_rotation():
    """As `fixed_rank` may leave it, or weights that were set."""
    turned = with_values(10, 10, [1.0, 1.0, 1.0, 1.0])
    turned = turned._replace(S=tf.reverse(turned.S, [0]))
    falling = with_values(10, 10, [1.0, 0.1, 0.05, 0.01])
    caps = Budget(weights=100, steps=1).plan([turned, falling], tf.constant(2.0), (0, 0), [1, 1])
    assert [int(cap.rank(None, 99)) for cap in caps] == [4, 1]


def test_a_budget_below_rank_one_everywhere_is_refused():
    model = make(Budget(weights=20, steps=8))
    with pytest.raises(ValueError, match=r"at least \d+ weights: rank 1.*'weights': 20"):
        ranks_in_fit(model, 1)


def test_a_rule_of_ones_own_inherits_nothing_of_the_rule_that_it_replaces():
    class Odd(Tolerance):
        def rank(self, singular_values, current):
            return tf.math.count_nonzero(singular_values > 0.5, dtype=tf.int32)

    class Frozen(KeepRank):
        def rank(self, singular_values, current):
            return tf.constant(1)

    assert not Policy(Odd(0.1)).keeps_rank
    assert Policy(KeepRank()).keeps_rank and not Policy(Frozen()).keeps_rank


def test_a_budget_needs_ranks_that_change():
    model = make(Budget(weights=300, steps=8))
    with pytest.raises(ValueError, match="ranks that can change.*FixedRank"):
        model.compile("sgd", "mse", integrator="fixed_rank", truncation=model.truncation)
