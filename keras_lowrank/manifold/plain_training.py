"""Warns when factors are trained as ordinary weights."""

from typing import Any

import keras

from keras_lowrank import keras_internals
from keras_lowrank.user_warnings import warn_user


class PlainTrainingWarning(UserWarning):
    """U, S and V of low-rank layers are trained as three ordinary weights, off the manifold.

    It comes once for a layer, when a Keras optimizer first updates the factors itself: in a
    `keras.Model`, a `keras.Sequential`, or a custom `train_step` or loop. If ordinary weights are
    what you want, ignore it:

    >>> import warnings
    >>> warnings.filterwarnings("ignore", category=PlainTrainingWarning)
    """


def notice(variable: keras.Variable, kind: type[Any]) -> None:
    """Warns of all factors that an optimizer updates, if it is what reads this constraint.

    Args:
        variable: factor whose constraint is being read.
        kind: class of factors, each with a flag `trained_plainly`.
    """
    updated = keras_internals.updated_by_optimizer(variable, above=2)
    new = [v for v in updated if isinstance(v, kind) and not v.trained_plainly]
    for one in new:
        one.trained_plainly = True
    layers = dict.fromkeys(one.path.rpartition("/")[0] or one.path for one in new)
    if layers:
        warn_user(
            f"U, S and V of the low-rank layers {list(layers)} are trained as ordinary weights: "
            "their ranks stay, and their steps leave the manifold of low-rank matrices. Train them "
            "with `fit` or `train_on_batch` of a `LowRankModel`, whose own `train_step` moves "
            "them: `LowRankModel(model.inputs, model.outputs)`, or a subclass of it. If ordinary "
            "weights are what you want, ignore `keras_lowrank.PlainTrainingWarning`.",
            PlainTrainingWarning,
        )
