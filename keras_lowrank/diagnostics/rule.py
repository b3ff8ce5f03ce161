"""A check that an optimizer rule depends on the matrix, not on the choice of its factors."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowrank.diagnostics.report import Report
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.squares import Squares
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.rule import (
    COLUMNS,
    ROWS,
    SCALAR,
    SQUARES,
    TANGENT,
    Direction,
    Rule,
)

_STEPS, _RATE = 3, 0.1


def check_rule(rule: Rule, shape: tuple[int, int] = (9, 7), rank: int = 3) -> Report:
    """Checks a `Rule` on random gradients of one matrix, over three steps.

    - It returns exactly the state that it names, in the right shapes.
    - All values are finite, also for gradients of zero.
    - The first step is a descent direction.
    - The direction D does not depend on the bases: U Q and V P give the same matrix D as U and V,
      for orthogonal Q and P.
    - It can be traced, and has no side effects.
    - With `takes_rows`, a gradient by its rows gives the same as the whole gradient.

    Args:
        rule: `Rule`, made from its optimizer.
        shape: `(n, m)`, ints, the shape of the matrix.
        rank: int, below both. Defaults to 3.

    Returns:
        `Report`.

    Raises:
        ValueError: rules are broken. The message lists each with what was received.

    Example:

    >>> class SignDescent(optimizers.Rule):
    ...     def direction(self, gradient, state, point, learning_rate, step):
    ...         signs = [tf.sign(part) for part in gradient]
    ...         return optimizers.Direction(type(gradient)(*signs)), {}
    >>> diagnostics.check_rule(SignDescent(keras.optimizers.SGD()))
    Traceback (most recent call last):
    ValueError: SignDescent breaks these rules:
    - The direction is the same for other bases. Received: a relative difference of 0.7
    """
    rng = np.random.default_rng(0)
    (n, m), r = shape, rank
    bases = [np.linalg.qr(rng.standard_normal((extent, r)))[0] for extent in shape]
    turns = [np.linalg.qr(rng.standard_normal((r, r)))[0] for _ in shape]
    gradients = rng.standard_normal((_STEPS, n, m))
    gradients[:, 0] = 0.0  # an unused row
    with Report(type(rule).__name__) as report:
        kinds = {TANGENT, SQUARES, ROWS, COLUMNS, SCALAR}
        report.need(
            set(rule.state.values()) <= kinds,
            f"The kinds in `state` are among {', '.join(sorted(kinds))}",
            f"state={rule.state}",
        )
        size = report.attempt(
            "`step_size` returns a scalar",
            lambda: float(rule.step_size(tf.constant(_RATE), tf.constant(1.0))),
        )
        report.check(
            bool(np.isfinite(size)) and size > 0,
            "`step_size` is finite and above 0",
            f"h={size:.2g}",
        )
        (u, v), (q, p) = bases, turns
        here, there = _Bases(u, v, np.eye(r), np.eye(r)), _Bases(u, v, q, p)
        first, *_ = steps = _run(report, rule, here, gradients)
        plain = here.full(here.tangent(gradients[0]))
        down = float(tf.reduce_sum(first[_DIRECTION] * plain))
        report.check(
            down > 0,
            "The first step descends along the gradient G: <G, D> > 0",
            f"<G, D> = {down:.2g}",
        )
        for one, other in zip(steps, _run(report, rule, there, gradients)):
            for name, expected in one.items():
                report.close(f"{name} is the same for other bases", other[name], expected)
        _run(report, rule, here, np.zeros((2, n, m)), " for gradients of zero")
        _check_purity(report, rule, here, gradients)
        if rule.takes_rows:
            rows = _run(report, rule, here, gradients, " for a gradient by its rows", by_rows=True)
            for one, other in zip(steps, rows):
                for name, expected in one.items():
                    report.close(
                        f"{name} is the same for a gradient by its rows", other[name], expected
                    )
    return report


class _Bases:
    """One matrix `W = U S V^T` with the bases `U = U0 Q` and `V = V0 P`.

    Args:
        u, v: arrays U0 and V0.
        q, p: arrays, orthogonal.
    """

    def __init__(self, u: np.ndarray, v: np.ndarray, q: np.ndarray, p: np.ndarray) -> None:
        scale = np.diag(1.5 ** -np.arange(len(q)))
        core, inverse = q.T @ scale @ p, np.linalg.inv(scale)
        # The layer's variables in the chart with this scale, see `integrators.chart`.
        held = (
            u @ q @ core @ inverse,
            scale @ np.linalg.inv(core) @ scale,
            v @ p @ core.T @ inverse,
        )
        parts = (*held, core, np.diag(scale))
        self.parts = [tf.constant(part, tf.float32) for part in parts]
        self.U, self.V = (tf.constant(basis, tf.float32) for basis in (u @ q, v @ p))

    @staticmethod
    def point(u: tf.Tensor, s: tf.Tensor, v: tf.Tensor, core: tf.Tensor, scale: tf.Tensor) -> Chart:
        """The argument `point` of `Rule.direction`."""
        chart = Chart(Point(u, s, v), scale)
        chart.S = core  # the core of W itself, as in a `Point`
        return chart

    def tangent(self, gradient: np.ndarray, by_rows: bool = False) -> TangentVector:
        """The tangent gradient of a full gradient, optionally with the K-part by its rows."""
        g = tf.constant(gradient, tf.float32)
        k = tf.matmul(g, self.V)
        parts = k, tf.matmul(self.U, k, transpose_a=True), tf.matmul(g, self.U, transpose_a=True)
        if by_rows:
            used = tf.where(tf.reduce_any(g != 0.0, axis=1))[:, 0]
            k = tf.IndexedSlices(tf.gather(k, used), used, tf.shape(k, out_type=tf.int64))
        return TangentVector(k, *parts[1:])

    def full(self, tangent: TangentVector) -> tf.Tensor:
        """The full matrix of a tangent vector."""
        inside = tf.matmul(self.U, tangent.S)
        k = row_sparse.dense(tangent.K)
        return tf.matmul(k - inside, self.V, transpose_b=True) + tf.matmul(
            self.U, tangent.L, transpose_b=True
        )

    def zeros(self, kind: str) -> Any:
        """The state of a kind before the first step."""
        (r, n, m) = len(self.parts[-1]), len(self.U), len(self.V)
        of_parts = {TANGENT: TangentVector, SQUARES: Squares}
        if kind in of_parts:
            return of_parts[kind](*(tf.zeros(shape) for shape in ((n, r), (r, r), (m, r))))
        return tf.zeros({ROWS: (n,), COLUMNS: (m,), SCALAR: ()}[kind])


_DIRECTION = "The direction"


def _run(
    report: Report,
    rule: Rule,
    place: _Bases,
    gradients: np.ndarray,
    when: str = "",
    by_rows: bool = False,
) -> list[dict[str, Any]]:
    """Takes one step for each gradient, and checks the results.

    Returns:
        List of dicts, one for each step: the direction's full matrix and the state, by name.
    """
    state = _zero_state(rule, place)
    steps = []
    for number, gradient in enumerate(gradients, 1):
        given = place.tangent(gradient, by_rows)
        result = report.attempt(
            f"`direction` returns a `Direction` and a state{when}",
            functools.partial(_call, rule, given, state, place.parts, number),
        )
        state = _checked_state(report, rule, place, result, when)
        values = _values(place, result)
        for name, value in values.items():
            finite = bool(np.all(np.isfinite(value)))
            report.need(finite, f"{name} is finite{when}", "NaN or infinity")
        steps.append(values)
        state = {
            name: value.scaled(rule.decay) if isinstance(value, TangentVector) else value
            for name, value in state.items()
        }
    return steps


def _call(
    rule: Rule, gradient: TangentVector, state: dict[str, Any], parts: list, number: Any
) -> tuple[Direction, dict[str, Any]]:
    point, step = _Bases.point(*parts), tf.cast(number, tf.float32)
    direction, state = rule.direction(gradient, dict(state), point, tf.constant(_RATE), step)
    return Direction(*direction), dict(state)


def _values(place: _Bases, result: tuple[Direction, dict[str, Any]]) -> dict[str, Any]:
    """The direction's full matrix and the state, by name: values that no bases may change."""
    direction, state = result
    values = {
        _DIRECTION: place.full(direction.tangent),
        "`rows` of the direction": direction.rows,
        "`columns` of the direction": direction.columns,
    }
    for name, value in state.items():
        if isinstance(value, TangentVector):
            value = place.full(value)
        elif isinstance(value, Squares):  # bases share out what a row has
            sums = tf.reduce_sum(value.K, axis=1), tf.reduce_sum(value.L, axis=1)
            value = tf.concat([*sums, [tf.reduce_sum(value.S)]], axis=0)
        values[f"The state {name!r}"] = value
    return {name: value for name, value in values.items() if value is not None}


def _checked_state(
    report: Report,
    rule: Rule,
    place: _Bases,
    result: tuple[Direction, dict[str, Any]],
    when: str,
) -> dict[str, Any]:
    """The state that `direction` returned, after a check of all shapes."""
    direction, state = result
    report.need(
        state.keys() == rule.state.keys(),
        "`direction` returns exactly the state that `state` names",
        f"{sorted(state)} in place of {sorted(rule.state)}",
    )
    of_kind = {"The direction": (direction.tangent, TANGENT)}
    of_kind.update((f"The state {name!r}", (state[name], rule.state[name])) for name in state)
    for given, name, kind in (
        (direction.rows, "rows", ROWS),
        (direction.columns, "columns", COLUMNS),
    ):
        if given is not None:
            of_kind[f"`{name}` of the direction"] = given, kind
    for name, (value, kind) in of_kind.items():
        parts = value if isinstance(value, tuple) else (value,)
        if name != "The direction":
            report.need(
                not any(map(row_sparse.is_slices, parts)),
                f"{name} has no K-part by its rows{when}",
                "rows; use the methods of `TangentVector`, which keep them out of the state",
            )
        found = [tuple(row_sparse.dense(part).shape) for part in map(_tensor, parts)]
        expected = [tuple(part.shape) for part in tf.nest.flatten(place.zeros(kind))]
        report.need(
            found == expected, f"{name} has the shapes of its kind, {kind!r}", f"shapes {found}"
        )
    weight = direction.gradient_weight
    report.need(
        weight is None or np.shape(weight) == (),
        "`gradient_weight` of the direction is a scalar, or None",
        f"gradient_weight={weight}",
    )
    return state


def _tensor(part: Any) -> Any:
    return part if row_sparse.is_slices(part) else tf.convert_to_tensor(part)


def _check_purity(report: Report, rule: Rule, place: _Bases, gradients: np.ndarray) -> None:
    """Checks that a call depends only on its arguments, and can be traced."""
    gradient, number = place.tangent(gradients[0]), tf.constant(2.0)
    _, state = _call(rule, place.tangent(gradients[1]), _zero_state(rule, place), place.parts, 1)
    arguments = gradient, state, place.parts, number
    expected = _values(place, _call(rule, *arguments))
    again = _values(place, _call(rule, *arguments))
    for name, value in again.items():
        report.close(f"{name} depends only on the arguments", value, expected[name])

    @functools.partial(tf.function, autograph=False)
    def traced(*flat: tf.Tensor) -> dict[str, Any]:
        return _values(place, _call(rule, *tf.nest.pack_sequence_as(arguments, flat)))

    flat = tf.nest.flatten(arguments)
    open_shapes = [tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype) for tensor in flat]
    values = report.attempt(
        "`direction` can be traced by TensorFlow for any rank",
        lambda: traced.get_concrete_function(*open_shapes)(*flat),
    )
    for name, value in values.items():
        report.close(f"{name} is the same if traced", value, expected[name])


def _zero_state(rule: Rule, place: _Bases) -> dict[str, Any]:
    return {name: place.zeros(kind) for name, kind in rule.state.items()}
