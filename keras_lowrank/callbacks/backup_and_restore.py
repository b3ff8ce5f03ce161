"""Training that goes on after a crash as if there had been none."""

import itertools
import pathlib
import warnings

import keras

from keras_lowrank import keras_internals
from keras_lowrank.callbacks.host_random_state import host_random_state
from keras_lowrank.callbacks.next_execution import replace_next_execution
from keras_lowrank.callbacks.training_state import UNREADABLE, TrainingState
from keras_lowrank.files.atomic_file import write_atomically


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """`keras.callbacks.BackupAndRestore` that is atomic, complete and exact to the batch.

    Keras's callback writes weights and epoch to two files, in place: a crash while it writes loses
    the backup. It saves no seeds, and a backup from the midst of an epoch begins that epoch again.
    This one writes one file, which replaces the one before at once, with weights, ranks, optimizer
    and its moments, the seeds of layers, the global random states of Keras, NumPy and Python, the
    epoch, and with an integer `save_freq` also batch and metrics. When the same program is started
    again, `fit` goes on from there: in the midst of an epoch it draws the batches that are done
    from the data and passes over them.

    The run ends with the same weights, bit for bit, as one that was never stopped, provided that
    - the order of the data is a function of the epoch, or of the random states of NumPy and Python
      at its beginning: arrays with `shuffle=False`; a `tf.data.Dataset` that starts anew in every
      epoch in the same order (no `shuffle`, or one with a seed and
      `reshuffle_each_iteration=False`; no `repeat` with `steps_per_epoch`); a
      `keras.utils.PyDataset`, which Keras shuffles batch by batch by Python's generator, or one
      that derives its order from the epoch, as in the example. Arrays that `fit` shuffles, as it
      does by default, are drawn by TensorFlow, whose generator cannot be read;
    - the program makes the same model and compiles it in the same way, and its operations are
      deterministic (on a GPU, `tf.config.experimental.enable_op_determinism()`);
    - callbacks with a memory of their own (`EarlyStopping`, `ReduceLROnPlateau`,
      `FreezeRanks(patience=...)`) have not counted yet: their counts start anew;
    - it is the last of the callbacks: what those after it change is not in its file.

    Under `tf.distribute.MultiWorkerMirroredStrategy` the first worker writes, and all read: the
    folder must be one that all of them see.

    Args:
        backup_dir: str or path, a local folder, used by nothing else.
        save_freq: `"epoch"`, the default, or int, a number of batches.
        double_checkpoint: bool. Also keep the state before, and take it where the newest cannot
            be read: no crash needs it, a failing disk may. Defaults to `False`.
        delete_checkpoint: bool. Delete the folder at the end of `fit`. Defaults to `True`.

    Raises:
        ValueError: a folder that is not local, a frequency out of its range, a model that is not
            built when `fit` begins, or a saved state of another model.
        OSError: a saved state that cannot be read.

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
        self, backup_dir, save_freq="epoch", double_checkpoint=False, delete_checkpoint=True
    ):
        super().__init__(backup_dir, save_freq, double_checkpoint, delete_checkpoint)
        if "://" in str(backup_dir):
            raise ValueError(
                "`backup_dir` must be a local folder: renaming is not atomic elsewhere. "
                f"Received: backup_dir={backup_dir}"
            )
        if save_freq != "epoch" and (isinstance(save_freq, bool) or save_freq < 1):
            raise ValueError(
                "`save_freq` must be 'epoch' or a positive number of batches. "
                f"Received: save_freq={save_freq!r}"
            )
        self._path = pathlib.Path(backup_dir) / "state.npz"
        self._path_before = pathlib.Path(backup_dir) / "before.npz"

    def on_train_begin(self, logs=None):
        if not self.model.built:
            raise ValueError(
                "`BackupAndRestore` needs a model that is built before `fit`: call it on a batch, "
                f"or `build` it. Received: an unbuilt model {self.model.name!r}"
            )
        self._resumed, self._unsaved = None, 0
        state = self._read()
        if state is None:
            return
        if state.position["batch"] % self.model.steps_per_execution:
            raise ValueError(
                "`steps_per_execution` must divide the number of batches that are done in the "
                f"saved epoch: {state.position['batch']}. "
                f"Received: steps_per_execution={self.model.steps_per_execution}"
            )
        self.model._training.build_optimizer()
        state.restore(self.model)
        self._resumed = state
        keras_internals.start_at_epoch(self.model, state.position["epoch"])

    def on_epoch_begin(self, epoch, logs=None):
        # A later `fit` of the same model starts where it is told to.
        keras_internals.start_at_epoch(self.model, None)
        self._epoch, self._done = epoch, 0
        # Keras is about to draw the order of the epoch's data; a state from the midst of it must
        # draw the same again.
        self._random_state = host_random_state()
        if self._resumed is not None:
            self._done = self._resumed.position["batch"]

    def on_train_batch_begin(self, batch, logs=None):
        self._begun = batch
        if batch < self._done:
            replace_next_execution(self.model, self._pass_over)

    def on_train_batch_end(self, batch, logs=None):
        if batch < self._done:
            return
        if batch == self._begun:  # older versions of Keras name the first step of an execution
            batch += self.model.steps_per_execution - 1
        self._unsaved += batch + 1 - self._done
        self._done = batch + 1
        if self.save_freq != "epoch" and self._unsaved >= self.save_freq:
            self._save(self._epoch, self._done)

    def on_epoch_end(self, epoch, logs=None):
        self._resumed = None
        if self.save_freq == "epoch":
            self._save(epoch + 1, 0)

    def _save(self, epoch, batch):
        random_state = self._random_state if batch else host_random_state()
        self._unsaved = 0
        # Between hosts all take part in reading metrics, at the same step, and one writes.
        state = TrainingState.of(self.model, epoch, batch, random_state)
        if not self._writes():
            return
        write_atomically(
            self._path, state.write, keep_as=self._path_before if self.double_checkpoint else None
        )

    def _writes(self):
        return self.model.distribute_strategy.extended.should_checkpoint

    def on_train_end(self, logs=None):
        keras_internals.start_at_epoch(self.model, None)  # where no epoch was left to begin
        if self._writes():
            super().on_train_end(logs)

    def _read(self):
        """The newest state that can be read; None where there is no file."""
        fault = None
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
                    f"The saved state {self._path} cannot be read ({fault}); training goes on from "
                    f"the one before, {path}.",
                    stacklevel=2,
                )
            return state
        if fault is None:
            return None
        raise OSError(
            f"The saved state {self._path} cannot be read. Delete the folder to train from the "
            f"beginning. Received: {fault}"
        ) from fault

    def _pass_over(self, _, iterator):
        """In place of an execution that was done before the crash: takes its batches, no more."""
        batches = list(itertools.islice(iterator, self.model.steps_per_execution))
        if not batches:
            raise StopIteration
        state = self._resumed
        if "metrics" in state.values:
            self.model._training.prepare_on(batches[0])
            state.restore_metrics(self.model)
        return self.model.get_metrics_result()
