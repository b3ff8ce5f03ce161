"""What a model becomes, in place, that has adapters."""

from typing import TYPE_CHECKING, Any

import keras

from keras_lowrank import keras_graphs
from keras_lowrank.adapters.adapted_layer import refuse_to_quantize
from keras_lowrank.model import LowRankModel

if TYPE_CHECKING:  # a base that stands before the class of a model, and extends its methods
    from keras import Model as _Base
else:
    _Base = object

# What Keras, and KerasHub, have traced with the layers as they were.
_TRACED = ("train_function", "test_function", "predict_function", "generate_function")


class AdaptedModel(_Base):
    """Methods of a model with adapters: it is saved as the plain model that it will be.

    Not compiled, though: what the optimizer keeps is of other variables than a plain model has.
    """

    def quantize(self, mode: str | None, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError, before the first layer is changed."""
        refuse_to_quantize(self, mode)

    def get_compile_config(self) -> None:
        return None

    def _check_reloads(self) -> None:
        """Nothing: what Keras made of it before, it makes again."""


def become_low_rank(model: keras.Model, before: tuple[type, ...] = ()) -> None:
    """Makes a model one that trains low-rank layers, in place: all else goes on as it was.

    Args:
        model: `keras.Model`. `LowRankModel` comes behind its class, where `keras.Model` was, so
            that a `compile`, `fit` or `train_step` of its own goes on working.
        before: tuple of classes whose methods go before all others.
    """
    after = () if isinstance(model, LowRankModel) else (LowRankModel,)
    keras_graphs.change_class(model, before, after)
    if after:
        model._ranks_frozen = False
    forget_traces(model)


def forget_traces(model: keras.Model) -> None:
    """Has all functions of a model traced anew: Keras knows of no other layers in them."""
    for name in _TRACED:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def restore_model(model: keras.Model) -> None:
    """Makes a model with adapters what it was.

    Its optimizer, which knows the variables of before, starts anew.
    """
    keras_graphs.restore_class(model)
    forget_traces(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not isinstance(model, LowRankModel):
        model.optimizer = type(optimizer).from_config(optimizer.get_config())
