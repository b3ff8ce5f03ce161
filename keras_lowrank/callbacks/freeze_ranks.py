"""Freezing the ranks in the course of training."""

from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.user_warnings import warn_user


class FreezeRanks(LowRankCallback):
    """Freezes the ranks once they have settled, or at an epoch.

    Calls `LowRankModel.freeze_ranks`: from there on no rank changes, nothing is truncated, and
    `jit_compile=True` takes effect. It costs one more trace of the train function.

    Args:
        patience: int or None. Freeze at the end of the epoch after which no rank has moved for so
            many epochs.
        epoch: int or None. Freeze at the beginning of this epoch; the first is 0, as in Keras. With
            both arguments, whatever comes first.
        verbose: int. 1 prints a line when the ranks are frozen. Defaults to 0.

    Raises:
        ValueError: neither argument is given, or one is out of its range.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(8, rank=2)(inputs))
    >>> model.compile("sgd", "mse", integrator="fixed_rank")
    >>> x = np.ones((4, 8))
    >>> freeze = callbacks.FreezeRanks(epoch=1, verbose=1)
    >>> history = model.fit(x, x, epochs=2, verbose=0, callbacks=[freeze])
    epoch 2: ranks frozen at low_rank_dense 2
    """

    def __init__(self, patience=None, epoch=None, verbose=0):
        super().__init__()
        if patience is None and epoch is None:
            raise ValueError(
                "`FreezeRanks` needs `patience` or `epoch`. Received: patience=None, epoch=None"
            )
        for name, value, least in (("patience", patience, 1), ("epoch", epoch, 0)):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}"
                )
        self.patience = patience
        self.epoch = epoch
        self.verbose = verbose

    def on_train_begin(self, logs=None):
        self._ranks, self._unmoved = self.model.ranks, 0
        self._done, self._last = False, -1

    def on_epoch_begin(self, epoch, logs=None):
        if self.epoch is not None and epoch >= self.epoch:
            self._freeze(epoch)

    def on_train_end(self, logs=None):
        if not self._done and self.epoch is not None and self._last < self.epoch:
            warn_user(
                f"The ranks were not frozen: `FreezeRanks` waits for epoch={self.epoch}, and "
                f"training has ended with epoch {self._last}, the first being 0."
            )

    def on_epoch_end(self, epoch, logs=None):
        self._last = epoch
        ranks = self.model.ranks
        self._unmoved = self._unmoved + 1 if ranks == self._ranks else 0
        self._ranks = ranks
        if self.patience is not None and self._unmoved >= self.patience:
            self._freeze(epoch)

    def _freeze(self, epoch):
        if self._done:
            return
        self._done = True
        self.model.freeze_ranks()
        if self.verbose:
            line = ", ".join(f"{path} {rank}" for path, rank in self.model.ranks.items())
            print(f"epoch {epoch + 1}: ranks frozen at {line}")
