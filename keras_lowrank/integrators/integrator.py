"""What an integrator is, and what it is given."""

from typing import Protocol

from keras_lowrank.factors import Factorization
from keras_lowrank.tangent import TangentVector
from keras_lowrank.truncation import Policy


class Problem(Protocol):
    """One step of gradient descent as an integrator sees it; all lists are one entry a matrix.

    Every displacement holds the step size: a full-rank step would be `W - h G`.

    Attributes:
        factors: the matrices before the step.
        policies: who decides their ranks.
    """

    factors: list[Factorization]
    policies: list[Policy]

    def direction(self) -> list[TangentVector]:
        """The displacements `(h G V, h G^T U)` at the present matrices: one backward pass."""

    def coupling(self, bases) -> list:
        """The blocks `h Q^T G Z` for pairs `(Q, Z)` of bases, from the same pass."""

    def core_direction(self, factors: list[Factorization]) -> list:
        """The displacements `h U^T G(U S V^T) V` of the cores at new matrices: a second pass."""


class Integrator:
    """Takes one step: new factors from a `Problem`.

    Subclass it for an integrator of your own: implement `step`, and `get_config` where there is
    something to save.

    Attributes:
        needs_coupling: bool. Whether `step` calls `problem.coupling`, for which the inputs and
            output gradients of every layer are kept to the end of the step.
        adapts_rank: bool. Whether ranks may change.
    """

    needs_coupling = False
    adapts_rank = True

    def step(self, problem):
        """Returns the matrices after the step, a list of `Factorization`."""
        raise NotImplementedError(f"{type(self).__name__} must implement `step`.")

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
