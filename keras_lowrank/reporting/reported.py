"""What a `LowRankModel` tells of its ranks and weights."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.reporting.compression import Compression, count_weights
from keras_lowrank.reporting.summary import print_ranks

if TYPE_CHECKING:  # a base that stands before `keras.Model`, and extends its methods
    from keras import Model as _Base
else:
    _Base = object


class Reported(_Base):
    """Methods of a `keras.Model` that tell its ranks and weights."""

    @property
    def ranks(self) -> dict[str, int | None]:
        """The present ranks, `{path of the layer: int}`."""
        return {path: layer.rank for path, layer in find_built_layers(self).items()}

    def compression(self) -> Compression:
        """Returns the numbers of weights, now and at full rank."""
        return count_weights(self)

    def summary(
        self,
        line_length: int | None = None,
        positions: Sequence[float] | None = None,
        print_fn: Callable[[str], object] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Prints `keras.Model.summary`, then a table of the ranks and the weights that they save.

        Args:
            line_length: int or None, as in Keras, for both tables.
            positions: list of float or None, as in Keras.
            print_fn: callable or None, as in Keras, called once for each table.
            *args: all other arguments of `keras.Model.summary`, in its order.
            **kwargs: the same, by name.
        """
        super().summary(line_length, positions, print_fn, *args, **kwargs)
        print_ranks(self, line_length, print_fn)
