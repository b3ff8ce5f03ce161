"""The check of an integrator: those of the package pass, and planted faults are named.

What is planted is what a user may get wrong.
"""

import numpy as np
import pytest
import tensorflow as tf

import keras_lowrank
from keras_lowrank import FixedRank, Parallel, RankAdaptive
from keras_lowrank.diagnostics import check_retraction
from keras_lowrank.manifold.point import Point


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
    "sign": (scaled_step(-1.0), "order 1.0, and W moves by -1.00 h .*: the sign of h is wrong"),
    "half": (scaled_step(0.5), "order 1.0, and W moves by 0.50 h along -D"),
    "plain": ({"move": plain_step}, "U and V have orthonormal columns. Received: .* = "),
    "core": (moved(with_a_turn), "S is diagonal. Received: .* outside the diagonal"),
    "order": (
        moved(lambda p: Point(p.U[:, ::-1], p.S[::-1, ::-1], p.V[:, ::-1])),
        "The diagonal of S descends",
    ),
    "signs": (moved(lambda p: Point(-p.U, -p.S, p.V)), "descends, and is at least 0"),
    "drift": (moved(lambda p: p._replace(S=0.999 * p.S)), "h = 0 returns W"),
    "exchanged": (moved(lambda p: Point(p.V, p.S, p.U)), "a new matrix of the same shape"),
    "NaN": (moved(lambda p: p._replace(S=np.nan * p.S)), "All values are finite. Received: NaN"),
    "rank": ({"move": at_one_rank}, r"at most `max_rank` of the policy. Received: ranks \[3, 2\]"),
    "lower": (
        moved(lambda p: Point(p.U[:, :1], p.S[:1, :1], p.V[:, :1])),
        r"The rank stays the same if the policy keeps it. Received: ranks \[1, 1\]",
    ),
    "smallest": ({"move": keeping_the_smallest}, "error of truncation is at most the tolerance"),
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

    with pytest.raises(ValueError, match="`needs_second_pass` is True if `step` asks for a second"):
        check_retraction(Unannounced(adapt_every=1))

    class Forgets(Parallel):
        def get_config(self):
            return {}

    with pytest.raises(ValueError, match="`get_config` has `adapt_every`. Received: .*16"):
        check_retraction(Forgets(adapt_every=4))
