"""Ranks that stay as they are, which lets XLA compile a model."""

from typing import TYPE_CHECKING, Any

from keras_lowrank import keras_internals
from keras_lowrank.integrators import Integrator
from keras_lowrank.layers.find_layers import find_low_rank_layers

if TYPE_CHECKING:  # a base that stands before `keras.Model`, and extends its methods
    from keras import Model as _Base
else:
    _Base = object


class RankFreezing(_Base):
    """Methods of a `keras.Model` whose ranks can be frozen."""

    integrator: Integrator
    train_function: Any
    _ranks_frozen: bool = False
    _wanted_jit: bool | str  # as given to `compile`

    @property
    def ranks_frozen(self) -> bool:
        """Whether `freeze_ranks` is in force."""
        return self._ranks_frozen

    def freeze_ranks(self) -> None:
        """Keeps every rank as it is from now on. Costs one more trace of the train function."""
        self._set_frozen(True)

    def unfreeze_ranks(self) -> None:
        """Lets the ranks follow the truncation again."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        if frozen == self._ranks_frozen:
            return
        self._ranks_frozen = frozen
        if self.compiled:
            self._choose_jit()
        if self.compiled and self.train_function is not None:
            self.make_train_function(force=True)

    def _tell_layers_of_jit(self) -> None:
        static = self._ranks_frozen or not self.integrator.adapts_rank
        for layer in find_low_rank_layers(self).values():
            layer.supports_jit = static

    def _choose_jit(self) -> bool:
        """Decides again whether XLA compiles the functions; returns whether that has changed."""
        before = self.jit_compile
        self._tell_layers_of_jit()
        keras_internals.choose_jit(self, self._wanted_jit)
        return self.jit_compile != before
