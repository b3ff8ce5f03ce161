"""What conversions of a model would leave of it, layer by layer, before any is made."""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.convert.decomposition import singular_values
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.convert.selection import convertible
from keras_lowrank.convert.twins import rank_one_copy
from keras_lowrank.export.random_inputs import RandomInputs
from keras_lowrank.export.served import Served
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.kernels.products import rows
from keras_lowrank.reporting.compression import count_others

_BYTES = 4  # of a number in float32


class Size(NamedTuple):
    """What a kernel, or all of a model, takes.

    Attributes:
        weights: int, counted as `Compression.factored` does.
        multiply_adds: int, of the products with the kernels, in one inference at batch 1.
        bytes: int, of the numbers in float32.
    """

    weights: int
    multiply_adds: int
    bytes: int


class Forecast:
    """What `from_keras` would make of a model.

    Args:
        model: built `keras.Model` that `from_keras` takes.
        track: callable, what the kernels are gone through by: a progress bar around a sequence.

    Attributes:
        kernels: dict from the path of each kernel that converts to its `Kernel`.
        shapes: dict from these paths to `(n, m)`.
        values: dict from these paths to the singular values, float64 and descending.
        others: `Size` of all else; of its multiply-adds none is counted.

    Raises:
        ValueError: as `from_keras` raises it.
    """

    def __init__(self, model, track=iter):
        self.kernels = convertible(model)
        self.shapes = {path: one.matricization.shape for path, one in self.kernels.items()}
        matrices = track(list(self.kernels.items()))
        self.values = {path: singular_values(kernel.matrix()) for path, kernel in matrices}
        inside = sum(map(math.prod, self.shapes.values()))
        self.others = Size(
            count_others(model, [])[1] - inside, 0, _BYTES * (model.count_params() - inside)
        )
        self._uses = _uses(model, self.kernels)

    @property
    def least(self):
        """The least budget that there are ranks for."""
        return self.total(self.ranks(rank=1)).weights

    def ranks(self, **rule):
        """Returns `{path: rank}` by a rule of `from_keras`; None where a kernel stays whole."""
        return Rule(**rule).ranks(
            self.kernels, self.shapes, self.values, self.others.weights, only_smaller=True
        )

    def size(self, path, rank):
        """Returns the `Size` of a kernel at a rank; None is the whole kernel."""
        n, m = self.shapes[path]
        weights = n * m if rank is None else rank * (n + m)
        expanded = 0 if rank is None else rank * m  # of the row of U that is looked up
        uses = self._uses[path]
        multiply_adds = uses.products * weights + uses.lookups * expanded
        return Size(weights, multiply_adds, _BYTES * weights)

    def total(self, ranks):
        """Returns the `Size` of the whole model at `{path: rank}`."""
        sizes = [self.others, *(self.size(path, rank) for path, rank in ranks.items())]
        return Size(*map(sum, zip(*sizes)))


class _Uses(ProductKernel):
    """A kernel of rank 1 that counts how often it is multiplied with, and looked up in."""

    products = lookups = 0

    def apply(self, maps, inputs, dtype, transposed=False):
        if transposed:
            self.products += rows(inputs).shape[0]
        elif inputs.dtype.is_floating:
            coordinates = maps.project(inputs, tf.cast(self.matrices[0], dtype))
            self.products += rows(coordinates).shape[0]
        else:
            self.lookups += math.prod(inputs.shape)
        return super().apply(maps, inputs, dtype, transposed)

    def folded(self, dtype):
        return self


def _uses(model, kernels):
    """`{path: _Uses}` of one inference at batch 1."""
    copy, made = rank_one_copy(model, kernels)
    for layer in keras_internals.all_layers(copy):
        if isinstance(layer, keras.layers.RNN):
            layer.unroll = True  # in a loop, Keras takes the first step twice
    uses = {path: _Uses(*kernel.factors.read()) for path, kernel in made.items()}
    arguments = RandomInputs(Served(model)).arguments(1)
    with override_kernels({made[path].factors: one for path, one in uses.items()}):
        copy(*arguments, training=False)
    return uses
