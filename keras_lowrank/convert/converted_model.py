"""What a model becomes whose layers were made low-rank in place: itself, and a `LowRankModel`."""

import contextlib
import copy
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.convert.building import build_like
from keras_lowrank.convert.copies import copy_state, is_low_rank
from keras_lowrank.convert.registry import converter_of
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.model import LowRankModel, become_low_rank
from keras_lowrank.optimizers.options import fresh
from keras_lowrank.reloading import layers_by_attribute, make_again

if TYPE_CHECKING:  # a base that stands before the class of a model, and extends its methods

    class _Base(keras_graphs.NotCloned, LowRankModel):
        pass
else:
    _Base = keras_graphs.NotCloned


@keras.saving.register_keras_serializable("keras_lowrank")
class ConvertedModel(_Base):
    """A base, before the class that a model had and `LowRankModel`: how the two are saved as one.

    The config is that of the model before, and what to make low-rank in it: a layer that holds
    others makes plain ones when it is loaded, and knows of no low-rank ones.
    """

    def get_config(self) -> dict[str, Any]:
        self._refuse_hdf5()
        with _as_before([self]):
            config = keras.saving.serialize_keras_object(self)
        config.pop("compile_config", None)
        return {"model": config, "low_rank": _recipes(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.Model:
        model = keras.saving.deserialize_keras_object(copy.deepcopy(config["model"]))
        _restore(model, config["low_rank"])
        return model

    def compile_from_config(self, config: dict[str, Any]) -> None:
        if type(self).compile is LowRankModel.compile or not self.compiled:
            super().compile_from_config(config)
        else:
            # Its own `compile` has run when it was made, and what that sets is there.
            self._compile_loaded(config, functools.partial(LowRankModel.compile, self))
        if self._training is not None and self._training.state is None:
            # For the state in the file: layers that nobody calls are not waited for.
            self._training.build_optimizer()


class _InPresets:
    """A base of those that KerasHub can save as presets."""

    def save_to_preset(self, preset_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Saves a preset as KerasHub does, of the model before: each kernel whole, `U S V^T`.

        It loads without this package, as any other preset does, and `make_low_rank` with a small
        tolerance finds the ranks again. To keep the factors, `save` in a file `.keras`.

        Args:
            preset_dir: str, a folder.
            *args: as in KerasHub.
            **kwargs: as in KerasHub.
        """
        plain_twin(self).save_to_preset(preset_dir, *args, **kwargs)


def convert_class(model: keras.Model) -> None:
    """Makes a model, and every model in it that holds a low-rank layer, a `LowRankModel`."""
    for one in (*keras_internals.all_layers(model), model):
        if not isinstance(one, keras.Model) or isinstance(one, ConvertedModel):
            continue
        if any(isinstance(layer, LowRankLayer) for layer in keras_internals.all_layers(one)):
            of_presets = (_InPresets,) if hasattr(one, "save_to_preset") else ()
            become_low_rank(one, before=(ConvertedModel, *of_presets))


def has_own_class(model: keras.Model) -> bool:
    """Whether a model is a converted one that the code of its class makes, and not its graph."""
    if not _is_converted(model):
        return False
    with _as_before([model]):
        return not keras_graphs.is_saved_as_graph(model)


def plain_twin(model: Any) -> keras.Model:
    """Returns a model of the class before, made from its config, with whole kernels.

    Args:
        model: `ConvertedModel`.

    Raises:
        ValueError: its config does not make it without low-rank layers.
    """
    models = [one for one in (model, *keras_internals.all_layers(model)) if _is_converted(one)]
    try:
        with _as_before(models):
            twin = make_again(model)
        copy_state(model, twin)
        low_rank = [one for one in keras_internals.all_layers(twin) if is_low_rank(one)]
        if low_rank:
            raise ValueError(f"whose config makes the low-rank layer {low_rank[0].name!r}")
    except ValueError as error:
        raise ValueError(
            "A model has whole kernels again where its config makes plain layers. "
            f"Received: {model.name!r}, {error}"
        ) from error
    return twin


def _is_converted(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, ConvertedModel)


@contextlib.contextmanager
def _as_before(models: Sequence[Any]) -> Iterator[None]:
    """While open, models are of the classes that they had."""
    classes = [type(model) for model in models]
    for model, cls in zip(models, classes):
        object.__setattr__(model, "__class__", keras_graphs.original_class(cls))
    try:
        yield
    finally:
        for model, cls in zip(models, classes):
            object.__setattr__(model, "__class__", cls)


def _recipes(model: keras.Model) -> dict[str, dict[str, Any]]:
    """Returns `{key: arguments}` of the low-rank layers in a model that no other one holds."""
    found: dict[str, dict[str, Any]] = {}
    for key, layer in layers_by_attribute(model).items():
        if is_low_rank(layer) and not key.startswith(tuple(f"{one}/" for one in found)):
            config = layer.get_config()
            arguments = converter_of(layer).low_rank_arguments
            found[key] = {name: config[name] for name in arguments if name in config}
    return found


def _restore(model: keras.Model, recipes: dict[str, dict[str, Any]]) -> None:
    """Makes the layers low-rank that were, with any weights: those of the file follow."""
    layers = layers_by_attribute(model)
    for key, arguments in recipes.items():
        layer = layers.get(key)
        if layer is None or not layer.built:
            raise ValueError(
                "A model must make and build its layers from its config, to be loaded with "
                f"low-rank ones. Received: no built layer at {key!r} in {model.name!r}"
            )
        if not is_low_rank(layer):
            twin = converter_of(layer).with_rank(layer, **arguments)
            build_like(twin, layer)
            keras_internals.become(layer, twin)
    convert_class(model)
    compile_again(model)


def compile_again(model: Any) -> None:
    """Compiles a model as it was compiled, with an optimizer that has no state."""
    keras_internals.forget_traces(model)
    arguments = keras_internals.compile_arguments(model)
    if arguments is not None:
        for name in {"integrator", "truncation"} & set(vars(model)):
            arguments[name] = getattr(model, name)
        LowRankModel.compile(model, **{**arguments, "optimizer": fresh(arguments["optimizer"])})
