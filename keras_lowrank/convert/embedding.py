"""The converter of embeddings."""

from typing import Any

import keras

from keras_lowrank import keras_graphs, keras_internals, layers
from keras_lowrank.convert.single_kernel import SingleKernelConverter
from keras_lowrank.layers.composite import kind_of_composite


class EmbeddingConverter(SingleKernelConverter):
    """Factored, the second layer is a `Dense`, which takes no ragged tensor."""

    classes = ((keras.layers.Embedding, layers.LowRankEmbedding),)
    low_rank_arguments = (
        *SingleKernelConverter.low_rank_arguments,
        "reverse_dtype",
        "logit_soft_cap",
    )
    kernel_name = "embeddings"
    second_class = keras.layers.Dense

    def two_layers(self, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"output_dim": layer.factors.rank}, {"units": layer.output_dim, "use_bias": False}

    def can_be_factored(self, layer: keras.layers.Layer) -> bool:
        calls = keras_graphs.calls_in_graphs(layer)
        return all(kind_of_composite(value) != "ragged" for call in calls for value in call)

    def to_plain(self, layer: keras.layers.Layer, style: str) -> keras.layers.Layer:
        if keras_internals.is_called_with(layer, "reverse"):
            raise ValueError(
                "`to_keras` has no Keras layer for an embedding that is called with "
                f"`reverse=True` too. Received: the layer {layer.name!r}"
            )
        return super().to_plain(layer, style)
