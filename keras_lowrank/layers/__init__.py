"""Keras layers that hold the factors of their kernel and never the kernel."""

from keras_lowrank.layers.conv import LowRankConv2D
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.embedding import LowRankEmbedding
from keras_lowrank.layers.gru import LowRankGRU, LowRankGRUCell
from keras_lowrank.layers.low_rank_layer import LowRankLayer, find_low_rank_layers
from keras_lowrank.layers.lstm import LowRankLSTM, LowRankLSTMCell

__all__ = [
    "LowRankConv2D",
    "LowRankDense",
    "LowRankEmbedding",
    "LowRankGRU",
    "LowRankGRUCell",
    "LowRankLSTM",
    "LowRankLSTMCell",
    "LowRankLayer",
    "find_low_rank_layers",
]
