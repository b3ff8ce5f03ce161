"""A callback that records the ranks during training."""

import csv
import os
from typing import TYPE_CHECKING, Any

from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.keras_internals import completed_steps

if TYPE_CHECKING:  # an optional package
    import pandas


class RankHistory(LowRankCallback):
    """Records the ranks of all low-rank layers, once an epoch or every `freq` steps.

    Args:
        verbose: int. 1 prints a line for each record. Defaults to 0.
        freq: `"epoch"` to record at the end of every epoch, or int, a number of steps. With
            `steps_per_execution`, the record comes at the end of the execution. Defaults to
            `"epoch"`.

    Attributes:
        verbose: int, as the argument.
        freq: str or int, as the argument.
        ranks: dict from the path of a layer to the list of its ranks, one for each record.
        epochs: list of int, the epoch of each record; the first is 0, as in Keras.
        steps: list of int, the optimizer's completed steps at each record.

    Raises:
        ValueError: `freq` is neither `"epoch"` nor a positive integer, or the model is not a
            `LowRankModel`.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(2, rank=2)(inputs))
    >>> model.compile("sgd", "mse")
    >>> watch = callbacks.RankHistory()
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=[watch])
    >>> len(watch.ranks["low_rank_dense"])
    1
    """

    verbose: int
    freq: str | int
    ranks: dict[str, list[int]]
    epochs: list[int]
    steps: list[int]

    def __init__(self, verbose: int = 0, freq: str | int = "epoch") -> None:
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

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.freq != "epoch":
            self._steps_before = self._completed_steps()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not isinstance(self.freq, int):
            return
        steps = self._completed_steps()
        if steps // self.freq > self._steps_before // self.freq:
            self._record(f"step {steps}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.freq == "epoch":
            self._record(f"epoch {epoch + 1}")

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns the records as a table.

        Returns:
            `pandas.DataFrame` with the columns `epoch`, `step` and one for each layer's path.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "`to_dataframe` needs pandas: `pip install pandas`, or 'keras_lowrank[plots]'. "
                "`to_csv` does not need it."
            ) from error
        return pandas.DataFrame(self._columns())

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes the records to a CSV file with the columns of `to_dataframe`.

        Args:
            path: str or path of the file. An existing file is replaced.
        """
        columns = self._columns()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))

    def _columns(self) -> dict[str, list[int]]:
        return {"epoch": self.epochs, "step": self.steps, **self.ranks}

    def _completed_steps(self) -> int:
        return int(completed_steps(self.model.optimizer))

    def _record(self, when: str) -> None:
        ranks = self.model.ranks
        self.epochs.append(self._epoch)
        self.steps.append(self._completed_steps())
        for path, rank in ranks.items():
            self.ranks.setdefault(path, []).append(rank)
        if self.verbose:
            line = ", ".join(f"{path} {rank}" for path, rank in ranks.items())
            print(f"ranks after {when}: {line}")
