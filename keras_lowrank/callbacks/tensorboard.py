"""Ranks, compression and singular values in TensorBoard."""

import importlib.util

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.layers import LowRankEmbedding
from keras_lowrank.layers.find_layers import find_built_layers


class TensorBoard(LowRankCallback, keras.callbacks.TensorBoard):
    """`keras.callbacks.TensorBoard` that writes the ranks, the compression and the spectra too.

    At the end of every epoch it writes the scalars `rank/` and the path of the layer, and
    `compression/factored`, `compression/deployed` and `compression/training`, the share of the
    weights that each saves, to the run `train`; every `histogram_freq` epochs also the histograms
    `singular_values/` and the path of the layer, of the singular values of its kernel.

    Args:
        *args: all arguments of `keras.callbacks.TensorBoard`, in its order.
        **kwargs: the same, by name.

    Raises:
        ValueError: `embeddings_metadata` for a low-rank embedding.
        ImportError: the package tensorboard, which TensorFlow writes summaries with, is missing.
    """

    def __init__(self, *args, **kwargs):
        # TensorFlow would find out at the end of the first epoch.
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "The `TensorBoard` callback needs the package tensorboard: "
                "`pip install tensorboard`, or 'keras_lowrank[plots]'."
            )
        super().__init__(*args, **kwargs)

    def set_model(self, model):
        metadata = self.embeddings_metadata or {}
        tables = [one.name for one in model.layers if isinstance(one, LowRankEmbedding)]
        if tables and (isinstance(metadata, str) or set(metadata) & set(tables)):
            raise ValueError(
                "`embeddings_metadata` must be for tables that a checkpoint holds, from which "
                "TensorBoard's projector reads them; that of a low-rank embedding is never formed. "
                "Write `layer.embeddings` to a checkpoint of its own. "
                f"Received: embeddings_metadata={metadata!r}, low-rank embeddings {tables}"
            )
        super().set_model(model)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        with keras_internals.train_writer(self).as_default(step=epoch):
            for path, rank in self.model.ranks.items():
                tf.summary.scalar(f"rank/{path}", rank)
            compression = self.model.compression()
            for name in ("factored", "deployed", "training"):
                saved = compression.saved(getattr(compression, name))
                tf.summary.scalar(f"compression/{name}", saved)
            if self.histogram_freq and epoch % self.histogram_freq == 0:
                for path, layer in find_built_layers(self.model).items():
                    tf.summary.histogram(f"singular_values/{path}", layer.factors.singular_values())
