"""Notices when factors are trained as ordinary weights, which nothing else would tell."""

from keras_lowrank import keras_internals
from keras_lowrank.user_warnings import warn_user


class PlainTrainingWarning(UserWarning):
    """U, S and V of low-rank layers are trained as three ordinary weights, off the manifold.

    It comes once for a layer, at the first step of a Keras optimizer that updates them itself: in a
    `keras.Model` or `keras.Sequential`, in a `train_step` or a loop of one's own. Two plain factors
    and a core may be what is wanted; then say so:

    >>> import warnings
    >>> warnings.filterwarnings("ignore", category=PlainTrainingWarning)
    """


def notice(variable, kind):
    """Warns of all factors that an optimizer trains with `variable`, if that is what asks for it.

    Args:
        variable: a factor, whose constraint is being read.
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
            "their ranks stay, and steps are not those on the manifold of low-rank matrices. Train "
            "them by `fit` or `train_on_batch` of a `LowRankModel`, whose own `train_step` moves "
            "them: `LowRankModel(model.inputs, model.outputs)`, or a subclass of it. If plain "
            "weights are what you want, ignore `keras_lowrank.PlainTrainingWarning`.",
            PlainTrainingWarning,
        )
