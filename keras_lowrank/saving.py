"""How a `LowRankModel` saves and loads: Keras's way, with more checks."""

import inspect
import os
import pathlib
from typing import TYPE_CHECKING, Any

import keras

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.files import checksum
from keras_lowrank.files.placing import placed_beside, size
from keras_lowrank.reloading import check_reloads
from keras_lowrank.reporting.card import ModelCard, card_path, card_text, get_card

if TYPE_CHECKING:  # a base that stands before `keras.Model`, and extends its methods
    from keras import Model as _Base
else:
    _Base = object

_SAVE = inspect.signature(keras.Model.save)
_LOADING = """\
import keras
{imports}
model = keras.saving.load_model({name!r})
outputs = model.predict(inputs)
"""
_NO_HDF5 = (
    "A low-rank model must be saved in a file that ends in `.keras`: the older HDF5 format loses "
    "ranks, integrator and truncation. For the weights alone use `save_weights`. Received: {}"
)


class Savable(_Base):
    """Methods of a `keras.Model` that refuses files from which it would not load."""

    def save(
        self,
        filepath: str | os.PathLike[str],
        *args: Any,
        card: bool | ModelCard = False,
        **kwargs: Any,
    ) -> None:
        """Saves the model as Keras does, in the format `.keras`.

        Args:
            filepath: path that ends in `.keras`.
            *args: all other arguments of `keras.Model.save`, in its order.
            card: bool, or a `ModelCard` with what only you know. Also write a model card,
                `NAME.keras.md` for `NAME.keras`. Defaults to `False`.
            **kwargs: as `*args`, by name.

        Raises:
            ValueError: a path for the older HDF5 format, or a model that would not load again: its
                config does not make all of its layers.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(_NO_HDF5.format(f"filepath={filepath}"))
        described, target = get_card(card), pathlib.Path(filepath)
        overwrite = _SAVE.bind(self, filepath, *args, **kwargs).arguments.get("overwrite", True)
        self._check_reloads()
        with placed_beside(target, "card", card_path(described, target), overwrite) as made_card:
            super().save(filepath, *args, **kwargs)
            if made_card and described:
                text = card_text(described, self, target, size(target), "keras", loading=_LOADING)
                made_card.write_text(text, encoding="utf-8")

    def _check_reloads(self) -> None:
        """Checks once for the layers that it holds: a checkpoint may come every epoch."""
        layers = [self, *keras_internals.all_layers(self)]
        known = [id(layer) for layer in layers]
        if self.built and known != getattr(self, "_reloads_with", None):
            check_reloads(self)
            self._reloads_with = known

    def save_weights(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Saves the weights as Keras does, with a checksum in a `.weights.h5` file.

        Args:
            filepath: path that ends in `.weights.h5`.
            *args: all other arguments of `keras.Model.save_weights`, in its order.
            **kwargs: the same, by name.
        """
        super().save_weights(filepath, *args, **kwargs)
        checksum.seal(filepath)

    def load_weights(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Loads weights as Keras does, after a check of the checksum where the file has one.

        The optimizer's momentum of low-rank layers belongs to the matrices before: it starts again
        at the next step, at equal ranks too. To continue a training, load the whole model, or
        restore a `tf.train.Checkpoint` of the model and its optimizer.

        Args:
            filepath: path of the file.
            *args: all other arguments of `keras.Model.load_weights`, in its order.
            **kwargs: the same, by name.

        Raises:
            ValueError: the file is damaged, or that of another model.
            OSError: the file cannot be read.
        """
        checksum.verify(filepath)
        super().load_weights(filepath, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class of a functional instance is not the one that its name leads to.
        return keras_graphs.unpickle, super().__reduce__()[1]

    @keras_internals.default
    def get_config(self) -> dict[str, Any]:
        self._refuse_hdf5()
        return super().get_config()

    def _refuse_hdf5(self) -> None:
        """Raises ValueError while Keras writes a file in its older format."""
        if keras_internals.is_saving_hdf5():  # `keras.saving.save_model` does not call `save`
            raise ValueError(_NO_HDF5.format(f"model={self.name!r}"))
