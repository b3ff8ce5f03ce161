"""Callbacks that watch the ranks."""

import keras


class RankHistory(keras.callbacks.Callback):
    """Records the ranks of all low-rank layers at the end of every epoch.

    Args:
        verbose: int. 1 prints a line an epoch. Defaults to 0.

    Attributes:
        ranks: dict from the path of a layer to the list of its ranks, one an epoch.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(2, rank=2)(inputs))
    >>> model.compile("sgd", "mse")
    >>> watch = callbacks.RankHistory()
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=[watch])
    >>> len(watch.ranks["low_rank_dense"])
    1
    """

    def __init__(self, verbose=0):
        super().__init__()
        self.verbose = verbose
        self.ranks = {}

    def on_epoch_end(self, epoch, logs=None):
        ranks = self.model.ranks
        for path, rank in ranks.items():
            self.ranks.setdefault(path, []).append(rank)
        if self.verbose:
            line = ", ".join(f"{path} {rank}" for path, rank in ranks.items())
            print(f"ranks after epoch {epoch + 1}: {line}")
