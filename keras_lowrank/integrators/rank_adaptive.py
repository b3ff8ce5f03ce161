"""The rank-adaptive BUG integrator."""

import keras
import tensorflow as tf

from keras_lowrank.integrators.augmentation import Augmented, augment, moved_core, truncate
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.integrators.retraction import Corner, grams, nearest, retract
from keras_lowrank.linalg import rough_complement
from keras_lowrank.traces import shared


@keras.saving.register_keras_serializable("keras_lowrank")
class RankAdaptive(Integrator):
    r"""Algorithm 1 of arXiv:2205.13571: K-step and L-step, augmentation, S-step, truncation.

    1. K and L: the tangent gradient `(G V, G^T U)` at `W = U S V^T`.
    2. `U^ = orth([U, K1])`, `V^ = orth([V, L1])` with `K1 = U S - h G V`, `L1 = V S^T - h G^T U`.
    3. S: `S^ = U^^T W V^ - h U^^T G(W^) V^`. Since `W^ = U^ U^^T W V^ V^^T = W`, the gradient is
       the one of phase 1 in more bases, and its new block comes from the x and d of that pass:
       one forward and one backward pass in all, where the paper counts three.
    4. Truncation of `S^` to the rank that the policy chooses.

    It is robust to small singular values, exact for rank-r steps, and the loss descends up to the
    truncation error (Ceruti, Kusch, Lubich, BIT 62, 2022). The rank may double in one step.

    Example:

    >>> integrator = RankAdaptive()   # the same as compile(integrator="rank_adaptive")
    """

    needs_coupling = True
    takes_rows = True

    def step(self, problem):
        directions, h = problem.direction(), problem.step_size

        @shared
        def augmented(factors, direction, policy):
            # In all replicas of one shape, whichever directions each of them takes for noise.
            return augment(factors, direction, problem.replicated or policy.keeps_rank)

        @shared
        def roughly_augmented(factors, direction, policy):
            (u, _, v), (k, s, l) = factors, direction.dense()
            known, static = grams(direction), policy.keeps_rank
            left = rough_complement(k, u, s, known[0], static)
            right = rough_complement(l, v, tf.transpose(s), known[1], static)
            return Augmented(factors, left, right), known

        @shared
        def near(factors, direction, policy, corner, known=None):
            return nearest(factors, direction, policy, h, corner, known)

        truncated = shared(truncate)

        def phase_s_and_truncation(index, factors, direction, policy):
            step = factors, direction, policy

            def corner_of(augmented):
                _, left, right = augmented
                return Corner(left, right, problem.coupling(index, left, right))

            def general():
                exact = augmented(*step)
                return truncated(exact, moved_core(exact, corner_of(exact).block, h), policy)

            def by_products():
                rough, known = roughly_augmented(*step)
                return near(*step, corner_of(rough), known)

            if not problem.replicated:
                return retract(problem, *step, general, by_products)
            # One corner for both ways, ahead of the branch between them.
            exact = augmented(*step)
            corner = corner_of(exact)
            core = moved_core(exact, corner.block, h)
            return retract(
                problem,
                *step,
                lambda: truncated(exact, core, policy),
                lambda: near(*step, corner),
            )

        matrices = zip(problem.factors, directions, problem.policies)
        return [phase_s_and_truncation(index, *matrix) for index, matrix in enumerate(matrices)]
