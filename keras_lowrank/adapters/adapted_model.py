"""What a model becomes, in place, that has adapters."""

from typing import TYPE_CHECKING, Any

import keras

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.adapters.adapted_layer import refuse_to_quantize
from keras_lowrank.model import LowRankModel
from keras_lowrank.optimizers.options import fresh

if TYPE_CHECKING:  # a base that stands before the class of a model, and extends its methods
    from keras import Model as _Base
else:
    _Base = object


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


def restore_model(model: keras.Model) -> None:
    """Makes a model with adapters what it was.

    Its optimizer, which knows the variables of before, starts anew.
    """
    keras_graphs.restore_class(model)
    keras_internals.forget_traces(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not isinstance(model, LowRankModel):
        model.optimizer = fresh(optimizer)
