"""The second moments of the outputs of kernels, streamed over a data set."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.kernels.products import rows
from keras_lowrank.manifold.factors import Factors

_BATCH = 32


class OutputMoment(ProductKernel):
    """A whole kernel W in place of factors that averages `y y^T` over its outputs `y = x W`.

    Args:
        kernel: float tensor W, shape `(n, m)`.
    """

    def __init__(self, kernel: tf.Tensor) -> None:
        super().__init__(kernel)
        self._total = np.zeros((kernel.shape[1],) * 2)
        self._count = 0

    def apply(
        self, maps: KernelMaps, inputs: tf.Tensor, dtype: str, transposed: bool = False
    ) -> tf.Tensor:
        outputs = super().apply(maps, inputs, dtype, transposed)
        if transposed:  # a table is approximated for its lookups alone
            return outputs
        y = tf.cast(rows(outputs), tf.float64)
        self._total += tf.matmul(y, y, transpose_a=True).numpy()
        self._count += y.shape[0]
        return outputs

    @property
    def mean(self) -> np.ndarray | None:
        """`E[y y^T]`, a float64 array of shape `(m, m)`; None where no data reached the layer."""
        return self._total / self._count if self._count else None


def stream(model: keras.Model, moments: dict[Factors, OutputMoment], data: Any) -> None:
    """Runs `model` over `data` once, in inference, with `moments` in place of factors.

    Args:
        model: `keras.Model`.
        moments: dict from `Factors` to `OutputMoment`.
        data: as `from_keras` takes it.

    Raises:
        ValueError: no batch in `data`.
    """
    empty = True
    with override_kernels(moments):
        for inputs in _batches(data):
            model(inputs, training=False)
            empty = False
    if empty:
        raise ValueError("`data` must hold at least one batch of inputs. Received: none")


def _batches(data: Any) -> Iterator[Any]:
    """Yields the inputs of every batch, without targets and sample weights."""
    if isinstance(data, keras.utils.PyDataset):
        batches: Iterable[Any] = map(data.__getitem__, range(len(data)))
    elif isinstance(data, (tf.data.Dataset, Iterator)):
        batches = data
    else:
        arrays = tuple(data) if isinstance(data, list) else data
        yield from tf.data.Dataset.from_tensor_slices(arrays).batch(_BATCH)
        return
    for batch in batches:
        yield keras.utils.unpack_x_y_sample_weight(batch)[0]
