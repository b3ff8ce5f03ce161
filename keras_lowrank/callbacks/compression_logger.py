"""A callback that adds compression and ranks to the training logs."""

from typing import Any

from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.callbacks.next_execution import replace_next_execution


class CompressionLogger(LowRankCallback):
    """Adds the compression, and optionally the ranks, to the logs of every batch and epoch.

    The progress bar, the history of `fit`, `ModelCheckpoint`, `CSVLogger`,
    `EarlyStopping(monitor="compression", mode="max")` and all other callbacks see these logs, in
    any order of callbacks. Each is the value after the last step, not a mean over the epoch.

    - `compression`: the fraction of weights saved, `1 - factored / full`, counted as in
      `LowRankModel.compression`.
    - `rank_` and the path of a layer, with `ranks=True`: the layer's rank.

    Args:
        ranks: bool. Also add the rank of every layer. Defaults to `False`.

    Attributes:
        with_ranks: bool, the argument `ranks`.

    Raises:
        ValueError: the model is not a `LowRankModel`.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(8, rank=2, name="low")(inputs))
    >>> model.compile("sgd", "mse", integrator="fixed_rank")
    >>> x = np.ones((4, 8))
    >>> history = model.fit(x, x, verbose=0, callbacks=[callbacks.CompressionLogger(ranks=True)])
    >>> history.history["compression"], history.history["rank_low"]
    ([0.5], [2.0])
    """

    with_ranks: bool

    def __init__(self, ranks: bool = False) -> None:
        super().__init__()
        self.with_ranks = ranks

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._counted: dict[str, Any] | None = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        replace_next_execution(self.model, lambda run, data: {**run(data), **self._values()})

    def _values(self) -> dict[str, Any]:
        ranks = self.model.ranks
        if ranks != self._counted:  # counting reads every variable of the model
            compression = self.model.compression()
            self._counted, self._saved = ranks, compression.saved(compression.factored)
        values = {"compression": self._saved}
        if self.with_ranks:
            values.update({f"rank_{path}": rank for path, rank in ranks.items()})
        return values
