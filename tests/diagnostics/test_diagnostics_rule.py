"""The check of a rule: those of the package pass, and planted faults are named.

What is planted is what a user may get wrong.
"""

import keras
import pytest
import tensorflow as tf
from reference.two_layers import NEEDS_MUON

from keras_lowrank import Parallel
from keras_lowrank.diagnostics import check_rule
from keras_lowrank.optimizers import Direction, Rule, StiefelAdam
from keras_lowrank.optimizers.options import make_rule

optimizers = keras.optimizers

OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "Nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: optimizers.Adam(),
    "RMSprop": lambda: optimizers.RMSprop(momentum=0.5),
    "Adagrad": lambda: optimizers.Adagrad(),
    "Muon": lambda: optimizers.Muon(),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=NEEDS_MUON) if one == "Muon" else one for one in OPTIMIZERS],
)
def test_the_rules_of_the_package_pass(name):
    rule = make_rule(OPTIMIZERS[name](), Parallel())
    check_rule(rule)
    if name == "Muon":
        check_rule(make_rule(optimizers.Muon(exclude_layers=["x"]), Parallel()).of_layer("x"))


def test_a_rule_for_coordinates_depends_on_the_bases_and_on_nothing_else():
    """Its second moments are shared out among them, row by row."""
    with pytest.raises(ValueError, match="same for other bases") as raised:
        check_rule(make_rule(StiefelAdam(), Parallel()))
    broken = [line for line in str(raised.value).splitlines() if line.startswith("- ")]
    assert all("The direction is the same for other bases" in line for line in broken)


class Own(Rule):
    """A rule of a user's own, from which each wrong one differs in one point."""

    takes_rows = True

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.state = {"mean": "tangent", "length": "scalar"}
        self.decay = 0.9

    def direction(self, gradient, state, point, learning_rate, step):
        mean = state["mean"].plus(gradient)
        length = tf.sqrt(mean.squared_norm()) + 1e-6
        return Direction(mean.scaled(1.0 / length)), {"mean": mean, "length": length}


def turned(change):
    """A `direction` that changes what that of `Own` returns."""

    def direction(self, *args):
        direction, state = Own.direction(self, *args)
        return change(direction, state)

    return {"direction": direction}


def counting(self, *args):
    self.calls = getattr(self, "calls", 0) + 1
    direction, state = Own.direction(self, *args)
    return Direction(direction.tangent.scaled(1.0 / self.calls)), state


def branching(self, gradient, *args):
    if gradient.squared_norm() > 1e-3:
        return Own.direction(self, gradient, *args)
    return Own.direction(self, gradient.scaled(0.5), *args)


def unbounded(self, gradient, state, *args):
    mean = state["mean"].plus(gradient)
    length = tf.sqrt(mean.squared_norm())
    return Direction(mean.scaled(1.0 / length)), {"mean": mean, "length": length}


def by_entry(direction, state):
    k, s, l = direction.tangent
    return Direction(type(direction.tangent)(tf.sign(tf.convert_to_tensor(k)), s, l)), state


WRONG_RULES = {
    "entries": (turned(by_entry), "The direction is the same for other bases"),
    "up": (
        turned(lambda d, state: (Direction(d.tangent.scaled(-1.0)), state)),
        r"descends along the gradient G: <G, D> > 0. Received: <G, D> = -",
    ),
    "forgotten": (
        turned(lambda d, state: (d, {"mean": state["mean"]})),
        r"returns exactly the state that `state` names. Received: \['mean'\]",
    ),
    "shape": (
        turned(lambda d, state: (d, {**state, "length": tf.ones([3])})),
        r"The state 'length' has the shapes of its kind, 'scalar'. Received: shapes \[\(3,\)\]",
    ),
    "weight": (
        turned(lambda d, state: (d._replace(gradient_weight=tf.ones([3])), state)),
        "`gradient_weight` of the direction is a scalar",
    ),
    "rows": (
        turned(lambda d, state: (d._replace(rows=tf.ones([7]), columns=tf.ones([7])), state)),
        "`rows` of the direction has the shapes of its kind",
    ),
    "nothing": (turned(lambda d, state: None), "`direction` returns a `Direction` and a state"),
    "slices": (
        {
            "direction": lambda self, gradient, state, *args: (
                Direction(gradient),
                {"mean": gradient, "length": tf.constant(1.0)},
            )
        },
        "The state 'mean' has no K-part by its rows",
    ),
    "zero": ({"direction": unbounded}, "is finite for gradients of zero. Received: NaN"),
    "counting": ({"direction": counting}, "The direction depends only on the arguments"),
    "branching": ({"direction": branching}, "`direction` can be traced by TensorFlow"),
    "size": ({"step_size": lambda self, rate, step: -rate}, "`step_size` is finite and above 0"),
}


def test_a_rule_of_ones_own_passes():
    check_rule(Own(optimizers.SGD()), shape=(6, 8), rank=2)


@pytest.mark.parametrize("name", WRONG_RULES)
def test_a_wrong_rule_is_told_what_is_wrong(name):
    methods, words = WRONG_RULES[name]
    with pytest.raises(ValueError, match=rf"(?s)Wrong breaks these rules:\n.*{words}"):
        check_rule(type("Wrong", (Own,), methods)(optimizers.SGD()))


def test_a_kind_of_state_that_there_is_not_is_told():
    rule = Own(optimizers.SGD())
    rule.state = {"mean": "matrix"}
    with pytest.raises(ValueError, match="among columns, rows, scalar, squares, tangent.*'matrix'"):
        check_rule(rule)
