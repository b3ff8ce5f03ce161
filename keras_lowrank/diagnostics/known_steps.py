"""Steps of an integrator from known matrices along known directions."""

import numpy as np
import tensorflow as tf

from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector


class Steps:
    """Steps of an integrator from the same matrices, along the same directions.

    Args:
        integrator: `Integrator`.
        exact: bool, whether to call `step`.
        points: list of `Point`.
        directions: list of arrays, full matrices D.
    """

    def __init__(self, integrator, exact, points, directions):
        self.integrator, self.exact = integrator, exact
        self.points, self.directions = points, directions
        self.second_passes = 0

    def __call__(self, policies, h, points=None, directions=None):
        """The new matrices, a list of `Point`."""
        problem = _Problem(self, policies, h, points or self.points, directions or self.directions)
        if self.exact:
            return [Point(*point) for point in self.integrator.step(problem)]
        steps = zip(problem.factors, problem.direction(), policies)
        move = self.integrator.move
        return [Point(*move(point, d, problem.step_size, policy)) for point, d, policy in steps]

    def error(self, policies, h):
        """The largest `||W_new - (W - h D)||_F`."""
        moved = self(policies, h)
        targets = [full(p) - h * d for p, d in zip(self.points, self.directions)]
        return max(np.linalg.norm(full(one) - target) for one, target in zip(moved, targets))


class _Problem:
    """The `Problem` whose direction is the same full matrix everywhere."""

    replicated = False

    def __init__(self, steps, policies, h, points, directions):
        self.factors, self.policies = points, policies
        self.step_size = tf.convert_to_tensor(h, tf.float64)
        self._steps, self._directions = steps, [tf.convert_to_tensor(d) for d in directions]

    def direction(self):
        return [_tangent(d, point) for d, point in zip(self._directions, self.factors)]

    def normal_blocks(self, augmented):
        self._steps.second_passes += 1
        blocks = []
        for d, (point, left, right) in zip(self._directions, augmented):
            q, z = left.formed(point.U), right.formed(point.V)
            blocks.append(tf.matmul(q, tf.matmul(d, z), transpose_a=True))
        return blocks

    def core_direction(self, factors):
        self._steps.second_passes += 1
        return [_tangent(d, point).S for d, point in zip(self._directions, factors)]


def random_point(rng, n, m, rank):
    """A `Point` in float64, with singular values from 1 down."""
    bases = [np.linalg.qr(rng.standard_normal((extent, rank)))[0] for extent in (n, m)]
    core = np.diag(1.5 ** -np.arange(rank))
    return Point(*(tf.constant(part) for part in (bases[0], core, bases[1])))


def random_tangent(rng, point):
    """A full matrix of norm 1 in the tangent space."""
    u, v = np.asarray(point.U), np.asarray(point.V)
    normal = rng.standard_normal((len(u), len(v)))
    outside = normal - u @ (u.T @ normal)
    tangent = normal - (outside - outside @ v @ v.T)
    return tangent / np.linalg.norm(tangent)


def _tangent(full, point):
    k = tf.matmul(full, point.V)
    core = tf.matmul(point.U, k, transpose_a=True)
    return TangentVector(k, core, tf.matmul(full, point.U, transpose_a=True))


def with_last(point, value):
    """The matrix with another smallest singular value."""
    values = np.diag(point.S).copy()
    values[-1] = value
    return point._replace(S=tf.constant(np.diag(values)))


def full(point):
    """The matrix of a `Point`, an array."""
    return np.asarray(tf.matmul(tf.matmul(point.U, point.S), point.V, transpose_b=True))


def distance(one, other):
    """`||W_1 - W_2||_F` of two `Point`s."""
    return np.linalg.norm(full(one) - full(other))
