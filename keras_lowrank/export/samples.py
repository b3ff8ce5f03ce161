"""A user's inputs, for the ranges of activations and for the checks."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.export.inputs import in_order
from keras_lowrank.export.served import Served


class Samples:
    """Batches of typical inputs, checked against the signature of the export.

    Args:
        data: array or structure of arrays, as `keras.Model.predict` takes them, including
            dictionaries by the names of inputs; or a `tf.data.Dataset` of batches of them, with or
            without targets; or a callable that returns an iterable of batches, as
            `tf.lite.TFLiteConverter` takes it.
        served: `Served`.
        argument: str, the name of the user's argument, for errors.

    Attributes:
        name: str, the name of the argument in backticks.
        remedy: str, what to do if the model fails on them.
        batches: list of flat lists of arrays.

    Raises:
        ValueError: there are no samples, or the number or shapes of arrays are not the inputs'.
    """

    name: str
    remedy: str = "Check these inputs and the model's weights."
    batches: list[list[np.ndarray]]

    def __init__(self, data: Any, served: Served, argument: str) -> None:
        self.name = f"`{argument}`"
        self._served = served
        self._specs = keras.tree.flatten(served.signature)
        batches: Iterable
        if isinstance(data, tf.data.Dataset):
            batches = (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in data)
        else:
            batches = data() if callable(data) else [data]
        self._argument = argument
        self.batches = [
            self._checked(in_order(batch, served.signature, argument)) for batch in batches
        ]
        if not self.batches or not len(self):
            raise ValueError(f"`{argument}` must hold at least one sample. Received: none")

    def __len__(self) -> int:
        return sum(len(batch[0]) for batch in self.batches)

    def one_by_one(self, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yields every sample as a dict from the names of inputs to arrays of batch size 1."""
        for batch in self.batches:
            for row in range(len(batch[0])):
                yield {name: array[row : row + 1] for name, array in zip(names, batch)}

    def arguments(self, batch: int) -> Any:
        """Returns the arguments of one batch, from the first batch of the data.

        Args:
            batch: int, the batch size if the signature does not fix one.

        Raises:
            ValueError: there are fewer samples than the fixed batch size.
        """
        count = self._served.batch_size or batch
        arrays = [array[:count] for array in self.batches[0]]
        if self._served.batch_size and len(arrays[0]) < count:
            raise ValueError(
                f"{self.name} must hold at least one batch of the fixed size {count}. "
                f"Received: {len(arrays[0])} samples"
            )
        return self._served.arguments(arrays)

    def check_one_by_one(self) -> None:
        """Raises ValueError if the batch size is fixed at more than one sample."""
        if self._served.batch_size not in (None, 1):
            raise ValueError(
                f"{self.name} needs an open batch size, or 1. "
                f"Received: inputs of batch size {self._served.batch_size}"
            )

    def in_batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Yields flat lists of arrays with at most `size` samples."""
        for batch in self.batches:
            for start in range(0, len(batch[0]), size):
                yield [array[start : start + size] for array in batch]

    def _checked(self, arrays: list) -> list[np.ndarray]:
        arrays = [np.asarray(array) for array in arrays]
        if len(arrays) == len(self._specs):
            arrays = list(map(_of_rank, arrays, self._specs))
        wanted = [("samples", *spec.shape[1:]) for spec in self._specs]
        shapes = [array.shape for array in arrays]
        if len(shapes) != len(wanted) or not all(map(_fits, shapes, wanted)):
            raise ValueError(
                f"`{self._argument}` must hold arrays of the shapes of the inputs, "
                f"{_listed(wanted)}. Received: {_listed(shapes)}"
            )
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(
                f"`{self._argument}` must hold equally many samples for each input. "
                f"Received: {_listed(shapes)}"
            )
        return [
            array
            if spec.dtype == "string"
            else array.astype(tf.as_dtype(spec.dtype).as_numpy_dtype)
            for array, spec in zip(arrays, self._specs)
        ]


def _of_rank(array: np.ndarray, spec: tf.TensorSpec) -> np.ndarray:
    """The array with a last axis of length 1 added or removed, as the input needs."""
    more = len(spec.shape) - array.ndim
    if more == 1 and spec.shape[-1] == 1:
        return array[..., None]
    return array[..., 0] if more == -1 and array.shape[-1] == 1 else array


def _fits(shape: Sequence, wanted: Sequence) -> bool:
    return len(shape) == len(wanted) and all(
        extent is None or extent == length for length, extent in zip(shape[1:], wanted[1:])
    )


def _listed(shapes: Iterable) -> str:
    return ", ".join("({})".format(", ".join(map(str, shape))) for shape in shapes)
