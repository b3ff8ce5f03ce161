"""What an integrator is, and what it is given."""

from typing import Protocol

import tensorflow as tf

from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.truncation import Policy

# Measured: benchmarks/README.md, "Full steps".
ADAPT_EVERY = 16


class Problem(Protocol):
    """One step `W - h D` as an integrator sees it; all lists are one entry a matrix.

    Values may turn out not to be finite; the step is then discarded as a whole. Factorise with the
    functions of `keras_lowrank.manifold`, which bear NaN.

    Attributes:
        factors: the matrices before the step, with orthonormal U and V.
        policies: who decides their ranks.
        step_size: the scalar tensor h.
        replicated: bool, whether the step is shared by several replicas (`tf.distribute`). Then
            shapes that a second pass takes must be the same in all of them.
    """

    factors: list[Point]
    policies: list[Policy]
    step_size: tf.Tensor
    replicated: bool

    def direction(self) -> list[TangentVector]:
        """The parts of D at the present matrices: from one backward pass, by the optimizer."""

    def normal_blocks(self, augmented) -> list[tf.Tensor | None]:
        """The blocks `Q^T D Z`, for a list of `Augmented`: a second pass. None for zero."""

    def core_direction(self, factors: list[Point]) -> list[tf.Tensor]:
        """`U^T D(U S V^T) V` at new matrices: a second pass."""


class Integrator:
    """Takes steps: new factors from a `Problem`.

    Subclass it for an integrator of your own: implement `step`, for `adapt_every=1`, or `move`, or
    both; and `get_config` where there is more to save. `diagnostics.check_retraction` tests it.

    Args:
        adapt_every: int, every how many steps bases and ranks are adapted, by a full step. The
            steps in between move the factors in a chart of the manifold at fixed rank, see
            `integrators.chart`, at next to no cost; one that would go far is a full step too. 1 is
            the algorithm of the paper, step by step.

    Attributes:
        needs_second_pass: bool. Whether `step` calls `problem.core_direction` or
            `problem.normal_blocks`.
        adapts_rank: bool. Whether ranks may change.

    Example, the steps of `Parallel`, but for ranks, which never grow:

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

    needs_second_pass = False
    adapts_rank = True

    def __init__(self, adapt_every=ADAPT_EVERY):
        if not isinstance(adapt_every, int) or isinstance(adapt_every, bool) or adapt_every < 1:
            raise ValueError(
                f"`adapt_every` must be a positive integer. Received: adapt_every={adapt_every!r}"
            )
        self.adapt_every = adapt_every

    def step(self, problem):
        """Returns the matrices after a full step of all of them, a list of `Point`.

        Each with orthonormal U and V and a diagonal S.
        """
        # Abstract: an integrator is its step, and there is none to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `step`.")

    def move(self, factors, direction, step_size, policy):
        """Returns one matrix after a step that is too long for the chart.

        With orthonormal U and V and a diagonal S.

        Args:
            factors: `Point` W, with orthonormal U and V.
            direction: `TangentVector` D.
            step_size: scalar tensor h.
            policy: `Policy`, who decides the rank.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `move`, or have adapt_every=1."
        )

    def tries(self, rank):
        """How many directions a full step adds to a matrix of that rank, on trial; None for none.

        Their bases stay as they are until the next full step. Only their core learns, and gathers
        strength over all steps before the policy judges it.
        """
        return None

    def get_config(self):
        return {"adapt_every": self.adapt_every}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
