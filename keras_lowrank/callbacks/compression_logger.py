"""Compression and ranks among the logs of training."""

from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.callbacks.next_execution import replace_next_execution


class CompressionLogger(LowRankCallback):
    """Adds the compression, and the ranks if asked for, to the logs of every batch and epoch.

    The progress bar, the history that `fit` returns, `ModelCheckpoint`, `CSVLogger`,
    `EarlyStopping(monitor="compression", mode="max")` and every other callback see them, whatever
    the order of the callbacks. They are the values after the last step, not means over the epoch.

    - `compression`: the share of the weights that is saved, `1 - factored / full`, counted as in
      `LowRankModel.compression`.
    - `rank_` and the path of a layer, with `ranks=True`: its rank.

    Args:
        ranks: bool. Add the rank of every layer too. Defaults to `False`.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(8, rank=2, name="low")(inputs))
    >>> model.compile("sgd", "mse", integrator="fixed_rank")
    >>> x = np.ones((4, 8))
    >>> history = model.fit(x, x, verbose=0, callbacks=[callbacks.CompressionLogger(ranks=True)])
    >>> history.history["compression"], history.history["rank_low"]
    ([0.5], [2.0])
    """

    def __init__(self, ranks=False):
        super().__init__()
        self.with_ranks = ranks

    def on_train_begin(self, logs=None):
        self._counted = None

    def on_train_batch_begin(self, batch, logs=None):
        replace_next_execution(self.model, lambda run, data: {**run(data), **self._values()})

    def _values(self):
        ranks = self.model.ranks
        if ranks != self._counted:  # counting looks at every variable of the model
            compression = self.model.compression()
            self._counted, self._saved = ranks, compression.saved(compression.factored)
        values = {"compression": self._saved}
        if self.with_ranks:
            values.update({f"rank_{path}": rank for path, rank in ranks.items()})
        return values
