"""The parallel integrator: one gradient moves bases and core."""

import keras
import tensorflow as tf

from keras_lowrank.integrators.augmentation import augment, moved_core, truncate
from keras_lowrank.integrators.integrator import Integrator, Problem
from keras_lowrank.integrators.trace_once import trace_once
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.policy import Policy


@keras.saving.register_keras_serializable("keras_lowrank")
class Parallel(Integrator):
    r"""The parallel integrator of Ceruti, Kusch and Lubich (arXiv:2304.05660, 2024).

    1. K and L: the tangent direction `(D V, D^T U)` at `W = U S V^T`.
    2. `U^ = [U, Q]` and `V^ = [V, Z]`, augmented by what `D V` and `D^T U` add.
    3. `S^ = U^^T (W - h P(D)) V^`. The normal block `Q^T P(D) Z` is zero.
    4. Truncation of `S^` to the rank that the policy chooses, up to twice the present one.

    So a step is `W <- truncation of (W - h P(D))`. At a constant rank it is Riemannian gradient
    descent with the metric-projection retraction.

    Ranks hardly grow: what a step adds is of second order. Start high, or use `RankAdaptive`.

    Args:
        adapt_every: as in `Integrator`.

    Example:

    >>> integrator = Parallel()   # the same as compile(integrator="parallel")
    """

    def step(self, problem: Problem) -> list[Point]:
        steps = zip(problem.factors, problem.direction(), problem.policies)
        move = trace_once(_moved)
        return [move(factors, direction, problem.step_size, p) for factors, direction, p in steps]

    def move(
        self, factors: Point, direction: TangentVector, step_size: tf.Tensor, policy: Policy
    ) -> Point:
        return _moved(factors, direction, step_size, policy)


def _moved(factors, direction, step_size, policy):
    augmented = augment(factors, direction, policy.keeps_rank)
    return truncate(augmented, moved_core(augmented, step_size), policy)
