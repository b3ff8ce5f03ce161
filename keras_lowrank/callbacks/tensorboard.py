"""Ranks, compression and singular values in TensorBoard."""

import importlib.util
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.layers import LowRankEmbedding
from keras_lowrank.layers.find_layers import find_built_layers


class TensorBoard(LowRankCallback, keras.callbacks.TensorBoard):
    """`keras.callbacks.TensorBoard` with ranks, compression and singular values.

    It writes to the run `train`:

    - at the end of every epoch, the scalar `rank/` and the path of each layer;
    - at the end of every epoch, the scalars `compression/factored`, `compression/deployed` and
      `compression/training`, the fractions of weights saved, see `LowRankModel.compression`;
    - every `histogram_freq` epochs, the histogram `singular_values/` and the path of each layer.

    Args:
        *args: the positional arguments of `keras.callbacks.TensorBoard`.
        **kwargs: the keyword arguments of `keras.callbacks.TensorBoard`.

    Raises:
        ValueError: `embeddings_metadata` names a low-rank embedding, or the model is not a
            `LowRankModel`.
        ImportError: tensorboard is not installed.

    Example:

    >>> log = callbacks.TensorBoard(tempfile.mkdtemp(), histogram_freq=5)  # fit(callbacks=[log])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # TensorFlow would raise only at the end of the first epoch.
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "The `TensorBoard` callback needs the package tensorboard: "
                "`pip install tensorboard`, or 'keras_lowrank[plots]'."
            )
        super().__init__(*args, **kwargs)

    def set_model(self, model: keras.Model) -> None:
        metadata = self.embeddings_metadata or {}
        tables = [one.name for one in model.layers if isinstance(one, LowRankEmbedding)]
        if tables and (isinstance(metadata, str) or set(metadata) & set(tables)):
            raise ValueError(
                "`embeddings_metadata` must name plain embeddings: TensorBoard's projector reads "
                "whole tables from a checkpoint, and a low-rank embedding stores factors. Write "
                "`layer.embeddings` to a separate checkpoint instead. "
                f"Received: embeddings_metadata={metadata!r}, low-rank embeddings {tables}"
            )
        super().set_model(model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
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
