"""Which layers of Keras can have a delta, and what becomes of each."""

from typing import Any

import keras

from keras_lowrank.adapters import delta
from keras_lowrank.adapters.adapted_layer import (
    AdaptedCell,
    AdaptedEmbedding,
    AdaptedKernel,
    AdaptedLayer,
    Switch,
    adapt,
)
from keras_lowrank.convert.building import build_like, input_shape
from keras_lowrank.layers.einsum_equation import EinsumEquation

# The modes of quantization in which Keras can do without a kernel in floats.
_QUANTIZED = (None, "int8", "int4")

# Versions of Keras before 3.12 have no other embedding.
_EMBEDDINGS = [
    getattr(keras.layers, name)
    for name in ("Embedding", "ReversibleEmbedding")
    if hasattr(keras.layers, name)
]


class Family:
    """How the layers of one family get deltas. A subclass of one of its classes is of it, too.

    Unless it has a `call` of its own, which may compute anything.

    Attributes:
        classes: tuple of pairs of a Keras layer class and that of its delta.
        adapted_class: what goes before the class of a layer.
        is_projection: bool, whether its layers are adapted where nobody names any.
    """

    classes: tuple[tuple[Any, type[delta.Delta]], ...] = ()
    adapted_class: type[AdaptedLayer] = AdaptedKernel
    is_projection = True

    def contains(self, layer: keras.layers.Layer) -> bool:
        """bool, whether the layer is of this family, and built."""
        return layer.built and self._delta_class(layer) is not None and self.is_matrix(layer)

    def is_matrix(self, layer: keras.layers.Layer) -> bool:
        """bool, whether the kernel is one matrix."""
        return True

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        """The arguments of the delta that a layer of this family gives it."""
        # Abstract: what a layer's delta takes depends on its family alone.
        raise NotImplementedError(f"{type(self).__name__} must implement `arguments`.")

    def make_deltas(
        self, layer: keras.layers.Layer, rank: int | None, max_rank: int | None
    ) -> dict[str, delta.Delta]:
        """Returns `{attribute: built delta}` for a layer, which stays as it is."""
        made = self._delta_class(layer)(
            **self.arguments(layer),
            **delta.delta_arguments(layer, rank, max_rank),
            name="delta",
        )
        _build_inside(made, layer, input_shape(layer))
        return {"delta": made}

    def adapt(
        self, layer: keras.layers.Layer, parts: dict[str, delta.Delta], switch: Switch
    ) -> None:
        """Gives a layer the deltas that `make_deltas` has made."""
        adapt(layer, self.adapted_class, parts, switch)

    def _delta_class(self, layer: keras.layers.Layer) -> Any:
        kinds = [pair for pair in self.classes if isinstance(layer, pair[0])]
        return next((made for plain, made in kinds if type(layer).call is plain.call), None)


class _Kernels(Family):
    """Layers with a kernel, a bias and an activation."""

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        return {"use_bias": False, "kernel_initializer": "zeros"}


class _Dense(_Kernels):
    classes = ((keras.layers.Dense, delta.DenseDelta),)

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        return {**super().arguments(layer), "units": layer.units}


class _EinsumDense(Family):
    classes = ((keras.layers.EinsumDense, delta.EinsumDenseDelta),)

    def is_matrix(self, layer: keras.layers.Layer) -> bool:
        try:
            EinsumEquation.parse(layer.equation)
        except ValueError:
            return False
        return True

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        return {
            "equation": layer.equation,
            "output_shape": layer.partial_output_shape,
            "kernel_initializer": "zeros",
        }


class _Conv(_Kernels):
    classes = (
        (keras.layers.Conv1D, delta.Conv1DDelta),
        (keras.layers.Conv2D, delta.Conv2DDelta),
        (keras.layers.Conv3D, delta.Conv3DDelta),
    )

    def is_matrix(self, layer: keras.layers.Layer) -> bool:
        return layer.groups == 1

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        names = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate")
        return {**super().arguments(layer), **{name: getattr(layer, name) for name in names}}


class _Embedding(Family):
    classes = tuple((one, delta.EmbeddingDelta) for one in _EMBEDDINGS)
    adapted_class = AdaptedEmbedding
    is_projection = False

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        return {
            "input_dim": layer.input_dim,
            "output_dim": layer.output_dim,
            "embeddings_initializer": "zeros",
            "reverse_dtype": getattr(layer, "reverse_dtype", None),
        }


class _Cell(Family):
    """Recurrent cells: kernel and recurrent kernel have a delta each."""

    classes = (
        (keras.layers.LSTMCell, delta.KernelDelta),
        (keras.layers.GRUCell, delta.KernelDelta),
        (keras.layers.SimpleRNNCell, delta.KernelDelta),
    )
    adapted_class = AdaptedCell

    def make_deltas(
        self, layer: keras.layers.Layer, rank: int | None, max_rank: int | None
    ) -> dict[str, delta.Delta]:
        made = {}
        for kernel, name in self.adapted_class.kernels.items():
            made[name] = self._delta_class(layer)(
                use_bias=False,
                kernel_initializer="zeros",
                **delta.delta_arguments(layer, rank, max_rank),
                name=name,
            )
            _build_inside(made[name], layer, tuple(getattr(layer, kernel).shape))
        return made


FAMILIES = (_Dense(), _EinsumDense(), _Conv(), _Embedding(), _Cell())


def family_of(layer: keras.layers.Layer) -> Any:
    """The `Family` of a built layer, or None."""
    return next((one for one in FAMILIES if one.contains(layer)), None)


def make_deltas(
    layers: dict[str, keras.layers.Layer], rank: int | None, max_rank: int | None
) -> dict[str, dict[str, delta.Delta]]:
    """Returns `{path: {attribute: delta}}` for `{path: layer}`; the layers stay as they are.

    Raises:
        ValueError: a layer that cannot have a delta as it is now.
    """
    for path, layer in layers.items():
        _refuse_unfit(path, layer)
    return {p: family_of(x).make_deltas(x, rank, max_rank) for p, x in layers.items()}


def _refuse_unfit(path: str, layer: keras.layers.Layer) -> None:
    """Raises ValueError where a layer of a family cannot have a delta as it is now."""
    mode = getattr(layer, "quantization_mode", None)
    if getattr(layer, "lora_enabled", False):
        raise ValueError(
            "A layer has LoRA or an adapter, not both. Make the model anew from its saved file, "
            f"into which Keras has merged its LoRA, or exclude the layer. Received: {path!r}"
        )
    if mode not in _QUANTIZED:
        raise ValueError(
            "The base of an adapter is in floats, int8 or int4. "
            f"Received: quantization_mode={mode!r} for layer {path!r}"
        )


def _build_inside(made: keras.layers.Layer, layer: keras.layers.Layer, shape: Any) -> None:
    build_like(made, layer, {"input_shape": shape} if shape else {}, inside=(layer.name,))
