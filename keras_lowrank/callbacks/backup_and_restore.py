"""A callback that resumes training after a crash, to the batch."""

import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_lowrank import keras_internals
from keras_lowrank.callbacks.host_random_state import host_random_state
from keras_lowrank.callbacks.next_execution import replace_next_execution
from keras_lowrank.callbacks.training_state import UNREADABLE, TrainingState
from keras_lowrank.files.atomic_file import write_atomically


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """`keras.callbacks.BackupAndRestore` that is atomic, complete and exact to the batch.

    Keras's callback overwrites two files in place, so a crash during the write loses the backup. It
    saves no seeds, and a backup taken within an epoch restarts that epoch. This callback replaces
    one file atomically. The file holds the weights, the ranks, the optimizer's state, the seeds of
    layers, the global random states of Keras, NumPy and Python, and the epoch. With an integer
    `save_freq` it also holds the batch and the metrics.

    Start the same program again, and `fit` continues from the saved state. Within an epoch, `fit`
    draws the finished batches from the data and skips them.

    The weights at the end are those of an uninterrupted run, bit for bit, under four conditions:

    - The order of the data depends only on the epoch, or on the random states of NumPy and Python
      when the epoch begins. This holds for arrays with `shuffle=False`; for a `tf.data.Dataset`
      that yields the same order every epoch (no `shuffle`, or one with a seed and
      `reshuffle_each_iteration=False`; no `repeat` with `steps_per_epoch`); and for a
      `keras.utils.PyDataset`, whose batches Keras shuffles with Python's generator, or whose order
      you derive from the epoch as in the example. It does not hold for arrays that `fit` shuffles,
      its default: TensorFlow shuffles them with a generator whose state cannot be read.
    - The program makes and compiles the same model, and its operations are deterministic (on a
      GPU, call `tf.config.experimental.enable_op_determinism()`).
    - Callbacks that count epochs (`EarlyStopping`, `ReduceLROnPlateau`,
      `FreezeRanks(patience=...)`) have counted none yet: their counts restart at zero.
    - It is the last callback. Changes by later callbacks are not saved.

    Under `tf.distribute.MultiWorkerMirroredStrategy` the first worker writes and all workers read,
    so the folder must be visible to all of them.

    Args:
        backup_dir: str or path, a local folder that nothing else uses.
        save_freq: `"epoch"`, or int, a number of batches. Defaults to `"epoch"`.
        double_checkpoint: bool. Also keep the previous state, and restore it if the newest cannot
            be read, as on a failing disk. Defaults to `False`.
        delete_checkpoint: bool. Delete the folder at the end of `fit`. Defaults to `True`.

    Raises:
        ValueError: `backup_dir` is not local, `save_freq` is out of range, the model is not built
            when `fit` begins, or the saved state belongs to another model.
        OSError: no saved state can be read.

    Example:

    >>> class Shuffled(keras.utils.PyDataset):
    ...     "Batches of four in an order that depends on the epoch alone."
    ...     def __init__(self, model, x, y):
    ...         super().__init__()
    ...         self.model, self.x, self.y = model, x, y
    ...         self.on_epoch_begin()  # Keras looks at a batch before the first epoch begins
    ...     def __len__(self):
    ...         return len(self.x) // 4
    ...     def on_epoch_begin(self):
    ...         epoch = int(self.model.optimizer.iterations) // len(self)
    ...         self.order = np.random.default_rng(epoch).permutation(len(self.x))
    ...     def __getitem__(self, index):
    ...         chosen = self.order[4 * index : 4 * index + 4]
    ...         return self.x[chosen], self.y[chosen]
    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(8, rank=2)(inputs))
    >>> model.compile("sgd", "mse")
    >>> data = Shuffled(model, np.ones((8, 8)), np.ones((8, 8)))
    >>> backup = callbacks.BackupAndRestore("/tmp/keras_lowrank_example", save_freq=100)
    >>> history = model.fit(data, epochs=2, verbose=0, callbacks=[backup])
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike,
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__(backup_dir, save_freq, double_checkpoint, delete_checkpoint)
        if "://" in str(backup_dir):
            raise ValueError(
                "`backup_dir` must be a local folder: renaming is not atomic elsewhere. "
                f"Received: backup_dir={backup_dir}"
            )
        is_whole = isinstance(save_freq, int) and not isinstance(save_freq, bool)
        if save_freq != "epoch" and not (is_whole and int(save_freq) >= 1):
            raise ValueError(
                "`save_freq` must be 'epoch' or a positive number of batches. "
                f"Received: save_freq={save_freq!r}"
            )
        self._path = pathlib.Path(backup_dir) / "state.npz"
        self._path_before = pathlib.Path(backup_dir) / "before.npz"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                "`BackupAndRestore` needs a model that is built before `fit`. Call the model on a "
                f"batch, or `build` it. Received: an unbuilt model {self.model.name!r}"
            )
        self._resumed: TrainingState | None = None
        self._unsaved = 0
        state = self._read()
        if state is None:
            return
        if state.position["batch"] % self.model.steps_per_execution:
            raise ValueError(
                "`steps_per_execution` must divide the number of finished batches in the saved "
                f"epoch: {state.position['batch']}. "
                f"Received: steps_per_execution={self.model.steps_per_execution}"
            )
        self.model._training.build_optimizer()
        state.restore(self.model)
        self._resumed = state
        keras_internals.start_at_epoch(self.model, state.position["epoch"])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # A later `fit` of the same model starts at its own `initial_epoch`.
        keras_internals.start_at_epoch(self.model, None)
        self._epoch, self._done = epoch, 0
        # Keras draws the order of the epoch's data next. A state saved within the epoch must draw
        # the same order again.
        self._random_state = host_random_state()
        if self._resumed is not None:
            self._done = self._resumed.position["batch"]

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._begun = batch
        if batch < self._done:
            replace_next_execution(self.model, self._skip)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch < self._done:
            return
        if batch == self._begun:  # older Keras passes the first step of an execution
            batch += self.model.steps_per_execution - 1
        self._unsaved += batch + 1 - self._done
        self._done = batch + 1
        if self.save_freq != "epoch" and self._unsaved >= self.save_freq:
            self._save(self._epoch, self._done)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._resumed = None
        if self.save_freq == "epoch":
            self._save(epoch + 1, 0)

    def _save(self, epoch: int, batch: int) -> None:
        random_state = self._random_state if batch else host_random_state()
        self._unsaved = 0
        # Every host must read the metrics at the same step; only one of them writes.
        state = TrainingState.of(self.model, epoch, batch, random_state)
        if not self._writes():
            return
        write_atomically(
            self._path, state.write, keep_as=self._path_before if self.double_checkpoint else None
        )

    def _writes(self) -> bool:
        return self.model.distribute_strategy.extended.should_checkpoint

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        keras_internals.start_at_epoch(self.model, None)  # if no epoch was left
        if self._writes():
            super().on_train_end(logs)

    def _read(self) -> TrainingState | None:
        """The newest readable state, or None without a file."""
        fault: Exception | None = None
        for path in (self._path, self._path_before):
            if not path.exists():
                continue
            try:
                state = TrainingState.read(path)
            except UNREADABLE as error:
                fault = fault or error
                continue
            if fault is not None:
                warnings.warn(
                    f"The saved state {self._path} cannot be read ({fault}). Training continues "
                    f"from the previous one, {path}.",
                    stacklevel=2,
                )
            return state
        if fault is None:
            return None
        raise OSError(
            f"The saved state {self._path} cannot be read. Delete the folder to restart the "
            f"training. Received: {fault}"
        ) from fault

    def _skip(self, _: Callable, iterator: Iterator) -> dict[str, Any]:
        """Takes the batches of an execution that finished before the crash, without training."""
        batches = list(itertools.islice(iterator, self.model.steps_per_execution))
        if not batches:
            raise StopIteration
        state = self._resumed
        if state is not None and "metrics" in state.values:
            self.model._training.prepare_on(batches[0])
            state.restore_metrics(self.model)
        return self.model.get_metrics_result()
