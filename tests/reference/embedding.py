"""Embeddings, and models with them."""

import keras
import numpy as np

from keras_lowrank import LowRankEmbedding, LowRankModel

IDS = np.array([[3, 1, 4, 1], [5, 8, 2, 0], [5, 3, 5, 8]])


class Tied(keras.layers.Embedding):
    """`keras.layers.ReversibleEmbedding`, which Keras 3.8 does not have."""

    def call(self, inputs, reverse=False):
        if reverse:
            return keras.ops.matmul(inputs, keras.ops.transpose(self.embeddings))
        return super().call(inputs)

    def compute_output_spec(self, inputs, reverse=False):
        if reverse:
            return keras.KerasTensor((*inputs.shape[:-1], self.input_dim))
        return super().compute_output_spec(inputs)


def built(rank=3, n=9, m=6, **kwargs):
    layer = LowRankEmbedding(n, m, rank=rank, **kwargs)
    layer.build()
    rng = np.random.default_rng(1)
    layer.S.assign(0.2 * rng.standard_normal((rank, rank)))
    return layer


def same_table(layer, kind=keras.layers.Embedding, **kwargs):
    embedding = kind(layer.input_dim, layer.output_dim, **kwargs)
    embedding.build()
    embedding.set_weights([np.asarray(layer.embeddings)])
    return embedding


def language_model(embedding, tied=True, kind=LowRankModel):
    """A model that predicts an index from four indices."""
    inputs = keras.Input((4,), dtype="int32")
    x = embedding(inputs)
    x = keras.layers.Dense(6, activation="tanh", kernel_initializer="orthogonal")(x)
    if tied:
        return kind(inputs, embedding(x, reverse=True))
    return kind(inputs, keras.layers.Dense(9)(keras.layers.Flatten()(x)))


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
