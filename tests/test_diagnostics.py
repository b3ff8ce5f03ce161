"""The checks of a layer, a rule and an integrator: all of the package pass, planted faults do not.

What is planted is what a user may get wrong.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.two_layers import NEEDS_MUON

import keras_lowrank
from keras_lowrank import FixedRank, LowRankDense, LowRankLayer, Parallel, RankAdaptive
from keras_lowrank.diagnostics import check_layer, check_retraction, check_rule
from keras_lowrank.manifold.point import Point
from keras_lowrank.optimizers import Direction, Rule, make_rule

optimizers = keras.optimizers


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


LAYERS = {
    "Dense": ((4,), normal(3, 8)),
    "Conv1D": ((4, 3), normal(2, 7, 3)),
    "Conv2D": ((4, (3, 2), 2, "same"), normal(2, 7, 7, 3)),
    "Conv3D": ((4, 2), normal(2, 4, 4, 4, 3)),
    "Conv2DTranspose": ((4, 3, 2), normal(2, 5, 5, 3)),
    "EinsumDense": (("abc,cde->abde", (None, 2, 3), "relu", "d"), normal(2, 3, 5)),
    "Embedding": ((9, 6), np.array([[3, 1], [4, 1]])),
    "LSTM": ((4,), normal(2, 5, 6)),
    "GRU": ((4,), normal(2, 5, 6)),
    "MultiHeadAttention": ((2, 3), normal(2, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_of_the_package_pass(name):
    arguments, inputs = LAYERS[name]
    layer = getattr(keras_lowrank, f"LowRank{name}")(*arguments, rank=2)
    extra = {"value": normal(2, 4, 6)} if name == "MultiHeadAttention" else {}
    check_layer(layer, inputs, **extra)
    before = layer.get_weights()
    check_layer(layer, inputs, **extra)
    assert all(map(np.array_equal, before, layer.get_weights()))


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_a_layer_is_checked_in_its_precision(dtype):
    check_layer(LowRankDense(4, rank=2, dtype=dtype), normal(3, 8))


class Times(LowRankLayer):
    """A layer of a user's own, from which each wrong one differs in one point."""

    def __init__(self, units, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.units, self.scale = units, scale

    def build(self, input_shape):
        self.build_factors((input_shape[-1], self.units))

    def project(self, inputs, basis):
        return self.scale * keras.ops.matmul(inputs, basis)

    def expand(self, coordinates, basis):
        return keras.ops.matmul(coordinates, keras.ops.transpose(basis))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "scale": self.scale}


def product(inputs, basis):
    return keras.ops.matmul(inputs, basis)


def transposed(basis):
    return keras.ops.transpose(basis)


def without(name):
    def get_config(self):
        config = Times.get_config(self)
        del config[name]
        return config

    return get_config


def of_static_batch(self, inputs):
    return tf.reshape(Times.call(self, inputs), [*inputs.shape[:-1], self.units])


WRONG_LAYERS = {
    "bias": ({"project": lambda self, x, b: product(x, b) + 1.0}, "`project` adds nothing of its"),
    "nonlinear": (
        {"project": lambda self, x, b: product(keras.ops.relu(x), b)},
        "`project` is linear in what comes in",
    ),
    "columns": (
        {"project": lambda self, x, b: product(x, b[:, ::-1])},
        "`project` is linear in the basis, column by column",
    ),
    "first": (
        {"project": lambda self, x, b: transposed(product(x, b))},
        r"has them last. Received: shape \(5, 3\) for 5 columns",
    ),
    "left": ({"project": lambda self, x, b: product(transposed(b), x)}, "`project` takes inputs"),
    "transposed": ({"expand": lambda self, z, b: product(z, b)}, r"`expand` takes .* \(m, k\)"),
    "mirrored": (
        {"expand": lambda self, z, b: product(z[..., ::-1], transposed(b))},
        "`expand` takes a basis as V",
    ),
    "shifted": (
        {"expand": lambda self, z, b: product(z, transposed(b)) + 1.0},
        "`expand` adds nothing of its own",
    ),
    "cut": (
        {"project": lambda self, x, b: product(x, tf.stop_gradient(b))},
        "has its gradient by U. Received: None",
    ),
    "halved": (
        {"expand": lambda self, z, b: product(z, transposed(0.5 * b + tf.stop_gradient(0.5 * b)))},
        "That gradient by V is true",
    ),
    "formed": (
        {"call": lambda self, x: product(x, self.kernel)},
        "`call` uses `apply_kernel`",
    ),
    "unbuilt": ({"build": lambda self, shape: None}, "has called `build_factors`"),
    "shape": ({"compute_output_shape": lambda self, shape: shape}, "as `compute_output_shape`"),
    "type": (
        {"call": lambda self, x: tf.cast(Times.call(self, x), "float64")},
        "The outputs are as .* and the dtype policy",
    ),
    "static": ({"call": of_static_batch}, "can be traced by TensorFlow for any batch size"),
    "config": ({"get_config": without("units")}, "`get_config` has all arguments.*units"),
    "default": ({"get_config": without("scale")}, "The layer from the config returns the same"),
}


def test_a_layer_of_ones_own_passes():
    check_layer(Times(4, 2.0, rank=2), normal(3, 8))


@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_a_wrong_layer_is_told_what_is_wrong(name):
    methods, words = WRONG_LAYERS[name]
    with pytest.raises(ValueError, match=rf"Wrong 'wrong' breaks these rules:\n.*{words}"):
        check_layer(type("Wrong", (Times,), methods)(4, 2.0, rank=2), normal(3, 8))


def test_a_layer_that_is_not_low_rank_is_told():
    with pytest.raises(ValueError, match="The layer is low-rank, or holds a layer that is"):
        check_layer(keras.layers.Dense(4), normal(3, 8))


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
        r"goes down the gradient G: <G, D> > 0. Received: <G, D> = -",
    ),
    "forgotten": (
        turned(lambda d, state: (d, {"mean": state["mean"]})),
        r"all that `state` names, and nothing else. Received: \['mean'\]",
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
        "The state 'mean' is kept whole",
    ),
    "zero": ({"direction": unbounded}, "is finite for gradients of zero. Received: NaN"),
    "counting": ({"direction": counting}, "The direction depends on the arguments alone"),
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
    with pytest.raises(ValueError, match="among columns, rows, scalar, tangent.*'matrix'"):
        check_rule(rule)


@pytest.mark.parametrize("adapt_every", [1, 16])
@pytest.mark.parametrize("kind", [Parallel, RankAdaptive, FixedRank])
def test_the_integrators_of_the_package_pass(kind, adapt_every):
    report = check_retraction(kind(adapt_every=adapt_every))
    assert "The error of W - h D falls as h^2 (order 2.0)" in str(report)


class Retraction(Parallel):
    """An integrator of a user's own, from which each wrong one differs in one point."""


def moved(change):
    """A `move` that changes what that of `Parallel` returns."""

    def move(self, factors, direction, step_size, policy):
        return change(Parallel.move(self, factors, direction, step_size, policy))

    return {"move": move}


def scaled_step(factor):
    return {"move": lambda self, w, d, h, policy: Parallel.move(self, w, d, factor * h, policy)}


def plain_step(self, factors, direction, step_size, policy):
    u, s, v = factors
    return Point(u - step_size * direction.K, s, v)


def of_eigenvectors(self, factors, direction, step_size, policy):
    _, vectors = tf.linalg.eigh(tf.matmul(direction.S, direction.S, transpose_a=True))
    new = Parallel.move(self, factors, direction, step_size, policy)
    return new._replace(S=new.S + 0.0 * tf.reduce_sum(vectors))


def keeping_the_smallest(self, factors, direction, step_size, policy):
    u, s, v = factors
    rank = policy.rank(tf.linalg.diag_part(s), len(s))
    if rank < len(s):
        last = slice(len(s) - int(rank), None)
        return Point(u[:, last], s[last, last], v[:, last])
    return Parallel.move(self, factors, direction, step_size, policy)


def at_one_rank(self, factors, direction, step_size, policy):
    keeps = policy._replace(truncation=keras_lowrank.KeepRank(), max_rank=None)
    return Parallel.move(self, factors, direction, step_size, keeps)


def branching_on_the_rank(self, factors, direction, step_size, policy):
    halved = step_size / 2 if tf.norm(direction.K) > 10.0 else step_size
    return Parallel.move(self, factors, direction, halved, policy)


def with_a_turn(point):
    c, s = np.cos(0.1), np.sin(0.1)
    turn = np.eye(len(point.S))
    turn[:2, :2] = [[c, -s], [s, c]]
    return Point(tf.matmul(point.U, turn), tf.matmul(turn.T, point.S), point.V)


WRONG_INTEGRATORS = {
    "sign": (scaled_step(-1.0), "order 1.0, while W goes -1.00 times .*: the sign of h is wrong"),
    "half": (scaled_step(0.5), "order 1.0, while W goes 0.50 times as far along -D"),
    "plain": ({"move": plain_step}, "U and V have orthonormal columns. Received: .* = "),
    "core": (moved(with_a_turn), "S is diagonal. Received: .* beside the diagonal"),
    "order": (
        moved(lambda p: Point(p.U[:, ::-1], p.S[::-1, ::-1], p.V[:, ::-1])),
        "The diagonal of S descends",
    ),
    "signs": (moved(lambda p: Point(-p.U, -p.S, p.V)), "descends, and is at least 0"),
    "drift": (moved(lambda p: p._replace(S=0.999 * p.S)), "W stays for h = 0"),
    "exchanged": (moved(lambda p: Point(p.V, p.S, p.U)), "a new matrix for each one, of its shape"),
    "NaN": (moved(lambda p: p._replace(S=np.nan * p.S)), "All values are finite. Received: NaN"),
    "rank": ({"move": at_one_rank}, r"at most `max_rank` of the policy. Received: ranks \[3, 2\]"),
    "lower": (
        moved(lambda p: Point(p.U[:, :1], p.S[:1, :1], p.V[:, :1])),
        r"The rank stays where the policy keeps it. Received: ranks \[1, 1\]",
    ),
    "smallest": ({"move": keeping_the_smallest}, "Truncation costs no more than the policy allows"),
    "eigenvectors": ({"move": of_eigenvectors}, "A direction of NaN raises nothing"),
    "branching": ({"move": branching_on_the_rank}, "A step can be traced by TensorFlow"),
    "config": ({"get_config": lambda self: {"every": 16}}, "`get_config` has all arguments"),
}


@pytest.mark.parametrize("name", WRONG_INTEGRATORS)
def test_a_wrong_integrator_is_told_what_is_wrong(name):
    methods, words = WRONG_INTEGRATORS[name]
    with pytest.raises(ValueError, match=rf"(?s)Wrong.move breaks these rules:\n.*{words}"):
        check_retraction(type("Wrong", (Retraction,), methods)())


def test_what_training_would_miss_is_told():
    class OnlyMoves(keras_lowrank.Integrator):
        move = Parallel.move

    check_retraction(OnlyMoves())
    with pytest.raises(ValueError, match="With adapt_every=1, `step` is implemented"):
        check_retraction(OnlyMoves(adapt_every=1))

    class Unannounced(FixedRank):
        needs_second_pass = False

    with pytest.raises(ValueError, match="`needs_second_pass` is True where `step` asks for a sec"):
        check_retraction(Unannounced(adapt_every=1))

    class Forgets(Parallel):
        def get_config(self):
            return {}

    with pytest.raises(ValueError, match="`get_config` has `adapt_every`. Received: .*16"):
        check_retraction(Forgets(adapt_every=4))
