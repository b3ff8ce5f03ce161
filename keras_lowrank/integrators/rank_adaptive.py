"""The rank-adaptive BUG integrator."""

import keras
import tensorflow as tf

from keras_lowrank.integrators.augmentation import augment, moved_core, truncate
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.integrators.retraction import Corner, retract
from keras_lowrank.linalg import rough_complement


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

        def phase_s_and_truncation(index, factors, direction, policy):
            static = policy.keeps_rank

            def general():
                augmented = augment(factors, direction, static)
                corner = problem.coupling(index, augmented.left, augmented.right)
                return truncate(augmented, moved_core(augmented, corner, h), policy)

            def rough_corner(gram_k, gram_l):
                (u, _, v), (k, s, l) = factors, direction.dense()
                left = rough_complement(k, u, s, gram_k, static)
                right = rough_complement(l, v, tf.transpose(s), gram_l, static)
                return Corner(left, right, problem.coupling(index, left, right))

            if problem.replicated:
                # One corner for both ways, ahead of the branch between them; of a shape that is
                # the same in all replicas, whichever directions each of them takes for noise.
                augmented = augment(factors, direction, static=True)
                corner = problem.coupling(index, augmented.left, augmented.right)
                core = moved_core(augmented, corner, h)
                return retract(
                    problem,
                    factors,
                    direction,
                    policy,
                    lambda: truncate(augmented, core, policy),
                    lambda *_: Corner(augmented.left, augmented.right, corner),
                )
            return retract(problem, factors, direction, policy, general, rough_corner)

        matrices = zip(problem.factors, directions, problem.policies)
        return [phase_s_and_truncation(index, *matrix) for index, matrix in enumerate(matrices)]
