"""The step of one Tucker-2 kernel, with the functions of `matrix_step`.

Every step leaves orthonormal bases, so that a kernel needs no chart. The scale of its state marks
the columns of U, then those of V: 1 for an active one, 0 for one that is on trial.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_lowrank.integrators.adaptation import main_part
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.integrators.tucker_frame import TuckerFrame
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.manifold.tucker import TuckerPoint, cut
from keras_lowrank.optimizers.rule import Rule
from keras_lowrank.outlined import outlined
from keras_lowrank.ranks.policy import Policy
from keras_lowrank.training.faults import total
from keras_lowrank.training.matrix_step import (
    LARGEST_DEFECT,
    MatrixState,
    StepScalars,
    is_transported,
)


def check(path: str, rule: Rule, integrator: Integrator) -> None:
    """Raises ValueError if the rule or the integrator cannot step the kernel.

    Args:
        path: str, the path of the layer.
        rule: `Rule` of the layer.
        integrator: `Integrator`.
    """
    if not rule.takes_tucker:
        raise ValueError(
            f"{type(rule.optimizer).__name__} has no rule for Tucker-2 kernels. Use SGD, Adam, "
            "AdamW, RMSprop, Adagrad or Muon, or factorization='spatial'. "
            f"Received: the layer {path!r} with factorization='tucker'"
        )
    if integrator.needs_second_pass:
        raise ValueError(
            "`adapt_every=1` of 'rank_adaptive' and 'fixed_rank' is for matrices. Use a larger "
            "`adapt_every`, integrator='parallel', or factorization='spatial'. "
            f"Received: the layer {path!r} with factorization='tucker'"
        )


def tangent_gradient(
    factors: Point, scale: tf.Tensor, gradient: tuple, factor: tf.Tensor | None
) -> TangentVector:
    """As in `matrix_step`."""
    return TuckerFrame(factors).tangent(gradient, factor)


def advance(
    integrator: Integrator,
    rule: Rule,
    matrix: MatrixState,
    gradient: TangentVector,
    policy: Policy,
    scalars: StepScalars,
) -> MatrixState:
    """One step of one kernel; arguments as in `matrix_step.advance`.

    A full step, where every step is one or where the step is long, is that of the parallel
    integrator for Tucker tensors (Ceruti, Kusch, Lubich, Sulz, arXiv:2412.00858): `W - h X` in
    augmented bases, then truncation. Others that adapt the ranks do so at the ranks that there
    are, and new directions come from the trials.
    """
    frame: Any = TuckerFrame(matrix.factors)  # to a rule, what a `Chart` is
    direction, slots = rule.direction(
        gradient, matrix.slots, frame, scalars.learning_rate, scalars.number
    )
    tangent = direction.tangent
    point, defect = frame.step(tangent, scalars.step_size)

    def state(new, scale):
        there = TuckerFrame(new)
        new_slots = {
            name: frame.transport(slot, there, rule.decay) if is_transported(name, slot) else slot
            for name, slot in slots.items()
        }
        return tf.nest.flatten(MatrixState(new, scale, new_slots, total([new, new_slots])))

    def cut_to_ranks(core):
        sizes = _Sizes(integrator, matrix, policy, scalars.adapts)
        p, core, q = cut(core, sizes.choose, sizes.old)

        def finished(new):
            new = sizes.with_trials(new, tangent) if sizes.tries else new
            return state(new, sizes.scale(new))

        return p, core, q, finished

    def adapt():
        p, core, q, finished = cut_to_ranks(point.S)
        return finished(TuckerPoint(tf.matmul(point.U, p), core, tf.matmul(point.V, q)))

    def full():
        augmented = frame.augmented(tangent, scalars.step_size, policy.keeps_rank)
        *parts, finished = cut_to_ranks(augmented.core)
        return finished(frame.rotated(augmented, *parts))

    def rare():
        return full() if integrator.adapt_every == 1 else tf.cond(inside, adapt, full)

    inside = defect <= LARGEST_DEFECT
    values = tf.cond(inside & ~scalars.adapts, lambda: state(point, matrix.scale), outlined(rare))
    return tf.nest.pack_sequence_as(matrix._replace(slots=slots), values)


def is_origin(point: Point) -> tf.Tensor:
    """Whether the bases are orthonormal."""
    excesses = [
        tf.matmul(basis, basis, transpose_a=True) - tf.eye(tf.shape(basis)[1], dtype=basis.dtype)
        for basis in (point.U, point.V)
    ]
    return tf.reduce_all([tf.reduce_max(tf.abs(excess)) <= 1e-4 for excess in excesses])


def origin(point: Point, least: float) -> tuple[Point, tf.Tensor]:
    """The point as it is: a core needs no least singular value. And its scale."""
    return point, origin_scale(point)


def origin_scale(point: Point) -> tf.Tensor:
    """The scale without a trial."""
    return tf.ones([sum(tf.shape(basis)[1] for basis in (point.U, point.V))], point.S.dtype)


def position(matrix: MatrixState) -> tuple[tf.Tensor, tf.Tensor]:
    """As in `matrix_step`: a kernel with orthonormal bases is at an origin."""
    columns = tf.size(origin_scale(matrix.factors))
    known = tf.equal(tf.size(matrix.scale), columns) & tf.reduce_all(matrix.scale >= 0.0)
    valid = is_origin(matrix.factors) & known
    return valid, valid


def recentered(matrix: MatrixState, policy: Policy) -> MatrixState | None:
    """The kernel without trials, at the ranks that `policy` chooses."""
    frame = TuckerFrame(matrix.factors)
    sizes = _Sizes(None, matrix, policy, tf.constant(True))
    p, core, q = cut(frame.S, sizes.choose, sizes.old)
    new = TuckerPoint(tf.matmul(frame.U, p), core, tf.matmul(frame.V, q))
    there = TuckerFrame(new)
    slots = {
        name: frame.transport(slot, there) if isinstance(slot, TangentVector) else slot
        for name, slot in matrix.slots.items()
    }
    return MatrixState(new, origin_scale(new), slots, tf.zeros([]))


class _Sizes:
    """The ranks after a step of a kernel, and the columns on trial beside them.

    Args:
        integrator: `Integrator`; None for no trials.
        matrix: `MatrixState` before the step.
        policy: `Policy`.
        adapts: scalar bool tensor, whether the ranks may change.

    Attributes:
        old: list of two integer scalar tensors, the columns of U and V before the step.
        tries: bool, whether there may be trials.
    """

    def __init__(self, integrator, matrix, policy, adapts):
        rules = map(policy.truncation.for_side, (0, 1))
        self._policies = [policy._replace(truncation=rule) for rule in rules]
        self._integrator, self._adapts = integrator, adapts
        self.old = [tf.shape(basis)[1] for basis in (matrix.factors.U, matrix.factors.V)]
        parts = matrix.scale[: self.old[0]], matrix.scale[self.old[0] :]
        self._active = [tf.math.count_nonzero(part, dtype=tf.int32) for part in parts]
        self.tries = (
            integrator is not None
            and not policy.keeps_rank
            and policy.truncation.grows
            and integrator.tries(self.old[0]) is not None
        )
        self._ranks = [None, None]
        self._more = [None, None]
        self._rows = [tf.shape(basis)[0] for basis in (matrix.factors.U, matrix.factors.V)]

    def choose(self, values, mode):
        """How many directions stay: those of the rank, and some that go on as trials."""
        old, active, policy = self.old[mode], self._active[mode], self._policies[mode]
        if policy.keeps_rank:
            self._ranks[mode] = active
            return old
        rank = policy.rank(values, current=old)
        if self.tries:
            # As in `adapted`: trials must not raise the rank that active columns alone would get.
            alone = policy.rank(values[:active], current=active)
            rank = tf.where(rank > active, rank, alone)
        size = rank
        if self.tries:
            room = policy.room(rank, self._rows[mode])
            tried = tf.minimum(self._integrator.tries(rank), room)
            size = rank + tf.minimum(tf.size(values) - rank, tried - tried // 4)
            self._more[mode] = tf.where(self._adapts, rank + tried - size, 0)
        self._ranks[mode] = tf.where(self._adapts, rank, active)
        return tf.where(self._adapts, size, tf.minimum(old, tf.size(values)))

    def with_trials(self, point, tangent):
        """The same kernel with more columns, from a direction; their core is zero."""
        wanted = tf.reduce_max(tf.stack(self._more)) > 0
        return tf.cond(wanted, lambda: self._extended(point, tangent), lambda: point)

    def _extended(self, point, tangent):
        parts = zip((tangent.K, tangent.L), (point.U, point.V), self._more)
        added = [main_part(block, basis, more) for block, basis, more in parts]
        u, v = (tf.concat([basis, q], axis=1) for basis, q in zip((point.U, point.V), added))
        room = [[0, tf.shape(q)[1]] for q in added]
        return TuckerPoint(u, tf.pad(point.S, [[0, 0], *room]), v)

    def scale(self, point):
        """The scale of a kernel with these ranks."""
        counts = [tf.shape(basis)[1] for basis in (point.U, point.V)]
        marks = [tf.range(count) < rank for count, rank in zip(counts, self._ranks)]
        return tf.cast(tf.concat(marks, axis=0), point.S.dtype)
