"""Keras layers that hold the factors of their kernel and never the kernel."""

from keras_lowrank.layers.attention import LowRankGroupedQueryAttention, LowRankMultiHeadAttention
from keras_lowrank.layers.conv import LowRankConv2D
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.einsum_dense import LowRankEinsumDense
from keras_lowrank.layers.low_rank_layer import LowRankLayer, find_low_rank_layers

__all__ = [
    "LowRankConv2D",
    "LowRankDense",
    "LowRankEinsumDense",
    "LowRankGroupedQueryAttention",
    "LowRankLayer",
    "LowRankMultiHeadAttention",
    "find_low_rank_layers",
]
