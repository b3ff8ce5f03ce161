"""One trace for all matrices of a step, and branches that stay out of the graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.closed_form import orthonormal

from keras_lowrank import Budget, KeepRank, LowRankDense, LowRankModel, Tolerance, Truncation
from keras_lowrank.integrators.trace_once import trace_once
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.outlined import outlined
from keras_lowrank.ranks.policy import Policy


class Halving(Truncation):
    """A rule with an attribute that is neither a tensor nor hashable."""

    def __init__(self, parts):
        self.parts_of_rank = parts

    def rank(self, singular_values, current):
        return current // self.parts_of_rank[0]


class Counting(Truncation):
    """A rule that reads a variable, and writes it."""

    def __init__(self):
        self.calls = tf.Variable(0)

    def rank(self, singular_values, current):
        return tf.minimum(self.calls.assign_add(1).read_value(), current)


def matrix(n, m, r, dtype="float32"):
    rng = np.random.default_rng(n)
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    values = np.diag(2.0 ** -np.arange(r))
    factors = Point(*(tf.constant(part, dtype) for part in (u, values, v)))
    direction = TangentVector(*(tf.constant(part, dtype) for part in (u, values, v)))
    return factors, direction


def cut(factors, direction, policy):
    """A stand-in for a step: it depends on every argument."""
    values = tf.linalg.diag_part(factors.S)
    rank = policy.rank(values, tf.shape(values)[0])
    u, _, v = factors
    return Point(u[:, :rank], direction.S[:rank, :rank], 2.0 * v[:, :rank])


def in_a_graph(matrices, policies):
    """What `trace_once` makes of matrices, and how many traces."""
    traced = []

    @tf.function
    def step():
        def counted(*arguments):
            traced.append(arguments)
            return cut(*arguments)

        move = trace_once(counted)
        return [move(*one, policy) for one, policy in zip(matrices, policies)]

    return step(), len(traced)


def check(moves, matrices, policies):
    for move, one, policy in zip(moves, matrices, policies, strict=True):
        for ours, right in zip(move, cut(*one, policy), strict=True):
            np.testing.assert_array_equal(ours, right)


MATRICES = [matrix(9, 5, 4), matrix(7, 8, 3), matrix(6, 6, 6)]


@pytest.mark.parametrize(
    "policies, traces",
    [
        ([Policy(Tolerance(0.3))] * 3, 1),
        ([Policy(KeepRank(), min_rank) for min_rank in (1, 2, 3)], 1),
        ([Policy(KeepRank(), 1, max_rank) for max_rank in (2, 3, None)], 2),
        ([Policy(Tolerance(0.3)), Policy(Tolerance(0.1)), Policy(KeepRank())], 3),
        ([Policy(Halving([parts])) for parts in (1, 2, 3)], 3),
    ],
)
def test_a_step_is_traced_once_for_all_that_decide_alike(policies, traces):
    moves, count = in_a_graph(MATRICES, policies)
    check(moves, MATRICES, policies)
    assert count == traces


def test_ranks_that_were_allotted_one_by_one_share_a_trace():
    matrices = [factors for factors, _ in MATRICES]
    allotted = Budget(weights=120, steps=1).plan(
        matrices, tf.constant(1.0), (0, 0), [1] * len(matrices)
    )
    policies = [Policy(truncation) for truncation in allotted]
    moves, count = in_a_graph(MATRICES, policies)
    check(moves, MATRICES, policies)
    assert count == 1
    assert len({int(tf.shape(move.S)[0]) for move in moves}) > 1


def test_a_rule_may_hold_a_variable():
    rule = Counting()
    moves, count = in_a_graph(MATRICES, [Policy(rule)] * 3)
    assert [len(move.S) for move in moves] == [1, 2, 3]
    assert (count, int(rule.calls)) == (1, 3)


def test_types_have_a_trace_each():
    matrices = [matrix(9, 5, 4), matrix(9, 5, 4, "float64")]
    policies = [Policy(KeepRank())] * 2
    moves, count = in_a_graph(matrices, policies)
    check(moves, matrices, policies)
    assert count == 2


def test_eagerly_every_matrix_is_moved_by_itself():
    seen = []
    move = trace_once(lambda *arguments: seen.append(arguments[0]) or cut(*arguments))
    policy = Policy(KeepRank())
    check([move(*one, policy) for one in MATRICES], MATRICES, [policy] * 3)
    assert all(factors is one[0] for factors, one in zip(seen, MATRICES))


def test_rows_of_a_table_are_traced_like_whole_blocks():
    slices = tf.IndexedSlices(tf.ones([2, 3]), tf.constant([1, 4]), tf.constant([6, 3]))
    whole = tf.constant(np.arange(18.0, dtype="float32").reshape(6, 3))

    @tf.function
    def add():
        plus = trace_once(row_sparse.plus)
        return plus(whole, slices), plus(whole, whole)

    by_rows, both = add()
    np.testing.assert_array_equal(by_rows, whole.numpy() + row_sparse.dense(slices).numpy())
    np.testing.assert_array_equal(both, 2.0 * whole.numpy())


def test_layers_alike_add_next_to_nothing_to_the_graph_of_a_step():
    """Beside their own passes: a step of ten layers has no more functions than one of two."""

    def functions(depth):
        x = inputs = keras.Input((6,))
        for _ in range(depth):
            x = LowRankDense(6, rank=3)(x)
        model = LowRankModel(inputs, x)
        model.compile("sgd", "mse")
        batch = tf.ones((4, 6)), tf.ones((4, 6))
        model._training.prepare((*batch, None))
        graph = tf.function(model.train_step).get_concrete_function(batch).graph.as_graph_def()
        return len(graph.library.function)

    assert functions(10) == functions(2)


def test_an_outlined_branch_stays_out_of_the_graph():
    @tf.function(autograph=False)
    def choose(x, often):
        return tf.cond(often, lambda: x, outlined(lambda: tf.linalg.det(x) * x))

    x = tf.constant([[3.0, 1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(choose(x, tf.constant(True)), x)
    np.testing.assert_allclose(choose(x, tf.constant(False)), 2.0 * x, rtol=1e-6)
    library = choose.get_concrete_function(x, tf.constant(True)).graph.as_graph_def().library
    (home,) = [f for f in library.function if any(n.op == "MatrixDeterminant" for n in f.node_def)]
    assert home.attr["_noinline"].b


def test_an_outlined_branch_is_itself_eagerly():
    def branch():
        raise AssertionError

    assert outlined(branch) is branch
