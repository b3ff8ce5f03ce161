"""A check that an integrator is a retraction: on the manifold, and correct to first order."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_lowrank.diagnostics.known_steps import (
    Steps,
    distance,
    full,
    random_point,
    random_tangent,
    with_last,
)
from keras_lowrank.diagnostics.report import Report
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.manifold.point import Point
from keras_lowrank.ranks.policy import Policy
from keras_lowrank.ranks.truncation import KeepRank, Tolerance

# Step sizes for directions of norm 1, and the least order of their errors.
_STEP_SIZES, _ORDER = 0.1 * 0.5 ** np.arange(5), 1.8
# Smaller errors are rounding, in float64.
_ROUNDING = 1e-10
_TOLERANCE = 0.1


def check_retraction(
    integrator: Integrator, shape: tuple[int, int] = (12, 9), rank: int = 3
) -> Report:
    r"""Checks the steps of an `Integrator` on two matrices with known tangent directions.

    Checks `step` with `adapt_every=1`, else `move`:

    - a new matrix has orthonormal bases and a diagonal core that descends;
    - `h = 0` returns W, and the error of `W - h D` falls as `h^2`;
    - the policy decides the ranks, and bounds the error of truncation;
    - a singular value of zero gives finite values, and a direction of NaN raises nothing;
    - the step can be traced for any rank.

    Args:
        integrator: `Integrator`.
        shape: `(n, m)`, ints, the shape of the first matrix. The second has the shape `(m, n)` and
            the next smaller rank.
        rank: int, the rank of the first matrix, at most half of its smaller extent. Defaults to 3.

    Returns:
        `Report`, with the measured order.

    Raises:
        ValueError: rules are broken. The message lists each with what was received.

    Example:

    >>> print(diagnostics.check_retraction(Parallel()))  # doctest: +ELLIPSIS
    Parallel.move keeps these rules:
    - ...
    - The error of W - h D falls as h^2 (order 2.0)
    - ...
    """
    rng = np.random.default_rng(0)
    full_steps = integrator.adapt_every == 1
    name = "step" if full_steps else "move"
    ranks = [rank, max(rank - 1, 1)]
    points = [random_point(rng, n, m, r) for (n, m), r in zip((shape, shape[::-1]), ranks)]
    directions = [random_tangent(rng, point) for point in points]
    take = Steps(integrator, full_steps, points, directions)
    with Report(f"{type(integrator).__name__}.{name}") as report:
        report.need(
            getattr(type(integrator), name) is not getattr(Integrator, name),
            f"With adapt_every={integrator.adapt_every}, `{name}` is implemented",
            f"the class {type(integrator).__name__}, which has no `{name}`",
        )
        kept = [Policy(KeepRank())] * 2
        moved = report.attempt(f"`{name}` returns new matrices", lambda: take(kept, _STEP_SIZES[0]))
        _check_form(report, moved, points)
        found = [len(point.S) for point in moved]
        rule = "The rank stays the same if the policy keeps it"
        report.check(found == ranks, rule, f"ranks {found} of {ranks}")
        rest = max(map(distance, take(kept, 0.0), points))
        report.check(rest < _ROUNDING, "h = 0 returns W", f"||W_new - W|| = {rest:.1g}")
        _check_order(report, take, kept)
        _check_truncation(report, integrator, take)
        _check_faults(report, take, kept)
        _check_trace(report, take, kept, moved)
        if full_steps:
            report.check(
                integrator.needs_second_pass or not take.second_passes,
                "`needs_second_pass` is True if `step` asks for a second pass",
                "False",
            )
        again = report.attempt(
            "`get_config` has all arguments of `__init__`",
            lambda: type(integrator).from_config(integrator.get_config()),
        )
        report.check(
            again.adapt_every == integrator.adapt_every,
            "`get_config` has `adapt_every`",
            f"adapt_every={again.adapt_every} in place of {integrator.adapt_every}",
        )
        of_config = Steps(again, full_steps, points, directions)(kept, _STEP_SIZES[0])
        for again, expected in zip(of_config, moved):
            rule = "An integrator from the config takes the same step"
            report.close(rule, full(again), full(expected))
    return report


def _check_form(report: Report, moved: list[Point], points: list[Point], when: str = "") -> None:
    """Checks shapes, finite values, orthonormal bases and diagonal cores."""
    shapes = [(p.U.shape[0], p.V.shape[0]) for p in moved]
    report.need(
        shapes == [(p.U.shape[0], p.V.shape[0]) for p in points],
        "Each matrix has a new matrix of the same shape",
        f"shapes {shapes}",
    )
    finite = all(bool(np.all(np.isfinite(part))) for point in moved for part in point)
    report.need(finite, f"All values are finite{when}", "NaN or infinity")
    bases = [np.asarray(basis) for point in moved for basis in (point.U, point.V)]
    off = max(float(np.linalg.norm(q.T @ q - np.eye(q.shape[1]))) for q in bases)
    seen = f"||U^T U - I|| = {off:.1g}"
    report.check(off < _ROUNDING, f"U and V have orthonormal columns{when}", seen)
    cores = [np.asarray(point.S) for point in moved]
    outside = max(float(np.linalg.norm(core - np.diag(np.diag(core)))) for core in cores)
    seen = f"{outside:.1g} outside the diagonal"
    report.check(outside < _ROUNDING, f"S is diagonal{when}", seen)
    values = [np.append(np.diag(core), 0.0) for core in cores]
    descend = all(bool(np.all(np.diff(one) <= _ROUNDING)) for one in values)
    seen = f"a diagonal of {values[0][:-1].round(3)}"
    report.check(descend, f"The diagonal of S descends, and is at least 0{when}", seen)


def _check_order(report: Report, take: Steps, policies: Sequence[Policy]) -> None:
    """Checks that a step is `W - h D` to first order."""
    small = _STEP_SIZES[-1]
    moves = zip(take(policies, small), take.points, take.directions)
    parts = [np.sum((full(p) - full(new)) * d) / small for new, p, d in moves]
    part = max(parts, key=lambda one: abs(one - 1.0))  # D has norm 1
    errors = np.array([take.error(policies, h) for h in _STEP_SIZES])
    orders = np.log2(errors[:-1] / np.maximum(errors[1:], _ROUNDING * small))
    order = np.median(orders) if errors[0] > _ROUNDING else np.inf
    received = f"order {order:.1f}, and W moves by {part:.2f} h along -D"
    if part < 0:
        received += ": the sign of h is wrong"
    rule = "The error of W - h D falls as h^2"
    report.check(bool(order >= _ORDER), rule, received, f"order {order:.1f}")


def _check_truncation(report: Report, integrator: Integrator, take: Steps) -> None:
    """Checks that ranks follow the policy, and the error of truncation."""
    if not integrator.adapts_rank:
        return  # all of its policies keep the rank
    ranks = [len(point.S) for point in take.points]
    less = [max(rank - 1, 1) for rank in ranks]
    faint = [with_last(point, 1e-3) for point in take.points]
    cut = take([Policy(Tolerance(_TOLERANCE))] * 2, 0.0, faint)
    found = [len(point.S) for point in cut]
    rule = "The policy decides the rank: a singular value far below the tolerance is truncated"
    report.check(found == less, rule, f"ranks {found} of {ranks}")
    bounds = [Policy(Tolerance(0.0), max_rank=rank) for rank in less]
    found = [len(point.S) for point in take(bounds, 0.1)]
    report.check(
        all(one <= most for one, most in zip(found, less)),
        "The rank is at most `max_rank` of the policy",
        f"ranks {found}, where {less} are allowed",
    )
    errors = [distance(one, p) / float(np.linalg.norm(p.S)) for one, p in zip(cut, faint)]
    report.check(
        max(errors) <= _TOLERANCE,
        "The error of truncation is at most the tolerance of the policy",
        f"a relative error of {max(errors):.0e}, where {_TOLERANCE} is allowed",
    )


def _check_faults(report: Report, take: Steps, policies: Sequence[Policy]) -> None:
    """Checks that neither zeros nor NaN raise an error."""
    zeros = [with_last(point, 1e-18) for point in take.points]
    _check_form(report, take(policies, 0.1, zeros), zeros, " from a singular value of zero")
    nowhere = [np.full_like(direction, np.nan) for direction in take.directions]
    report.attempt(
        "A direction of NaN raises nothing: the whole step is discarded later",
        lambda: take(policies, 0.1, directions=nowhere),
    )


def _check_trace(
    report: Report, take: Steps, policies: Sequence[Policy], expected: list[Point]
) -> None:
    """Checks that a step can be traced for any rank."""
    given = take.points[:1], take.directions[:1]

    def step(*flat: tf.Tensor) -> list[Point]:
        points, directions = tf.nest.pack_sequence_as(given, flat)
        return take(policies[:1], tf.constant(_STEP_SIZES[0]), points, directions)

    flat = [tf.convert_to_tensor(one) for one in tf.nest.flatten(given)]
    specs = [tf.TensorSpec([None, None], tf.float64)] * len(flat)
    traced = tf.function(step, autograph=False)
    (found,) = report.attempt(
        "A step can be traced by TensorFlow for any rank",
        lambda: traced.get_concrete_function(*specs)(*flat),
    )
    report.close(
        "A traced step returns the same as an eager one", full(Point(*found)), full(expected[0])
    )
