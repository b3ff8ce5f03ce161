"""The interface of an integrator, and of the problem that it solves."""

from __future__ import annotations

from typing import Any, Protocol

import tensorflow as tf

from keras_lowrank.integrators.augmentation import Augmented
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.policy import Policy

# Measured: benchmarks/README.md, "Full steps".
ADAPT_EVERY = 16


class Problem(Protocol):
    """One step `W - h D` as an integrator sees it; all lists have one entry a matrix.

    Values need not be finite; such a step is discarded as a whole. Factorise with the functions of
    `keras_lowrank.manifold`, which accept NaN.

    Attributes:
        factors: list of `Point`, the matrices before the step, with orthonormal U and V.
        policies: list of `Policy`, which choose the ranks.
        step_size: scalar tensor h.
        replicated: bool, whether several replicas (`tf.distribute`) share the step. Then shapes in
            a second pass must be equal in all of them.
    """

    factors: list[Point]
    policies: list[Policy]
    step_size: tf.Tensor
    replicated: bool

    def direction(self) -> list[TangentVector]:
        """D at the present matrices: the optimizer's direction from one backward pass."""

    def normal_blocks(self, augmented: list[Augmented]) -> list[tf.Tensor | None]:
        """The blocks `Q^T D Z`, from a second pass. None for zero."""

    def core_direction(self, factors: list[Point]) -> list[tf.Tensor]:
        """`U^T D(U S V^T) V` at new matrices, from a second pass."""


class Integrator:
    """Takes steps: new factors from a `Problem`.

    Subclass it to write an integrator: implement `step` (for `adapt_every=1`), `move`, or both, and
    `get_config` where there is more to save. `diagnostics.check_retraction` tests it.

    Args:
        adapt_every: int, the number of steps from one full step, which adapts bases and ranks, to
            the next. The cheap steps in between keep the rank and move the factors in a chart of
            the manifold (`integrators.chart`); one that goes too far becomes a full step. 1 is the
            algorithm of the paper.

    Attributes:
        needs_second_pass: bool, whether `step` calls `problem.core_direction` or
            `problem.normal_blocks`.
        adapts_rank: bool, whether ranks may change.

    Example, steps of `Parallel` whose ranks never grow:

    >>> class Shrinking(Integrator):
    ...     def move(self, factors, direction, step_size, policy):
    ...         augmented = integrators.augment(factors, direction)
    ...         core = integrators.moved_core(augmented, step_size)
    ...         most = policy.most(tf.shape(factors.S)[0])
    ...         return integrators.truncate(augmented, core, policy._replace(max_rank=most))
    ...     def step(self, problem):
    ...         matrices = zip(problem.factors, problem.direction(), problem.policies)
    ...         return [self.move(f, d, problem.step_size, policy) for f, d, policy in matrices]
    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    >>> model.compile("sgd", "mse", integrator=Shrinking(), truncation=0.0)
    >>> x = np.random.default_rng(0).standard_normal((64, 8))
    >>> history = model.fit(x, x[:, :4], epochs=5, verbose=0)
    >>> model.ranks
    {'low_rank_dense': 2}
    """

    needs_second_pass: bool = False
    adapts_rank: bool = True

    def __init__(self, adapt_every: int = ADAPT_EVERY) -> None:
        if not isinstance(adapt_every, int) or isinstance(adapt_every, bool) or adapt_every < 1:
            raise ValueError(
                f"`adapt_every` must be a positive integer. Received: adapt_every={adapt_every!r}"
            )
        self.adapt_every = adapt_every

    def step(self, problem: Problem) -> list[Point]:
        """Returns all matrices after a full step, with orthonormal U and V and diagonal S."""
        # Abstract: there is no step to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `step`.")

    def move(
        self, factors: Point, direction: TangentVector, step_size: tf.Tensor, policy: Policy
    ) -> Point:
        """Returns one matrix after a step that is too long for the chart.

        Args:
            factors: `Point` W, with orthonormal U and V.
            direction: `TangentVector` D.
            step_size: scalar tensor h.
            policy: `Policy`, which chooses the rank.

        Returns:
            `Point` with orthonormal U and V and diagonal S.
        """
        # Optional: with adapt_every=1 every step is a full one, and this is not called.
        raise NotImplementedError(
            f"{type(self).__name__} must implement `move`, or be given adapt_every=1."
        )

    def tries(self, rank: tf.Tensor) -> tf.Tensor | None:
        """How many trial directions a full step adds at this rank; None for no trials.

        Their bases stay until the next full step and only their core learns. Then the policy
        decides whether they are large enough to keep.
        """
        return None

    def get_config(self) -> dict[str, Any]:
        return {"adapt_every": self.adapt_every}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Integrator:
        return cls(**config)
