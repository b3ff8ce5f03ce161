"""Random numbers for the check of an export, where no data are given."""

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.export import signature

# Tried in this order where an extent is free: five poolings in a row need more than a few pixels.
EXTENTS = (8, 64)


class RandomInputs:
    """Draws arguments that a model can be called with.

    Args:
        served: `Served`. It is called here, to find the extents that it takes.
    """

    name = "random input"
    remedy = "Pass `example_inputs=`, a few inputs as the model takes them."

    def __init__(self, served):
        self._served = served
        self._random = np.random.default_rng(0)
        self._extent = EXTENTS[0]
        if signature.is_free(served.signature):
            self._extent = next(filter(self._bears, EXTENTS), EXTENTS[0])

    def arguments(self, batch):
        """The arguments of one batch, of the size of the signature where that is fixed."""
        fixed = signature.with_batch_size(self._served.signature, self._served.batch_size or batch)
        fixed = signature.with_extents(fixed, self._extent)
        return keras.tree.map_structure(self._draw, fixed)

    def _bears(self, extent):
        self._extent = extent
        try:
            self._served(*self.arguments(1))
        except Exception:  # of the model's code: the check, which calls it again, explains it
            return False
        return True

    def _draw(self, spec):
        if spec.dtype.is_floating:
            return tf.constant(self._random.standard_normal(spec.shape), spec.dtype)
        if spec.dtype == tf.string:
            return tf.fill(spec.shape, "")
        return tf.constant(self._random.integers(0, 2, spec.shape), spec.dtype)
