"""Callbacks that show or freeze the ranks, and one that resumes training after a crash."""

from keras_lowrank.callbacks.backup_and_restore import BackupAndRestore
from keras_lowrank.callbacks.compression_logger import CompressionLogger
from keras_lowrank.callbacks.freeze_ranks import FreezeRanks
from keras_lowrank.callbacks.plots import plot_ranks, plot_spectrum
from keras_lowrank.callbacks.rank_history import RankHistory
from keras_lowrank.callbacks.tensorboard import TensorBoard

__all__ = [
    "BackupAndRestore",
    "CompressionLogger",
    "FreezeRanks",
    "RankHistory",
    "TensorBoard",
    "plot_ranks",
    "plot_spectrum",
]
