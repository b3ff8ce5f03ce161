"""The parallel integrator: one gradient moves bases and core."""

import keras
import tensorflow as tf

from keras_lowrank.integrators.augmentation import augment, moved_core, truncate
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.integrators.retraction import retract
from keras_lowrank.traces import shared


@keras.saving.register_keras_serializable("keras_lowrank")
class Parallel(Integrator):
    r"""The parallel integrator of Ceruti, Kusch and Lubich (arXiv:2304.05660, 2024).

    1. K and L: the tangent direction `(D V, D^T U)` at `W = U S V^T`.
    2. `U^ = [U, Q]` and `V^ = [V, Z]`, augmented by what `D V` and `D^T U` add.
    3. `S^ = U^^T (W - h P(D)) V^`, from the pair alone: its fourth block `Q^T P(D) Z` is zero.
    4. Truncation of `S^` to the rank that the policy chooses, up to twice the present one.

    So a step is `W <- truncation of (W - h P(D))`: where the rank stays it is Riemannian gradient
    descent with the metric-projection retraction. Nothing is kept of a layer's inputs and output
    gradients, and truncation takes r x r matrices wherever it can (`retract`).

    A rank grows only by what a step adds in second order: start high enough (`rank=None` does), or
    use `RankAdaptive`, whose fourth block is of first order.

    Example:

    >>> integrator = Parallel()   # the same as compile(integrator="parallel")
    """

    takes_rows = True

    def step(self, problem):
        directions = problem.direction()
        h = problem.step_size

        @shared
        def move(factors, direction, policy):
            def general():
                augmented = augment(factors, direction, policy.keeps_rank)
                corner = tf.zeros(
                    [tf.shape(augmented.left.root)[1], tf.shape(augmented.right.root)[1]],
                    factors.S.dtype,
                )
                return truncate(augmented, moved_core(augmented, corner, h), policy)

            return retract(problem, factors, direction, policy, general)

        return list(map(move, problem.factors, directions, problem.policies))
