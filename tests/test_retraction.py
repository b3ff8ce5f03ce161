"""The way by r x r products against the general one, and when it is not taken."""

import types

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from reference.cases import few, seeds
from reference.closed_form import matrix, orthonormal
from reference.trajectories import defect

from keras_lowrank import KeepRank, Tolerance, Truncation
from keras_lowrank.factors import Factorization
from keras_lowrank.integrators.augmentation import augment
from keras_lowrank.integrators.retraction import Corner, nearest, retract
from keras_lowrank.tangent_vector import TangentVector, overlap
from keras_lowrank.truncation import Policy

h = 0.1


def random_step(rng, n, m, r, condition, tangent, dtype="float32"):
    """Factors and a direction whose new part is `tangent` times the smallest singular value."""
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    values = np.geomspace(1, 1 / condition, r)
    G = rng.standard_normal((n, m))
    added = (np.eye(n) - u @ u.T) @ G @ v
    G *= tangent * values[-1] / (h * max(np.linalg.norm(added, 2), 1e-30))
    factors = Factorization(*(tf.constant(t, dtype) for t in (u, np.diag(values), v)))
    direction = TangentVector(*(tf.constant(t, dtype) for t in (G @ v, u.T @ G @ v, G.T @ u)))
    return factors, direction


def step_size(factors):
    return tf.constant(h, factors.S.dtype)


def step_of(step_size, check_bases=True, wants_overlap=False):
    """What `retract` asks of a `Problem`."""
    return types.SimpleNamespace(
        step_size=step_size, check_bases=tf.constant(check_bases), wants_overlap=wants_overlap
    )


def target(factors, direction):
    """`W - h P(D)`, in float64."""
    u, _, v = (t.numpy().astype("float64") for t in factors)
    k, s, l = (t.numpy().astype("float64") for t in direction)
    return matrix(factors) - h * (k @ v.T + u @ l.T - u @ s @ v.T)


def refused():
    raise AssertionError("The general way was taken.")


def by_products(factors, direction, policy, corner=None):
    """The result of the near way alone; eager, so that the other way is not even traced."""
    problem = step_of(step_size(factors), wants_overlap=True)
    step = factors, direction, policy
    near = corner and (lambda: nearest(*step, problem.step_size, corner))
    return retract(problem, *step, refused, near).factors


def is_near(factors, direction, policy):
    return bool(nearest(factors, direction, policy, step_size(factors)).valid)


@few
@given(
    st.tuples(st.integers(12, 40), st.integers(12, 40), st.integers(1, 6)),
    seeds,
    st.sampled_from([1.0, 10.0, 500.0]),
    st.sampled_from([0.0, 1e-3, 0.01, 0.03]),
    st.sampled_from(["float32", "float64"]),
)
def test_a_short_step_lands_on_the_best_approximation(shape, seed, condition, tangent, dtype):
    factors, direction = random_step(np.random.default_rng(seed), *shape, condition, tangent, dtype)
    W, r = target(factors, direction), shape[2]
    p, values, qt = np.linalg.svd(W)
    u, s, v = by_products(factors, direction, Policy(KeepRank()))
    unit = np.finfo(dtype).eps
    bound = 64 * unit * np.linalg.norm(W)
    assert np.linalg.norm(matrix((u, s, v)) - (p[:, :r] * values[:r]) @ qt[:r]) <= bound
    np.testing.assert_allclose(np.linalg.svd(s, compute_uv=False), values[:r], atol=bound)
    for basis in (u, v):
        assert defect(basis) <= 64 * unit
    peaks = (u.numpy().T @ factors.U.numpy()).diagonal()
    # A basis that turns little keeps its order and its signs.
    assert condition == 1.0 or np.all(peaks > 0.5)


@few
@given(seeds, st.booleans(), st.sampled_from([1.0, 50.0]), st.integers(1, 5))
def test_the_overlap_is_known_from_small_products(seed, mended, condition, kept):
    step = random_step(np.random.default_rng(seed), 30, 20, 5, condition, 0.03, "float64")
    problem = step_of(step_size(step[0]), mended, wants_overlap=True)
    moved = retract(problem, *step, Policy(KeepRank(), max_rank=kept), refused)
    for found, expected in zip(moved.overlap, overlap(step[1], step[0], moved.factors)):
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.linalg.norm(step[1].K))


@few
@given(
    st.tuples(st.integers(12, 40), st.integers(12, 40), st.integers(1, 6)),
    seeds,
    st.sampled_from([1.0, 10.0, 500.0]),
    st.sampled_from([1e-3, 0.01]),
    st.sampled_from(["float32", "float64"]),
)
def test_a_short_step_with_a_corner_lands_on_the_best_approximation(
    shape, seed, condition, tangent, dtype
):
    """The corner that the augmented bases of the full gradient have: `Q^T G Z`."""
    rng, r = np.random.default_rng(seed), shape[2]
    factors, direction = random_step(rng, *shape, condition, tangent, dtype)
    augmented = augment(factors, direction)
    q, z = (
        side.formed(basis).numpy().astype("float64")
        for side, basis in ((augmented.left, factors.U), (augmented.right, factors.V))
    )
    block = rng.standard_normal((q.shape[1], z.shape[1]))
    block *= tangent / condition / h / np.linalg.norm(block, 2)
    corner = Corner(augmented.left, augmented.right, tf.constant(block, dtype))
    p, values, qt = np.linalg.svd(target(factors, direction) - h * q @ block @ z.T)
    new = by_products(factors, direction, Policy(KeepRank()), corner)
    bound = 64 * np.finfo(dtype).eps * np.linalg.norm(values)
    assert np.linalg.norm(matrix(new) - (p[:, :r] * values[:r]) @ qt[:r]) <= bound
    assert max(defect(new.U), defect(new.V)) <= 64 * np.finfo(dtype).eps
    tail = np.linalg.norm(values[r:])
    growing = Policy(Tolerance(0.99 * tail, relative=False))
    assert not nearest(factors, direction, growing, step_size(factors), corner).valid


@pytest.mark.parametrize("n, m, r", [(6, 6, 6), (5, 9, 5), (9, 5, 5), (1, 7, 1), (7, 1, 1)])
def test_a_short_step_where_one_side_is_full(n, m, r):
    factors, direction = random_step(np.random.default_rng(0), n, m, r, 3.0, 0.0)
    scale = 0.05 / h
    G = np.random.default_rng(1).standard_normal((n, m)) / np.sqrt(n * m) * scale
    u, _, v = (t.numpy() for t in factors)
    direction = TangentVector(*(tf.constant(t, tf.float32) for t in (G @ v, u.T @ G @ v, G.T @ u)))
    new = by_products(factors, direction, Policy(KeepRank()))
    p, values, qt = np.linalg.svd(target(factors, direction))
    np.testing.assert_allclose(matrix(new), (p[:, :r] * values[:r]) @ qt[:r], atol=1e-6)


@few
@given(seeds, st.sampled_from([0.0, 0.01, 0.05]), st.floats(0.02, 0.6), st.booleans())
def test_a_rank_that_is_sure_to_stay_stays(seed, slack, tau, relative):
    """With the singular values known, and known only within factors `1 +- slack`."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.uniform(0.1, 1.0, 5))[::-1]
    E = rng.standard_normal((5, 5))
    E *= slack / np.linalg.norm(E, 2)
    exact = np.linalg.svd((np.eye(5) + E) * values, compute_uv=False)
    tail = np.float32(rng.choice([0.0, 0.02]))
    policy = Policy(Tolerance(tau, relative))
    about = (tf.constant(rng.permutation(values), tf.float32), tail, tf.constant(slack, tf.float32))
    for tails in ([tail], [0.0]):
        rank = policy.rank(tf.constant([*exact, *tails], tf.float32), 5)
        assert rank == 5 or not policy.keeps(*about, 5)
    clear = (
        values[-1] > 1.2 * tau * (np.linalg.norm(values) if relative else 1.0) and tail < tau / 2
    )
    assert policy.keeps(*about, 5) or not clear


def test_a_core_is_diagonalised_where_it_is_far_from_diagonal_or_a_rank_falls():
    factors, direction = random_step(np.random.default_rng(2), 30, 20, 4, 2.0, 0.01)
    core = np.diag([1.0, 0.8, 0.6, 0.5]).astype("float32")

    def cores(added, policy):
        turned = factors._replace(S=tf.constant(core + added))
        return by_products(turned, direction, policy).S.numpy()

    off = np.zeros((4, 4), "float32")
    off[0, 1] = 0.01
    kept = cores(off, Policy(KeepRank()))
    assert kept[0, 1] > 0.005  # as it is
    far = cores(20 * off, Policy(KeepRank()))
    np.testing.assert_array_equal(far, np.diag(np.diag(far)))
    fallen = cores(off, Policy(Tolerance(0.4)))
    assert len(fallen) < 4
    np.testing.assert_array_equal(fallen, np.diag(np.diag(fallen)))


@pytest.mark.parametrize("kept", [1, 3, 4])
def test_the_rank_falls_on_this_way_too(kept):
    """To the rank of the rule, at the error of the tail."""
    factors, direction = random_step(np.random.default_rng(2), 30, 20, 4, 8.0, 0.01)
    W = target(factors, direction)
    values = np.linalg.svd(W, compute_uv=False)
    tails = [np.linalg.norm(values[i:]) for i in range(6)]
    tau = 0.5 * (tails[kept] + tails[kept - 1]) / tails[0]
    new = by_products(factors, direction, Policy(Tolerance(tau)))
    assert len(new.S) == kept
    assert abs(np.linalg.norm(matrix(new) - W) - tails[kept]) <= 1e-5 * tails[0]


def test_a_bound_on_the_rank_binds_on_this_way_too():
    factors, direction = random_step(np.random.default_rng(2), 30, 20, 4, 8.0, 0.01)
    assert len(by_products(factors, direction, Policy(KeepRank(), max_rank=2)).S) == 2
    assert len(by_products(factors, direction, Policy(Tolerance(0.9), min_rank=3)).S) == 3


def test_the_general_way_is_taken_where_the_rank_grows_or_may_grow():
    step = random_step(np.random.default_rng(3), 30, 20, 4, 2.0, 0.05)
    tail = np.linalg.norm(np.linalg.svd(target(*step), compute_uv=False)[4:])
    assert is_near(*step, Policy(Tolerance(10 * tail, relative=False)))
    assert not is_near(*step, Policy(Tolerance(0.5 * tail, relative=False)))
    assert not is_near(*step, Policy(Tolerance(1.001 * tail, relative=False)))  # too close to call
    assert not is_near(*step, Policy(KeepRank(), min_rank=5))


@pytest.mark.parametrize("tangent", [3.0, 1e3, 1e30])
def test_the_general_way_is_taken_where_the_step_is_long(tangent):
    step = random_step(np.random.default_rng(4), 30, 20, 4, 2.0, tangent)
    assert not is_near(*step, Policy(KeepRank()))


@pytest.mark.parametrize("last", [0.0, 1e-8])
def test_the_general_way_is_taken_where_a_singular_value_is_next_to_zero(last):
    factors, direction = random_step(np.random.default_rng(5), 30, 20, 4, 2.0, 1e-3)
    values = tf.constant([1.0, 0.5, 0.3, last])
    assert not is_near(factors._replace(S=tf.linalg.diag(values)), direction, Policy(KeepRank()))
    assert not is_near(factors._replace(S=tf.zeros([4, 4])), direction, Policy(KeepRank()))


@pytest.mark.parametrize("turned", [False, True])
def test_a_step_that_magnifies_roundings_is_left_to_the_general_way(turned):
    """One side full, and a move within the bases of 80 times the least singular value."""
    rng = np.random.default_rng(0)
    u, v = orthonormal(rng, 23, 3), orthonormal(rng, 3, 3)
    inside = np.zeros((3, 3))
    inside[2, 0] = 0.1 / h * 0.2
    if turned:
        u, v, inside = v, u, inside.T
    values = np.array([1.0, 0.02, 2.5e-4])
    factors = Factorization(*(tf.constant(t, "float32") for t in (u, np.diag(values), v)))
    direction = TangentVector(
        *(tf.constant(t, "float32") for t in (u @ inside, inside, v @ inside.T))
    )
    assert not is_near(factors, direction, Policy(KeepRank()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_left_to_the_general_way(bad):
    factors, direction = random_step(np.random.default_rng(6), 30, 20, 4, 2.0, 0.01)
    k = direction.K.numpy()
    k[3, 1] = bad
    assert not is_near(factors, direction._replace(K=tf.constant(k)), Policy(KeepRank()))
    core = direction.S.numpy()
    core[0, 1] = bad
    assert not is_near(factors, direction._replace(S=tf.constant(core)), Policy(KeepRank()))


def test_a_rule_that_looks_at_every_singular_value_is_given_every_one():
    class HalfOfTheLargest(Truncation):
        def rank(self, singular_values, current):
            return tf.math.count_nonzero(singular_values > 0.5 * singular_values[0], dtype=tf.int32)

    step = random_step(np.random.default_rng(7), 30, 20, 4, 2.0, 0.01)
    answer = object()
    policy = Policy(HalfOfTheLargest())
    assert retract(step_of(h), *step, policy, lambda: answer).factors is answer


def test_bases_that_have_drifted_are_mended_when_they_are_checked():
    (u, s, v), direction = random_step(np.random.default_rng(8), 30, 20, 4, 2.0, 0.0)
    drifted = Factorization(u * 1.001, s, v)
    zero = TangentVector(*(0 * part for part in direction))
    for check, bound in ((True, 1e-5), (False, 1e-2)):
        new, _ = retract(step_of(h, check), drifted, zero, Policy(KeepRank()), refused)
        assert defect(new.U) < bound and (check or defect(new.U) > 1e-3)
        np.testing.assert_allclose(matrix(new), matrix(drifted), atol=1e-5)
