"""The second moments of what layers put out, streamed over the batches of a data set."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.kernels.products import rows

_BATCH = 32


class OutputMoment(ProductKernel):
    """A whole kernel W in the place of factors, that adds up `E[y y^T]` of its outputs `y = x W`.

    Args:
        kernel: float tensor W, shape `(n, m)`.
    """

    def __init__(self, kernel):
        super().__init__(kernel)
        self._total = np.zeros((kernel.shape[1],) * 2)
        self._count = 0

    def apply(self, maps, inputs, dtype, transposed=False):
        outputs = super().apply(maps, inputs, dtype, transposed)
        if transposed:  # what is approximated is what the rows of a table are looked up for
            return outputs
        y = tf.cast(rows(outputs), tf.float64)
        self._total += tf.matmul(y, y, transpose_a=True).numpy()
        self._count += y.shape[0]
        return outputs

    @property
    def mean(self):
        """float64 array of shape `(m, m)`, or None where the layer was not reached."""
        return self._total / self._count if self._count else None


def stream(model, moments, data):
    """Runs `model` over `data` once, for inference, with `moments` in the place of factors.

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


def _batches(data):
    """The inputs in every batch; a data set may yield targets and sample weights with them."""
    if isinstance(data, keras.utils.PyDataset):
        batches = map(data.__getitem__, range(len(data)))
    elif isinstance(data, (tf.data.Dataset, Iterator)):
        batches = data
    else:
        arrays = tuple(data) if isinstance(data, list) else data
        yield from tf.data.Dataset.from_tensor_slices(arrays).batch(_BATCH)
        return
    for batch in batches:
        yield keras.utils.unpack_x_y_sample_weight(batch)[0]
