"""Whether an integrator is a retraction: a step on the manifold that is right to first order."""

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

# Step sizes for directions of norm 1, and the order that their errors must have.
_STEP_SIZES, _ORDER = 0.1 * 0.5 ** np.arange(5), 1.8
# Below this an error is rounding, in float64.
_ROUNDING = 1e-10
_TOLERANCE = 0.1


def check_retraction(integrator, shape=(12, 9), rank=3):
    r"""Checks the steps of an `Integrator` on two matrices with known tangent directions.

    It checks the method that training calls: `step` with `adapt_every=1`, else `move`. A new matrix
    has orthonormal bases and a diagonal core that descends; W stays for `h = 0`; the error of
    `W - h D` falls as `h^2`; ranks are those of the policy, with an error no larger than it allows;
    a singular value of zero gives finite values, and a direction of NaN no error; and it can be
    traced.

    Args:
        integrator: `Integrator`.
        shape: `(n, m)`, ints, of the first matrix. The second is `(m, n)`, of the rank below.
        rank: int, up to half the smaller of both.

    Returns:
        `Report`, with the measured order.

    Raises:
        ValueError: rules that are broken, each with what was received.

    Example:

    >>> print(diagnostics.check_retraction(Parallel()))  # doctest: +ELLIPSIS
    Parallel.move keeps these rules:
    - ...
    - The error of W - h D falls as h^2 (order 2.0)
    - ...
    """
    rng = np.random.default_rng(0)
    exact = integrator.adapt_every == 1
    name = "step" if exact else "move"
    ranks = [rank, max(rank - 1, 1)]
    points = [random_point(rng, *s, r) for s, r in zip((shape, shape[::-1]), ranks)]
    directions = [random_tangent(rng, point) for point in points]
    take = Steps(integrator, exact, points, directions)
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
        rule = "The rank stays where the policy keeps it"
        report.check(found == ranks, rule, f"ranks {found} of {ranks}")
        rest = max(map(distance, take(kept, 0.0), points))
        report.check(rest < _ROUNDING, "W stays for h = 0", f"||W_new - W|| = {rest:.1g}")
        _check_order(report, take, kept)
        _check_truncation(report, integrator, take)
        _check_faults(report, take, kept)
        _check_trace(report, take, kept, moved)
        if exact:
            report.check(
                integrator.needs_second_pass or not take.second_passes,
                "`needs_second_pass` is True where `step` asks for a second pass",
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
        of_config = Steps(again, exact, points, directions)(kept, _STEP_SIZES[0])
        for found, expected in zip(of_config, moved):
            rule = "An integrator from the config takes the same steps"
            report.close(rule, full(found), full(expected))
    return report


def _check_form(report, moved, points, when=""):
    """Checks what every new matrix has to be like."""
    shapes = [(p.U.shape[0], p.V.shape[0]) for p in moved]
    report.need(
        shapes == [(p.U.shape[0], p.V.shape[0]) for p in points],
        "There is a new matrix for each one, of its shape",
        f"shapes {shapes}",
    )
    finite = all(np.all(np.isfinite(part)) for point in moved for part in point)
    report.need(finite, f"All values are finite{when}", "NaN or infinity")
    bases = [np.asarray(basis) for point in moved for basis in (point.U, point.V)]
    off = max(np.linalg.norm(basis.T @ basis - np.eye(basis.shape[1])) for basis in bases)
    seen = f"||U^T U - I|| = {off:.1g}"
    report.check(off < _ROUNDING, f"U and V have orthonormal columns{when}", seen)
    cores = [np.asarray(point.S) for point in moved]
    rests = max(np.linalg.norm(core - np.diag(np.diag(core))) for core in cores)
    seen = f"{rests:.1g} beside the diagonal"
    report.check(rests < _ROUNDING, f"S is diagonal{when}", seen)
    values = [np.append(np.diag(core), 0.0) for core in cores]
    descend = all(np.all(np.diff(one) <= _ROUNDING) for one in values)
    seen = f"a diagonal of {values[0][:-1].round(3)}"
    report.check(descend, f"The diagonal of S descends, and is at least 0{when}", seen)


def _check_order(report, take, policies):
    """Checks that a step is `W - h D` to first order."""
    small = _STEP_SIZES[-1]
    moves = zip(take(policies, small), take.points, take.directions)
    parts = [np.sum((full(p) - full(new)) * d) / small for new, p, d in moves]
    part = max(parts, key=lambda one: abs(one - 1.0))  # D has norm 1
    errors = np.array([take.error(policies, h) for h in _STEP_SIZES])
    orders = np.log2(errors[:-1] / np.maximum(errors[1:], _ROUNDING * small))
    order = np.median(orders) if errors[0] > _ROUNDING else np.inf
    received = f"order {order:.1f}, while W goes {part:.2f} times as far along -D"
    if part < 0:
        received += ": the sign of h is wrong"
    rule = "The error of W - h D falls as h^2"
    report.check(order >= _ORDER, rule, received, f"order {order:.1f}")


def _check_truncation(report, integrator, take):
    """Checks that ranks follow the policy, and what that costs."""
    if not integrator.adapts_rank:
        return  # it is given none but policies that keep the rank
    ranks = [len(point.S) for point in take.points]
    less = [max(rank - 1, 1) for rank in ranks]
    faint = [with_last(point, 1e-3) for point in take.points]
    cut = take([Policy(Tolerance(_TOLERANCE))] * 2, 0.0, faint)
    found = [len(point.S) for point in cut]
    rule = "The rank is the one that the policy chooses: a singular value far below it goes"
    report.check(found == less, rule, f"ranks {found} of {ranks}")
    bounds = [Policy(Tolerance(0.0), max_rank=rank) for rank in less]
    found = [len(point.S) for point in take(bounds, 0.1)]
    report.check(
        all(one <= most for one, most in zip(found, less)),
        "The rank is at most `max_rank` of the policy",
        f"ranks {found} where {less} are allowed",
    )
    costs = [distance(one, p) / np.linalg.norm(p.S) for one, p in zip(cut, faint)]
    report.check(
        max(costs) <= _TOLERANCE,
        "Truncation costs no more than the policy allows",
        f"a relative error of {max(costs):.0e}, where {_TOLERANCE} is allowed",
    )


def _check_faults(report, take, policies):
    """Checks that neither zeros nor NaN end a step."""
    zeros = [with_last(point, 1e-18) for point in take.points]
    _check_form(report, take(policies, 0.1, zeros), zeros, " from a singular value of zero")
    nowhere = [np.full_like(direction, np.nan) for direction in take.directions]
    report.attempt(
        "A direction of NaN raises nothing: such a step is discarded as a whole",
        lambda: take(policies, 0.1, directions=nowhere),
    )


def _check_trace(report, take, policies, expected):
    """Checks that a step can be traced for any rank."""
    given = take.points[:1], take.directions[:1]

    def step(*flat):
        points, directions = tf.nest.pack_sequence_as(given, flat)
        return take(policies[:1], tf.constant(_STEP_SIZES[0]), points, directions)

    flat = [tf.convert_to_tensor(one) for one in tf.nest.flatten(given)]
    specs = [tf.TensorSpec([None, None], tf.float64)] * len(flat)
    traced = tf.function(step, autograph=False)
    (found,) = report.attempt(
        "A step can be traced by TensorFlow for any rank",
        lambda: traced.get_concrete_function(*specs)(*flat),
    )
    report.close("A traced step is the same", full(Point(*found)), full(expected[0]))
