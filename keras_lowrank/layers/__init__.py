"""Keras layers that hold the factors of their kernel, and never the kernel."""

from keras_lowrank.layers.attention import LowRankGroupQueryAttention, LowRankMultiHeadAttention
from keras_lowrank.layers.conv import LowRankConv1D, LowRankConv2D, LowRankConv3D
from keras_lowrank.layers.conv_transpose import LowRankConv2DTranspose
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.einsum_dense import LowRankEinsumDense
from keras_lowrank.layers.embedding import LowRankEmbedding
from keras_lowrank.layers.find_layers import find_low_rank_layers
from keras_lowrank.layers.gru import LowRankGRU, LowRankGRUCell
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.layers.lstm import LowRankLSTM, LowRankLSTMCell

__all__ = [
    "LowRankConv1D",
    "LowRankConv2D",
    "LowRankConv2DTranspose",
    "LowRankConv3D",
    "LowRankDense",
    "LowRankEinsumDense",
    "LowRankEmbedding",
    "LowRankGRU",
    "LowRankGRUCell",
    "LowRankGroupQueryAttention",
    "LowRankLSTM",
    "LowRankLSTMCell",
    "LowRankLayer",
    "LowRankMultiHeadAttention",
    "find_low_rank_layers",
]
