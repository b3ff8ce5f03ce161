"""The unconventional (KLS) integrator at fixed rank."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_lowrank.integrators.augmentation import augment
from keras_lowrank.integrators.integrator import Integrator, Problem
from keras_lowrank.integrators.parallel import Parallel
from keras_lowrank.integrators.trace_once import trace_once
from keras_lowrank.manifold.complement import rotate
from keras_lowrank.manifold.decompositions import signed_qr
from keras_lowrank.manifold.orthonormalize import orthonormalized
from keras_lowrank.manifold.point import Point, diagonalized


@keras.saving.register_keras_serializable("keras_lowrank")
class FixedRank(Integrator):
    r"""The KLS integrator of Ceruti and Lubich (BIT 62, 2022), arXiv:2205.13571 section 4.2.

    1. `U1 = orth(K1)`, `K1 = U S - h G V`, and `V1 = orth(L1)`, `L1 = V S^T - h G^T U`.
    2. The old matrix in the new bases: `S~ = (U1^T U) S (V^T V1)`.
    3. `S1 = S~ - h U1^T G(U1 S~ V1^T) V1`: a second pass over the same batch, because step 2
       changes W.

    No shape ever changes. `K1 = [U, Q] C` with a small C of shape `(r + a, r)`: its Householder QR
    has r columns even if K1 has a lower rank.

    Step 2 loses norm: W is not in the span of the new bases. So even at full rank this is not
    gradient descent, unless the kernel is square. Before a `BatchNormalization` the loss does not
    restore the norm, and that can cost much accuracy.

    All this holds for `adapt_every=1`. Otherwise a full step is one of `Parallel` at the present
    rank: it takes no second pass and loses no norm.

    Args:
        adapt_every: as in `Integrator`.

    Example:

    >>> integrator = FixedRank()   # the same as compile(integrator="fixed_rank")
    """

    adapts_rank = False

    # A constant of the base class; here it follows `adapt_every`.
    @property
    def needs_second_pass(self) -> bool:  # type: ignore[override]
        return self.adapt_every == 1

    def step(self, problem: Problem) -> list[Point]:
        directions, h = problem.direction(), problem.step_size
        new_bases = trace_once(lambda factors, direction: _new_bases(factors, direction, h))
        bases = list(map(new_bases, problem.factors, directions))
        cores = problem.core_direction(bases)
        moved = [f._replace(S=f.S - tf.cast(h, c.dtype) * c) for f, c in zip(bases, cores)]
        return list(map(trace_once(diagonalized), moved))

    move = Parallel.move


def _new_bases(factors, direction, step_size):
    """The bases of step 1 and the old matrix in them, step 2."""
    u, s, v = factors
    h = tf.cast(step_size, s.dtype)
    _, left, right = augment(factors, direction, static=True)
    p = _coordinates(s, left, h)
    q = _coordinates(tf.transpose(s), right, h)
    rank = tf.shape(s)[0]
    # The first rows of the coordinates are U^T U1 and V^T V1.
    core = tf.matmul(tf.matmul(p[:rank], s, transpose_a=True), q[:rank])
    return Point(*orthonormalized(rotate(u, left, p), core, rotate(v, right, q)))


def _coordinates(core, added, h):
    """An orthonormal basis of `range(B C - h A)` in the coordinates of `[B, Q]`."""
    return signed_qr(tf.concat([core - h * added.inside, -h * added.outside], axis=0))
