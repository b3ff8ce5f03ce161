"""The rank-adaptive BUG integrator."""

import keras
import tensorflow as tf

from keras_lowrank.integrators.augmentation import augment, moved_core, truncate
from keras_lowrank.integrators.integrator import Integrator, Problem
from keras_lowrank.integrators.parallel import Parallel
from keras_lowrank.integrators.trace_once import trace_once
from keras_lowrank.manifold.point import Point

# The least number of trial directions.
_LEAST_TRIES = 8


@keras.saving.register_keras_serializable("keras_lowrank")
class RankAdaptive(Integrator):
    r"""Algorithm 1 of arXiv:2205.13571: K-step and L-step, augmentation, S-step, truncation.

    1. K and L: the tangent gradient `(G V, G^T U)` at `W = U S V^T`.
    2. `U^ = orth([U, K1])`, `V^ = orth([V, L1])` with `K1 = U S - h G V`, `L1 = V S^T - h G^T U`.
    3. S: `S^ = U^^T W V^ - h U^^T G(W^) V^`. Since `W^ = U^ U^^T W V^ V^^T = W`, three blocks of
       that gradient come from phase 1; the normal block takes a second pass over the batch.
    4. Truncation of `S^` to the rank that the policy chooses.

    It is robust to small singular values, exact for rank-r steps, and the loss descends up to the
    truncation error (Ceruti, Kusch, Lubich, BIT 62, 2022). The rank may double in one step.

    All this holds for `adapt_every=1`. With Muon and `StiefelAdam` the normal block is zero and the
    step is one of `Parallel`: their updates are not linear in the gradient.

    Args:
        adapt_every: as in `Integrator`.

    Example:

    >>> integrator = RankAdaptive()   # the same as compile(integrator="rank_adaptive")
    """

    # A constant of the base class; here it follows `adapt_every`.
    @property
    def needs_second_pass(self) -> bool:  # type: ignore[override]
        return self.adapt_every == 1

    def step(self, problem: Problem) -> list[Point]:
        factors, policies, h = problem.factors, problem.policies, problem.step_size

        @trace_once
        def augment_bases(factors, direction, policy):
            # Replicas need equal shapes, whichever directions each of them takes for noise.
            return augment(factors, direction, problem.replicated or policy.keeps_rank)

        @trace_once
        def step_and_truncate(bases, normal_block, policy):
            return truncate(bases, moved_core(bases, h, normal_block), policy)

        directions = problem.direction()  # K-step and L-step
        bases = list(map(augment_bases, factors, directions, policies))
        normal_blocks = problem.normal_blocks(bases)  # S-step
        return list(map(step_and_truncate, bases, normal_blocks, policies))

    move = Parallel.move

    def tries(self, rank: tf.Tensor) -> tf.Tensor:
        return tf.maximum(_LEAST_TRIES, rank // 16)
