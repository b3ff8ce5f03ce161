"""Low-rank training for Keras: networks that are small from the first training step."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_lowrank needs Keras on the TensorFlow backend: set KERAS_BACKEND=tensorflow before "
        f"the first import of keras. Received: backend={keras.backend.backend()!r}"
    )

from keras_lowrank import (
    adapters,
    callbacks,
    diagnostics,
    integrators,
    kernels,
    manifold,
    optimizers,
)
from keras_lowrank.adapters import Adapters, add_adapters, load_adapters, merge_adapters
from keras_lowrank.convert import Conversion, convert_layer, from_keras, make_low_rank, to_keras
from keras_lowrank.integrators import FixedRank, Integrator, Parallel, RankAdaptive
from keras_lowrank.layers import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv2DTranspose,
    LowRankConv3D,
    LowRankDense,
    LowRankEinsumDense,
    LowRankEmbedding,
    LowRankGroupQueryAttention,
    LowRankGRU,
    LowRankGRUCell,
    LowRankLayer,
    LowRankLSTM,
    LowRankLSTMCell,
    LowRankMultiHeadAttention,
    find_low_rank_layers,
)
from keras_lowrank.layers.across_ranks import set_weights
from keras_lowrank.layers.kernel_penalty import Conditioning
from keras_lowrank.manifold import Point, TangentVector
from keras_lowrank.manifold.plain_training import PlainTrainingWarning
from keras_lowrank.model import LowRankModel
from keras_lowrank.ranks.budget import Budget
from keras_lowrank.ranks.policy import Policy
from keras_lowrank.ranks.truncation import KeepRank, Tolerance, Truncation
from keras_lowrank.reporting.card import ModelCard
from keras_lowrank.reporting.compression import Compression, count_weights
from keras_lowrank.version import __version__ as __version__

__all__ = [
    "Adapters",
    "Budget",
    "Compression",
    "Conditioning",
    "Conversion",
    "FixedRank",
    "Integrator",
    "KeepRank",
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
    "LowRankModel",
    "LowRankMultiHeadAttention",
    "ModelCard",
    "Parallel",
    "PlainTrainingWarning",
    "Point",
    "Policy",
    "RankAdaptive",
    "TangentVector",
    "Tolerance",
    "Truncation",
    "adapters",
    "add_adapters",
    "callbacks",
    "convert_layer",
    "count_weights",
    "diagnostics",
    "find_low_rank_layers",
    "from_keras",
    "integrators",
    "kernels",
    "load_adapters",
    "make_low_rank",
    "manifold",
    "merge_adapters",
    "optimizers",
    "set_weights",
    "to_keras",
]
