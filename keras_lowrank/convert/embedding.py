"""The converter of embeddings."""

from typing import Any

import keras

from keras_lowrank import keras_graphs, keras_internals, layers
from keras_lowrank.convert.converter import Kernel
from keras_lowrank.convert.single_kernel import SingleKernelConverter
from keras_lowrank.layers.composite import kind_of_composite

# Keras has it from 3.15 on.
_REVERSIBLE = getattr(keras.layers, "ReversibleEmbedding", None)


class EmbeddingConverter(SingleKernelConverter):
    """Factored, the second layer is a `Dense`, which takes no ragged tensor.

    A reversible embedding whose weights are not tied has two tables, and becomes low-rank in both.
    """

    classes = (
        (keras.layers.Embedding, layers.LowRankEmbedding),
        *([(_REVERSIBLE, layers.LowRankEmbedding)] if _REVERSIBLE else []),
    )
    low_rank_arguments = (*SingleKernelConverter.low_rank_arguments, "reverse_rank")
    kernel_name = "embeddings"
    second_class = keras.layers.Dense
    all_kernels = True

    def kernels(self, path: str, layer: Any) -> dict[str, Any]:
        found = super().kernels(path, layer)
        if not getattr(layer, "tie_weights", True):
            own = layer.reverse_embeddings
            reverse = own if self.is_low_rank(layer) else Kernel(self, layer, "reverse_embeddings")
            found[f"{path}/reverse_embeddings"] = reverse
        return found

    def to_low_rank(
        self, path: str, layer: keras.layers.Layer, factors: dict[str, Any]
    ) -> keras.layers.Layer:
        low_rank = super().to_low_rank(path, layer, factors)
        for one, kernel in self.kernels(path, low_rank).items():
            kernel.factors.assign(factors[one])
        return low_rank

    def two_layers(self, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"output_dim": layer.factors.rank}, {"units": layer.output_dim, "use_bias": False}

    def can_be_factored(self, layer: keras.layers.Layer) -> bool:
        calls = keras_graphs.calls_in_graphs(layer)
        ragged = any(kind_of_composite(value) == "ragged" for call in calls for value in call)
        return not (ragged or _projects_back(layer))

    def to_plain(self, layer: keras.layers.Layer, style: str) -> keras.layers.Layer:
        if _projects_back(layer) and _REVERSIBLE is None:
            raise ValueError(
                "Before version 3.15, Keras has no layer for an embedding that is called with "
                f"`reverse=True` too. Received: the layer {layer.name!r}"
            )
        return super().to_plain(layer, style)

    def plain_class(self, layer: keras.layers.Layer) -> Any:
        return _REVERSIBLE if _projects_back(layer) else super().plain_class(layer)

    def plain_arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        config = super().plain_arguments(layer)
        if not _projects_back(layer):
            config = {name: one for name, one in config.items() if name not in _OF_THE_WAY_BACK}
        return config


_OF_THE_WAY_BACK = ("tie_weights", "reverse_dtype", "logit_soft_cap")


def _projects_back(layer: Any) -> bool:
    return not layer.tie_weights or keras_internals.is_called_with(layer, "reverse")
