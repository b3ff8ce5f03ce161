"""The rank-adaptive BUG integrator."""

import keras
import tensorflow as tf

from keras_lowrank.integrators.augmentation import augment, moved_core, truncate
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.integrators.parallel import Parallel
from keras_lowrank.integrators.trace_once import trace_once

# The directions that are on trial at least.
_TRIED = 8


@keras.saving.register_keras_serializable("keras_lowrank")
class RankAdaptive(Integrator):
    r"""Algorithm 1 of arXiv:2205.13571: K-step and L-step, augmentation, S-step, truncation.

    1. K and L: the tangent gradient `(G V, G^T U)` at `W = U S V^T`.
    2. `U^ = orth([U, K1])`, `V^ = orth([V, L1])` with `K1 = U S - h G V`, `L1 = V S^T - h G^T U`.
    3. S: `S^ = U^^T W V^ - h U^^T G(W^) V^`. Since `W^ = U^ U^^T W V^ V^^T = W`, three blocks of
       that gradient are in the pair of phase 1; the fourth takes a second pass over the batch.
    4. Truncation of `S^` to the rank that the policy chooses.

    It is robust to small singular values, exact for rank-r steps, and the loss descends up to the
    truncation error (Ceruti, Kusch, Lubich, BIT 62, 2022). The rank may double in one step.

    That is `adapt_every=1`. With Muon, whose direction outside of the tangent space no gradient
    tells, the fourth block is zero, and there is no second pass: a step of `Parallel`.

    Args:
        adapt_every: as in `Integrator`.

    Example:

    >>> integrator = RankAdaptive()   # the same as compile(integrator="rank_adaptive")
    """

    @property
    def needs_second_pass(self):
        return self.adapt_every == 1

    def step(self, problem):
        directions, h = problem.direction(), problem.step_size

        @trace_once
        def augmented(factors, direction, policy):
            # In all replicas of one shape, whichever directions each of them takes for noise.
            return augment(factors, direction, problem.replicated or policy.keeps_rank)

        @trace_once
        def truncated(augmented, normal_block, policy):
            return truncate(augmented, moved_core(augmented, h, normal_block), policy)

        bases = list(map(augmented, problem.factors, directions, problem.policies))
        return list(map(truncated, bases, problem.normal_blocks(bases), problem.policies))

    move = Parallel.move

    def tries(self, rank):
        return tf.maximum(_TRIED, rank // 16)
