"""What conversions of a model would leave of it, layer by layer, before any is made."""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
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
        factorization: str, as in `from_keras`.
        track: callable, what the kernels are gone through by: a progress bar around a sequence.

    Attributes:
        kernels: dict from the path of each kernel that converts to its `Kernel`.
        forms: dict from these paths to `Form`.
        values: dict from these paths to the singular values of each side, float64 and descending.
        others: `Size` of all else; of its multiply-adds none is counted.

    Raises:
        ValueError: as `from_keras` raises it.
    """

    def __init__(self, model, factorization="matrix", track=iter):
        self.kernels = convertible(model, factorization)
        self.forms = {path: one.form for path, one in self.kernels.items()}
        kernels = track(list(self.kernels.items()))
        self.values = {path: self.forms[path].values(one.matrix()) for path, one in kernels}
        inside = sum(form.full for form in self.forms.values())
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
            self.kernels, self.forms, self.values, self.others.weights, only_smaller=True
        )

    def size(self, path, rank):
        """Returns the `Size` of a kernel at a rank; None is the whole kernel."""
        form, uses = self.forms[path], self._uses[path]
        if rank is None:
            return Size(form.full, uses.outputs * form.full, _BYTES * form.full)
        weights, behind = form.weights(rank), form.weights_behind(rank)
        multiply_adds = uses.inputs * (weights - behind) + (uses.outputs + uses.lookups) * behind
        return Size(weights, multiply_adds, _BYTES * weights)

    def total(self, ranks):
        """Returns the `Size` of the whole model at `{path: rank}`."""
        sizes = [self.others, *(self.size(path, rank) for path, rank in ranks.items())]
        return Size(*map(sum, zip(*sizes)))


class _Uses(ProductKernel):
    """A kernel of rank 1 that counts how often it is multiplied with, and looked up in.

    Attributes:
        inputs: int, products with U.
        outputs: int, products with what is behind U, or with the whole kernel.
        lookups: int, rows of U that are looked up.
    """

    inputs = outputs = lookups = 0

    def apply(self, maps, inputs, dtype, transposed=False):
        outputs = super().apply(maps, inputs, dtype, transposed)
        if not inputs.dtype.is_floating:
            self.lookups += math.prod(inputs.shape)
            return outputs
        self.outputs += rows(outputs).shape[0]
        if not transposed:
            inputs = maps.project(inputs, tf.cast(self.matrices[0], dtype))
        self.inputs += rows(inputs).shape[0]
        return outputs

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
