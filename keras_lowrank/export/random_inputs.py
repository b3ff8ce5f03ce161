"""Random inputs for the check of an export without data."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.export import signature
from keras_lowrank.export.served import Served

# Tried in this order for open extents: five poolings in a row need more than 8 pixels.
EXTENTS = (8, 64)


class RandomInputs:
    """Draws arguments that a model can be called with.

    Args:
        served: `Served`. With open extents it is called, to find extents that it accepts.

    Attributes:
        name: str, a description of the inputs, for errors.
        remedy: str, what to do if the model fails on them.
    """

    name: str = "random input"
    remedy: str = "Pass `example_inputs=`, a few inputs as the model takes them."

    def __init__(self, served: Served) -> None:
        self._served = served
        self._random = np.random.default_rng(0)
        self._extent = EXTENTS[0]
        if signature.is_open(served.signature):
            self._extent = next(filter(self._accepts, EXTENTS), EXTENTS[0])

    def arguments(self, batch: int) -> Any:
        """Returns the arguments of one batch.

        Args:
            batch: int, the batch size if the signature does not fix one.
        """
        fixed = signature.with_batch_size(self._served.signature, self._served.batch_size or batch)
        fixed = signature.with_extents(fixed, self._extent)
        return keras.tree.map_structure(self._draw, fixed)

    def _accepts(self, extent: int) -> bool:
        self._extent = extent
        try:
            self._served(*self.arguments(1))
        except Exception:  # from the model's code; the check calls it again and explains it
            return False
        return True

    def _draw(self, spec: tf.TensorSpec) -> tf.Tensor:
        if spec.dtype.is_floating:
            return tf.constant(self._random.standard_normal(spec.shape), spec.dtype)
        if spec.dtype == tf.string:
            return tf.fill(spec.shape, "")
        return tf.constant(self._random.integers(0, 2, spec.shape), spec.dtype)
