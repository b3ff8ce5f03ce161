"""A record of the ranks during training."""

import csv

from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.keras_internals import completed_steps


class RankHistory(LowRankCallback):
    """Records the ranks of all low-rank layers, every epoch or every so many steps.

    Args:
        verbose: int. 1 prints a line a record. Defaults to 0.
        freq: `"epoch"`, the default, for the end of every epoch, or int, for every so many steps
            (with `steps_per_execution`, at the end of the execution that completes them).

    Attributes:
        ranks: dict from the path of a layer to the list of its ranks, one a record.
        epochs: list of int, the epoch of each record; the first is 0, as in Keras.
        steps: list of int, the training steps that the optimizer had made at each record.

    Raises:
        ValueError: a frequency that is neither `"epoch"` nor a positive integer.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(2, rank=2)(inputs))
    >>> model.compile("sgd", "mse")
    >>> watch = callbacks.RankHistory()
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=[watch])
    >>> len(watch.ranks["low_rank_dense"])
    1
    """

    def __init__(self, verbose=0, freq="epoch"):
        super().__init__()
        if freq != "epoch" and (not isinstance(freq, int) or freq < 1):
            raise ValueError(
                f"`freq` must be 'epoch' or a positive number of steps. Received: freq={freq!r}"
            )
        self.verbose = verbose
        self.freq = freq
        self.ranks = {}
        self.epochs, self.steps = [], []
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.freq != "epoch":
            self._steps_before = self._completed_steps()

    def on_train_batch_end(self, batch, logs=None):
        if self.freq == "epoch":
            return
        steps = self._completed_steps()
        if steps // self.freq > self._steps_before // self.freq:
            self._record(f"step {steps}")

    def on_epoch_end(self, epoch, logs=None):
        if self.freq == "epoch":
            self._record(f"epoch {epoch + 1}")

    def to_dataframe(self):
        """The record as a `pandas.DataFrame`: columns `epoch`, `step` and one for each layer.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "`to_dataframe` needs pandas: `pip install pandas`, or 'keras_lowrank[plots]'. "
                "`to_csv` does without."
            ) from error
        return pandas.DataFrame(self._columns())

    def to_csv(self, path):
        """Writes the record as a CSV file with a header: `epoch`, `step`, and the layers' paths.

        Args:
            path: str or path of the file, which is replaced if it is there.
        """
        columns = self._columns()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))

    def _columns(self):
        return {"epoch": self.epochs, "step": self.steps, **self.ranks}

    def _completed_steps(self):
        return int(completed_steps(self.model.optimizer))

    def _record(self, when):
        ranks = self.model.ranks
        self.epochs.append(self._epoch)
        self.steps.append(self._completed_steps())
        for path, rank in ranks.items():
            self.ranks.setdefault(path, []).append(rank)
        if self.verbose:
            line = ", ".join(f"{path} {rank}" for path, rank in ranks.items())
            print(f"ranks after {when}: {line}")
