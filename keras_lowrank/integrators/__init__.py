"""Time integrators of the gradient flow on the manifold of rank-r matrices.

To write one, subclass `Integrator`. `augment`, `moved_core` and `truncate` are the stages that the
integrators here share; a `Problem` is one step as an integrator sees it.
"""

import keras

from keras_lowrank.integrators.augmentation import Augmented, augment, moved_core, truncate
from keras_lowrank.integrators.fixed_rank import FixedRank
from keras_lowrank.integrators.integrator import Integrator, Problem
from keras_lowrank.integrators.parallel import Parallel
from keras_lowrank.integrators.rank_adaptive import RankAdaptive

__all__ = [
    "Augmented",
    "FixedRank",
    "Integrator",
    "Parallel",
    "Problem",
    "RankAdaptive",
    "augment",
    "get",
    "moved_core",
    "truncate",
]

_NAMES = {"parallel": Parallel, "rank_adaptive": RankAdaptive, "fixed_rank": FixedRank}


def get(identifier: Integrator | str | dict) -> Integrator:
    """Returns the `Integrator` of an instance, a name or a config.

    Example:

    >>> integrators.get("parallel").adapt_every
    16
    """
    if isinstance(identifier, Integrator):
        return identifier
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    raise ValueError(
        f"`integrator` must be one of {sorted(_NAMES)} or a `keras_lowrank.Integrator`. "
        f"Received: integrator={identifier!r}"
    )
