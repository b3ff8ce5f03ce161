"""What an integrator is, and what it is given."""

from typing import NamedTuple, Protocol

import tensorflow as tf

from keras_lowrank.factors import Factorization
from keras_lowrank.linalg import Complement
from keras_lowrank.tangent_vector import Overlap, TangentVector
from keras_lowrank.truncation import Policy


class Problem(Protocol):
    """One step `W - h D` as an integrator sees it; all lists are one entry a matrix.

    Values may turn out not to be finite; the step is then discarded as a whole. Factorise with
    `keras_lowrank.linalg`, whose functions bear NaN.

    Attributes:
        factors: the matrices before the step.
        policies: who decides their ranks.
        step_size: the scalar tensor h.
        check_bases: scalar bool tensor, true every few steps: then an integrator that does not
            measure its new bases at every step has to.
        wants_overlap: bool, whether something follows the bases, so that the `overlap` of a
            `Moved` is of use.
        replicated: bool, whether the step is shared by several replicas (`tf.distribute`). Then
            `coupling` sums over all of them, and must not be called inside of a `tf.cond`.
    """

    factors: list[Factorization]
    policies: list[Policy]
    step_size: tf.Tensor
    check_bases: tf.Tensor
    wants_overlap: bool
    replicated: bool

    def direction(self) -> list[TangentVector]:
        """The parts of D at the present matrices: from one backward pass, by the optimizer."""

    def coupling(self, index: int, left: Complement, right: Complement) -> tf.Tensor:
        """The block `Q^T D Z` of one matrix, for the bases of two complements: the same pass."""

    def core_direction(self, factors: list[Factorization]) -> list[tf.Tensor]:
        """`U^T D(U S V^T) V` at new matrices: a second pass."""


class Moved(NamedTuple):
    """What a step has made of one matrix.

    Attributes:
        factors: `Factorization` of the new matrix.
        overlap: `Overlap` of the direction with it, from an integrator that has it for less than
            the four products of tall blocks that it takes; else `()`.
    """

    factors: Factorization
    overlap: Overlap | tuple = ()


class Integrator:
    """Takes one step: new factors from a `Problem`.

    Subclass it for an integrator of your own: implement `step`, and `get_config` where there is
    something to save.

    Attributes:
        needs_coupling: bool. Whether `step` calls `problem.coupling`, for which the inputs and
            output gradients of every layer are kept to the end of the step.
        needs_core_direction: bool. Whether `step` calls `problem.core_direction`.
        adapts_rank: bool. Whether ranks may change.
        takes_rows: bool. Whether `step` takes a direction whose K-part is given by its rows
            (`tf.IndexedSlices`), which is what an embedding has of a batch: an integrator does that
            leaves K-parts to `retract` and `augment`, or asks for `direction.dense()`.
    """

    needs_coupling = False
    needs_core_direction = False
    adapts_rank = True
    takes_rows = False

    def step(self, problem):
        """Returns the matrices after the step, a list of `Moved`."""
        # Abstract: an integrator is its step, and there is none to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `step`.")

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
