import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference.closed_form import matrix, orthonormal, with_spectrum
from reference.truncation import kept_rank

from keras_lowrank import KeepRank, Tolerance, Truncation
from keras_lowrank.integrators.augmentation import Augmented, augment, truncate
from keras_lowrank.manifold.complement import complement
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.policy import Policy
from keras_lowrank.ranks.truncation import get_truncation

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def rank_of(truncation, values, current=0):
    values = tf.constant(values, tf.float64)
    return int(truncation.rank(values, tf.constant(current)))


@st.composite
def spectra(draw):
    """Descending values over up to ten decades, some of them zero."""
    exponents = draw(st.lists(st.floats(-8, 2), min_size=1, max_size=20))
    values = 10.0 ** np.array(exponents) * (np.array(exponents) > -7)
    return np.sort(values)[::-1]


@few
@given(spectra(), st.floats(0, 0.999), st.booleans())
def test_tolerance_keeps_the_smallest_rank_whose_tail_is_within_theta(values, tau, relative):
    norm = np.linalg.norm(values)
    theta = tau * norm if relative else tau
    tails = np.array([np.linalg.norm(values[r:]) for r in range(len(values))])
    assume(np.all(np.abs(tails - theta) > 1e-9 * norm) or theta == 0)
    assert rank_of(Tolerance(tau, relative), values) == kept_rank(values, theta)


@pytest.mark.parametrize("tau, rank", [(0.0, 3), (0.23, 3), (0.24, 2), (0.38, 2), (0.39, 1)])
def test_tolerance_at_numbers_that_can_be_checked_by_hand(tau, rank):
    """The norm is 13, and what is left of it behind the first and the second value is 5 and 3."""
    assert rank_of(Tolerance(tau), [12.0, 4.0, 3.0]) == rank


def test_absolute_tolerance_does_not_scale_with_the_matrix():
    values = np.array([4.0, 3.0, 0.5])
    assert rank_of(Tolerance(1.0, relative=False), values) == 2
    assert rank_of(Tolerance(1.0, relative=False), 10 * values) == 3
    assert rank_of(Tolerance(6.0, relative=False), values) == 0
    assert rank_of(Tolerance(0.2), values) == rank_of(Tolerance(0.2), 10 * values) == 2


def test_tolerance_counts_a_tail_of_many_faint_values():
    """A million values of 1e-4 are a tail of 0.1, though each of them is lost beside 1e3."""
    values = tf.concat([[1e3], tf.fill([10**6], 1e-4)], 0)
    assert int(Tolerance(0.09, relative=False).rank(values, 1)) > 1
    assert int(Tolerance(0.11, relative=False).rank(values, 1)) == 1


def test_tolerance_of_a_zero_spectrum_keeps_nothing_and_its_policy_the_least():
    for tolerance in (Tolerance(0.0), Tolerance(0.5), Tolerance(0.0, relative=False)):
        assert rank_of(tolerance, np.zeros(4)) == 0
        assert rank_of(Policy(tolerance), np.zeros(4)) == 1
        assert rank_of(Policy(tolerance, min_rank=3), np.zeros(4)) == 3


def test_tolerance_zero_cuts_exact_zeros_only():
    assert rank_of(Tolerance(0.0), [1.0, 1e-12, 0.0, 0.0]) == 2


def test_keep_rank_keeps_the_rank_it_is_told():
    assert rank_of(KeepRank(), [1.0, 0.0, 0.0, 0.0], current=3) == 3


@pytest.mark.parametrize(
    "low, high, expected",
    [(1, None, 2), (3, None, 3), (1, 1, 1), (2, 2, 2), (3, 3, 3), (9, None, 4), (1, 9, 2)],
)
def test_policy_keeps_to_its_bounds_and_to_what_there_is(low, high, expected):
    values = [1.0, 0.5, 0.01, 0.001]
    assert rank_of(Policy(Tolerance(0.1), low, high), values) == expected


def test_policy_of_keep_rank_cannot_keep_more_than_there_is():
    assert rank_of(Policy(KeepRank()), [1.0, 0.5], current=3) == 2


@pytest.mark.parametrize("tau", [-0.1, 1, 1.0, 2.5, float("nan"), float("inf"), True, "0.1", None])
def test_tolerance_refuses_what_is_no_relative_tolerance(tau):
    with pytest.raises(
        ValueError,
        match=r"relative `tolerance` must be in \[0, 1\), or a schedule of .* Received: tolerance=",
    ):
        Tolerance(tau)


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf"), False, [0.1]])
def test_tolerance_refuses_what_is_no_absolute_tolerance(tau):
    with pytest.raises(
        ValueError,
        match=r"absolute .* must be a finite number >= 0, or a schedule of .* Received: tolerance=",
    ):
        Tolerance(tau, relative=False)


def test_get_truncation_takes_numbers_objects_and_configs():
    assert get_truncation(0.25).get_config() == {"tolerance": 0.25, "relative": True}
    assert get_truncation(0).tolerance == 0.0
    assert get_truncation(np.float32(0.5)).get_config() == {"tolerance": 0.5, "relative": True}
    own = Tolerance(3.0, relative=False)
    assert get_truncation(own) is own
    for truncation in (own, KeepRank()):
        copy = get_truncation(keras.saving.serialize_keras_object(truncation))
        assert type(copy) is type(truncation)
        assert copy.get_config() == truncation.get_config()


@pytest.mark.parametrize("identifier", [None, "tolerance", True, [0.1], Tolerance])
def test_get_truncation_refuses_anything_else(identifier):
    with pytest.raises(ValueError, match=r"`truncation` must be a number .* Received: truncation="):
        get_truncation(identifier)


def test_get_truncation_refuses_a_number_outside_the_range():
    with pytest.raises(ValueError, match=r"Received: tolerance=1\.5"):
        get_truncation(1.5)


def test_a_truncation_without_a_rule_says_what_is_missing():
    class Unfinished(Truncation):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must implement `rank`"):
        Unfinished().rank(tf.ones([2]), 1)


def check_invariant(n, m, r, seed, tau, max_rank=None, zero=False, relative=True):
    """Truncates a random matrix in random augmented float32 bases and checks the whole promise."""
    rng = np.random.default_rng(seed)
    u, v = orthonormal(rng, n, r).astype("float32"), orthonormal(rng, m, r).astype("float32")
    factors = Point(tf.constant(u), tf.zeros([r, r]), tf.constant(v))
    G = rng.standard_normal((n, m))
    parts = (G @ v, u.T @ G @ v, G.T @ u)
    augmented = augment(factors, TangentVector(*(tf.constant(p, tf.float32) for p in parts)))
    bases = [
        np.hstack([basis, side.formed(basis).numpy()]).astype("float64")
        for basis, side in zip((u, v), (augmented.left, augmented.right))
    ]
    a, b = (basis.shape[1] for basis in bases)
    assert (a, b) == (min(2 * r, n), min(2 * r, m))
    core = with_spectrum(rng, a, b, 2.0 ** -np.arange(min(a, b))) * (not zero)
    before = bases[0] @ core @ bases[1].T
    policy = Policy(Tolerance(tau, relative), max_rank=max_rank)
    after = truncate(augmented, tf.constant(core, tf.float32), policy)

    kept = after.S.shape[0]
    tail = np.linalg.norm(np.linalg.svd(core, compute_uv=False)[kept:])
    norm = np.linalg.norm(core)
    # A random core holds as much in a faint direction as in others, unlike that of a step, and what
    # enlarges the direction enlarges its roundings.
    enlarged = [np.linalg.norm(s.residual) * np.linalg.norm(s.whitening) for s in augmented[1:]]
    slack = (1e-5 + 2.0**-24 * max(enlarged)) * norm + 1e-17  # of what stands in place of zeros
    change = np.linalg.norm(matrix(after) - before)
    assert abs(change - tail) <= slack
    theta = tau * norm if relative else tau
    if max_rank is None or kept < max_rank:
        assert change <= theta + slack
    else:
        assert kept == max_rank
    # Not more is kept than the tolerance asks for.
    values = np.linalg.svd(core, compute_uv=False)
    assert kept == 1 or np.linalg.norm(values[kept - 1 :]) > theta * (1 - 1e-5)
    S = after.S.numpy()
    np.testing.assert_array_equal(S, np.diag(np.diag(S)))
    np.testing.assert_allclose(np.diag(S), values[:kept], atol=slack)


@st.composite
def shapes(draw):
    n, m = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    return n, m, draw(st.integers(1, min(n, m)))


@few
@given(shapes(), seeds, st.sampled_from([0.0, 0.03, 0.2, 0.7]), st.none() | st.integers(1, 5))
@example((6, 6, 6), 0, 0.1, None)  # r = min(n, m): nothing can be added
@example((5, 9, 5), 0, 0.1, None)
@example((9, 5, 5), 0, 0.1, 2)
@example((1, 7, 1), 0, 0.1, None)  # n = 1
@example((7, 1, 1), 0, 0.1, None)  # m = 1
@example((1, 1, 1), 0, 0.0, None)
@example((8, 9, 1), 0, 0.1, None)  # rank 1
@example((11, 4, 2), 44099107, 0.2, None)  # a direction of 8e-5 beside one of 0.7
def test_truncation_changes_the_matrix_by_the_tail_it_cuts(shape, seed, tau, max_rank):
    check_invariant(*shape, seed, tau, max_rank)


@pytest.mark.parametrize("shape", [(8, 6, 3), (6, 6, 6), (1, 5, 1), (5, 1, 1)])
def test_truncation_of_a_zero_core_keeps_a_zero_matrix_of_rank_one(shape):
    check_invariant(*shape, seed=1, tau=0.1, zero=True)


@few
@given(shapes(), seeds, st.floats(0.01, 1.0))
def test_truncation_keeps_to_an_absolute_theta(shape, seed, theta):
    check_invariant(*shape, seed, theta, relative=False)


@pytest.mark.parametrize("faint", [1e-2, 1e-3, 2e-4])
def test_truncation_keeps_the_invariant_where_a_base_holds_a_faint_direction(faint):
    """A direction near rounding is the least orthonormal one; what the core holds in it is not."""
    rng = np.random.default_rng(2)
    n, m, r = 40, 30, 4
    u, v = orthonormal(rng, n, r), orthonormal(rng, m, r)
    factors = Point(*(tf.constant(t, tf.float32) for t in (u, np.eye(r), v)))
    scales = np.array([1.0, 1.0, 1.0, faint])
    pair = [tf.constant(rng.standard_normal((k, r)) * scales, tf.float32) for k in (n, m)]
    augmented = Augmented(factors, *map(complement, pair, factors[::2]))
    bases = [
        np.hstack([basis, side.formed(basis).numpy()]).astype("float64")
        for basis, side in zip(factors[::2], (augmented.left, augmented.right))
    ]
    assert bases[0].shape[1] == bases[1].shape[1] == 2 * r
    core = with_spectrum(rng, 2 * r, 2 * r, 2.0 ** -np.arange(2 * r))
    before = bases[0] @ core @ bases[1].T
    after = truncate(augmented, tf.constant(core, tf.float32), Policy(Tolerance(0.1)))
    kept = after.S.shape[0]
    norm = np.linalg.norm(before)
    tail = np.linalg.norm(np.linalg.svd(before, compute_uv=False)[kept:])
    change = np.linalg.norm(matrix(after) - before)
    assert abs(change - tail) <= 1e-5 * norm
    assert change <= 0.1 * norm * (1 + 1e-5)
