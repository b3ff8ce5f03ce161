"""Layers with several kernels: their arguments on ranks are one for all, or by kernel."""

import keras

from keras_lowrank.layers.low_rank_layer import AcrossRanks
from keras_lowrank.ranks.truncation import get_truncation


class SeveralKernels(AcrossRanks):
    """A base of layers with several kernels, each in a layer of its own.

    A subclass sets `rank_arguments`, a `RankArguments`, and has a method `low_rank_kernels`, which
    returns the `LowRankLayer`s of its kernels once it is built.
    """

    @property
    def rank(self):
        """The present ranks, `{name of the kernel: int}`; as given before the layer is built."""
        if not self.built:
            return self.rank_arguments.given["rank"]
        return {layer.name: layer.rank for layer in self.low_rank_kernels()}

    @property
    def min_rank(self):
        """As given, for all kernels or by kernel."""
        return self.rank_arguments.given["min_rank"]

    @property
    def max_rank(self):
        """As given, for all kernels or by kernel."""
        return self.rank_arguments.given["max_rank"]

    @property
    def truncation(self):
        """`Truncation`, None, or a dict of such by kernel."""
        return self.rank_arguments.given["truncation"]

    def get_config(self):
        given = dict(self.rank_arguments.given)
        given["truncation"] = keras.saving.serialize_keras_object(given["truncation"])
        return {**super().get_config(), **given}


class RankArguments:
    """`rank`, `min_rank`, `max_rank` and `truncation` of a layer with several kernels.

    Each is one value for all kernels, or a dict by kernel. A kernel that a dict of ranks leaves out
    is a plain one. What another dict leaves out has the default of `LowRankLayer`.

    Args:
        kernels: list of str, what Keras calls the kernels.
        rank, min_rank, max_rank, truncation: as in `LowRankLayer`, or dicts of such.

    Attributes:
        given: dict from the name of an argument to its value.
        one_rank: bool, whether one rank is for all kernels.

    Raises:
        ValueError: an unknown kernel, or an argument for one that has no rank.
    """

    def __init__(self, kernels, rank, min_rank, max_rank, truncation):
        self.given = {"rank": rank, "min_rank": min_rank, "max_rank": max_rank}
        self.given["truncation"] = _truncations(truncation)
        self.one_rank = not isinstance(rank, dict)
        self._by_kernel = {}
        for name, value in self.given.items():
            by_kernel = value if isinstance(value, dict) else dict.fromkeys(kernels, value)
            if not by_kernel or not set(by_kernel) <= set(kernels):
                raise ValueError(
                    f"`{name}` must be one value for all kernels, or a dict with some of the keys "
                    f"{kernels}. Received: {name}={value!r}"
                )
            self._by_kernel[name] = by_kernel
            plain = {key for key in by_kernel if by_kernel[key] is not None and not self.of(key)}
            if plain and by_kernel is value:
                raise ValueError(
                    f"`{name}` must be for kernels that have a rank: the others are plain ones. "
                    f"Received: rank={rank!r}, {name}={value!r}"
                )

    def of(self, kernel):
        """The arguments of the `LowRankLayer` of a kernel, a dict; empty for a plain kernel."""
        if kernel not in self._by_kernel["rank"]:
            return {}
        return {name: by[kernel] for name, by in self._by_kernel.items() if kernel in by}


def _truncations(value):
    """An argument `truncation` with its numbers and configs as what they mean."""
    if value is None:
        return None
    if isinstance(value, dict) and "class_name" not in value:  # that is a config
        return {kernel: _truncations(one) for kernel, one in value.items()}
    return get_truncation(value)
