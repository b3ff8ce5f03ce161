"""Layers with several kernels: rank arguments are for all kernels, or a dict by kernel."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras

from keras_lowrank.layers.across_ranks import AcrossRanks
from keras_lowrank.layers.arguments import TruncationLike
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.ranks.truncation import get_truncation

# For all kernels, or by kernel.
Rank: TypeAlias = int | dict[str, int | None] | None
MinRank: TypeAlias = int | dict[str, int]
Truncations: TypeAlias = TruncationLike | dict[str, TruncationLike]


class SeveralKernels(AcrossRanks):
    """Base of layers with several kernels, each in a layer of its own.

    A subclass sets `rank_arguments` and implements `low_rank_kernels`.

    Attributes:
        rank_arguments: `RankArguments`.
    """

    rank_arguments: "RankArguments"

    def low_rank_kernels(self) -> Sequence[LowRankLayer]:
        """Returns the low-rank layers that hold the kernels, once built."""
        # Abstract: each layer type holds them in other attributes.
        raise NotImplementedError(f"{type(self).__name__} must implement `low_rank_kernels`.")

    @property
    def rank(self) -> Any:
        """The present ranks, `{name of the kernel: int}`; before the layer is built, as given."""
        if not self.built:
            return self.rank_arguments.given["rank"]
        return {layer.name: layer.rank for layer in self.low_rank_kernels()}

    @property
    def min_rank(self) -> MinRank:
        """As given, for all kernels or by kernel."""
        return self.rank_arguments.given["min_rank"]

    @property
    def max_rank(self) -> Rank:
        """As given, for all kernels or by kernel."""
        return self.rank_arguments.given["max_rank"]

    @property
    def truncation(self) -> Any:
        """`Truncation` or None, for all kernels or by kernel."""
        return self.rank_arguments.given["truncation"]

    def get_config(self) -> dict[str, Any]:
        given = dict(self.rank_arguments.given)
        given["truncation"] = keras.saving.serialize_keras_object(given["truncation"])
        return {**super().get_config(), **given}


class RankArguments:
    """`rank`, `min_rank`, `max_rank` and `truncation` of a layer with several kernels.

    Each is one value for all kernels, or a dict by kernel. A kernel that a dict of ranks leaves out
    stays plain. A kernel that another dict leaves out has the default of `LowRankLayer`.

    Args:
        kernels: list of str, the names of the kernels in Keras.
        rank: int, None, or dict of such by kernel.
        min_rank: int, or dict by kernel.
        max_rank: int, None, or dict of such by kernel.
        truncation: as in `LowRankLayer`, or dict of such by kernel.

    Attributes:
        given: dict from the name of an argument to its value.
        one_rank: bool, whether one rank is for all kernels.

    Raises:
        ValueError: an unknown kernel, or an argument for a kernel without a rank.
    """

    def __init__(
        self,
        kernels: Sequence[str],
        rank: Rank,
        min_rank: MinRank,
        max_rank: Rank,
        truncation: Truncations,
    ) -> None:
        self.given: dict[str, Any] = {"rank": rank, "min_rank": min_rank, "max_rank": max_rank}
        self.given["truncation"] = _truncations(truncation)
        self.one_rank = not isinstance(rank, dict)
        self._by_kernel: dict[str, dict[str, Any]] = {}
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
                    f"`{name}` must be for kernels that have a rank: the others stay plain. "
                    f"Received: rank={rank!r}, {name}={value!r}"
                )

    def of(self, kernel: str) -> dict[str, Any]:
        """Returns the arguments of the `LowRankLayer` of a kernel; empty for a plain kernel."""
        if kernel not in self._by_kernel["rank"]:
            return {}
        return {name: by[kernel] for name, by in self._by_kernel.items() if kernel in by}


def _truncations(value: Any) -> Any:
    """Returns an argument `truncation` with rules in place of numbers and configs."""
    if value is None:
        return None
    if isinstance(value, dict) and "class_name" not in value:  # that is a config
        return {kernel: _truncations(one) for kernel, one in value.items()}
    return get_truncation(value)
