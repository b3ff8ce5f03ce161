"""Steps of an integrator from known matrices along known directions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.policy import Policy


class Steps:
    """Takes steps of an integrator from given matrices along given directions.

    Args:
        integrator: `Integrator`.
        full_steps: bool, whether to call `step` or `move`.
        points: list of `Point`.
        directions: list of arrays, full matrices D.

    Attributes:
        integrator: `Integrator`, as the argument.
        full_steps: bool, as the argument.
        points: list of `Point`, as the argument.
        directions: list of arrays, as the argument.
        second_passes: int, how many second passes the integrator has asked for.
    """

    integrator: Integrator
    full_steps: bool
    points: list[Point]
    directions: list[Any]
    second_passes: int

    def __init__(
        self,
        integrator: Integrator,
        full_steps: bool,
        points: list[Point],
        directions: list[Any],
    ) -> None:
        self.integrator, self.full_steps = integrator, full_steps
        self.points, self.directions = points, directions
        self.second_passes = 0

    def __call__(
        self,
        policies: Sequence[Policy],
        h: Any,
        points: list[Point] | None = None,
        directions: list[Any] | None = None,
    ) -> list[Point]:
        """Takes one step.

        Args:
            policies: list of `Policy`.
            h: scalar, the step size.
            points: list of `Point`, or None for those of the constructor.
            directions: list of arrays, or None for those of the constructor.

        Returns:
            List of `Point`, the new matrices.
        """
        problem = _Problem(
            self, list(policies), h, points or self.points, directions or self.directions
        )
        if self.full_steps:
            return [Point(*point) for point in self.integrator.step(problem)]
        steps = zip(problem.factors, problem.direction(), policies)
        move = self.integrator.move
        return [Point(*move(point, d, problem.step_size, policy)) for point, d, policy in steps]

    def error(self, policies: Sequence[Policy], h: float) -> float:
        """Returns the largest `||W_new - (W - h D)||_F`."""
        moved = self(policies, h)
        targets = [full(p) - h * d for p, d in zip(self.points, self.directions)]
        return max(float(np.linalg.norm(full(p) - target)) for p, target in zip(moved, targets))


class _Problem:
    """A `Problem` whose direction is the same full matrix at every point."""

    replicated = False

    def __init__(
        self,
        steps: Steps,
        policies: list[Policy],
        h: Any,
        points: list[Point],
        directions: list[Any],
    ) -> None:
        self.factors, self.policies = points, policies
        self.step_size = tf.convert_to_tensor(h, tf.float64)
        self._steps, self._directions = steps, [tf.convert_to_tensor(d) for d in directions]

    def direction(self) -> list[TangentVector]:
        return [_tangent(d, point) for d, point in zip(self._directions, self.factors)]

    def normal_blocks(self, augmented: list) -> list[tf.Tensor]:
        self._steps.second_passes += 1
        blocks = []
        for d, (point, left, right) in zip(self._directions, augmented):
            q, z = left.formed(point.U), right.formed(point.V)
            blocks.append(tf.matmul(q, tf.matmul(d, z), transpose_a=True))
        return blocks

    def core_direction(self, factors: list[Point]) -> list[tf.Tensor]:
        self._steps.second_passes += 1
        return [_tangent(d, point).S for d, point in zip(self._directions, factors)]


def random_point(rng: np.random.Generator, n: int, m: int, rank: int) -> Point:
    """Returns an `(n, m)` matrix in float64, with singular values from 1 down."""
    bases = [np.linalg.qr(rng.standard_normal((extent, rank)))[0] for extent in (n, m)]
    core = np.diag(1.5 ** -np.arange(rank))
    return Point(*(tf.constant(part) for part in (bases[0], core, bases[1])))


def random_tangent(rng: np.random.Generator, point: Point) -> np.ndarray:
    """Returns a full matrix of norm 1 in the tangent space at a point."""
    u, v = np.asarray(point.U), np.asarray(point.V)
    normal = rng.standard_normal((len(u), len(v)))
    outside = normal - u @ (u.T @ normal)
    tangent = normal - (outside - outside @ v @ v.T)
    return tangent / np.linalg.norm(tangent)


def _tangent(full: tf.Tensor, point: Point) -> TangentVector:
    k = tf.matmul(full, point.V)
    core = tf.matmul(point.U, k, transpose_a=True)
    return TangentVector(k, core, tf.matmul(full, point.U, transpose_a=True))


def with_last(point: Point, value: float) -> Point:
    """Returns the matrix with another smallest singular value; its core must be diagonal."""
    values = np.diag(point.S).copy()
    values[-1] = value
    return point._replace(S=tf.constant(np.diag(values)))


def full(point: Point) -> np.ndarray:
    """Returns `U S V^T` as an array."""
    return np.asarray(tf.matmul(tf.matmul(point.U, point.S), point.V, transpose_b=True))


def distance(one: Point, other: Point) -> float:
    """Returns `||W_1 - W_2||_F`."""
    return float(np.linalg.norm(full(one) - full(other)))
