"""A callback that freezes the ranks during training."""

from typing import Any

from keras_lowrank.callbacks.low_rank_callback import LowRankCallback
from keras_lowrank.user_warnings import warn_user


class FreezeRanks(LowRankCallback):
    """Freezes the ranks once they are stable, or at a given epoch.

    Calls `LowRankModel.freeze_ranks`. From then on no rank changes, no step truncates, and
    `jit_compile=True` takes effect. Keras traces the train function once more.

    Args:
        patience: int or None. Freeze after this many epochs without a change of rank.
        epoch: int or None. Freeze at the beginning of this epoch; the first is 0, as in Keras. With
            both arguments, the earlier one decides.
        verbose: int. 1 prints a line when the ranks are frozen. Defaults to 0.

    Attributes:
        patience: int or None, as the argument.
        epoch: int or None, as the argument.
        verbose: int, as the argument.

    Raises:
        ValueError: both arguments are None, one is out of range, or the model is not a
            `LowRankModel`.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(8, rank=2)(inputs))
    >>> model.compile("sgd", "mse", integrator="fixed_rank")
    >>> x = np.ones((4, 8))
    >>> freeze = callbacks.FreezeRanks(epoch=1, verbose=1)
    >>> history = model.fit(x, x, epochs=2, verbose=0, callbacks=[freeze])
    epoch 2: ranks frozen at low_rank_dense 2
    """

    patience: int | None
    epoch: int | None
    verbose: int

    def __init__(
        self, patience: int | None = None, epoch: int | None = None, verbose: int = 0
    ) -> None:
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

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._ranks, self._stable_epochs = self.model.ranks, 0
        self._frozen, self._last = False, -1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.epoch is not None and epoch >= self.epoch:
            self._freeze(epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if not self._frozen and self.epoch is not None and self._last < self.epoch:
            warn_user(
                f"`FreezeRanks` did not freeze the ranks: it waits for epoch={self.epoch}, but "
                f"training ended with epoch {self._last}. The first epoch is 0."
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._last = epoch
        ranks = self.model.ranks
        self._stable_epochs = self._stable_epochs + 1 if ranks == self._ranks else 0
        self._ranks = ranks
        if self.patience is not None and self._stable_epochs >= self.patience:
            self._freeze(epoch)

    def _freeze(self, epoch: int) -> None:
        if self._frozen:
            return
        self._frozen = True
        self.model.freeze_ranks()
        if self.verbose:
            line = ", ".join(f"{path} {rank}" for path, rank in self.model.ranks.items())
            print(f"epoch {epoch + 1}: ranks frozen at {line}")
