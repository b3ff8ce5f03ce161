"""The gradients of a pass over the network, as values: of factors, of cores, of all else."""

import warnings
from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.training.passes import NO_SECOND_PASS, AtNewBases
from keras_lowrank.training.snapshot import Snapshot


class FactorGradients(NamedTuple):
    """The gradients of the three factors of one matrix, as a tape has them.

    Attributes:
        U: tensor, shape `(n, r)`, or its rows, as in `row_sparse`.
        S: tensor, shape `(r, r)`.
        V: tensor, shape `(m, r)`.
    """

    U: tf.Tensor
    S: tf.Tensor
    V: tf.Tensor


class Gradients(NamedTuple):
    """What a pass has found, summed over all replicas.

    Attributes:
        layers: dict from path to the `LowRankLayer` that the loss depends on.
        kernels: list of `FactorGradients`, one for each of `layers`; of a second pass, of the
            gradients of the cores.
        others: list of the gradients of all other variables, None where there is none.
        loss: scalar tensor.
        places: list of `(place, tensors)`, as `FaultRecord.record` takes them.
    """

    layers: dict
    kernels: list
    others: list
    loss: tf.Tensor
    places: list


def first_pass(source, layers, others, replicas, by_rows):
    """The `Gradients` of U, S and V at the present matrices.

    A layer that the loss does not depend on is not among their layers. As Keras has it, a variable
    without a gradient stays what it is, undecayed, and is worth a warning; where none has one, it
    is an error.

    Args:
        source: `Passes` or `GivenGradients`.
        layers: dict from path to `LowRankLayer`.
        others: list of all other variables.
        replicas: `Replicas`.
        by_rows: dict from path to bool, whether the gradient of U may be given by its rows.
    """
    variables = [FactorGradients(*layer.factors.variables) for layer in layers.values()]
    found = dict(zip(layers, source.gradients({}, variables)))
    reached = {
        path: layer
        for path, layer in layers.items()
        if any(gradient is not None for gradient in found[path])
    }
    lost = [path for path in layers if path not in reached]
    if not reached and all(gradient is None for gradient in source.other_gradients):
        raise ValueError(
            "The loss must depend on a variable of the model. No gradients provided for any "
            f"variable. Received: a loss that depends on none of the layers {lost}"
        )
    if lost:
        warnings.warn(
            f"Gradients do not exist for the low-rank layers {lost}: the loss does not depend on "
            "their outputs, or a `tf.custom_gradient` around them returns none. This step leaves "
            "them as they are.",
            stacklevel=2,
        )
    whole = [_whole(found[path], layer.factors, by_rows[path]) for path, layer in reached.items()]
    return _summed(source, reached, whole, others, replicas)


class SecondPasses:
    """Passes over the same batch at new matrices, for an integrator that asks for them.

    Each draws the same dropout mask, and updates statistics in place of the one before: it is the
    last whose gradients move the cores and the other variables.

    Args:
        first: `Gradients` of the first pass.
        source: `Passes`.
        others: list of all other variables.
        replicas: `Replicas`.
        statistics: `Snapshot` of all that a pass changes, from before the first.
        metrics: list of the variables of metrics, which count a batch once.
        decay_factors: list of scalar tensors or None, what weight decay leaves of the matrices.

    Attributes:
        taken: list of `Gradients`, of all passes of the step: the first, and those taken here.
    """

    def __init__(self, first, source, others, replicas, statistics, metrics, decay_factors):
        self._source, self._others, self._replicas = source, others, replicas
        self._statistics, self._metrics, self._decay_factors = statistics, metrics, decay_factors
        self.taken = [first]

    def core_gradients(self, factors):
        """The gradients of the cores S at matrices given as `(U, S, V)`, a list of tensors."""
        layers = self.taken[0].layers
        metrics = Snapshot(self._metrics)
        self._statistics.restore()
        kernels, cores = {}, []
        matrices = zip(layers.values(), self._replicas.first(factors), self._decay_factors)
        for layer, (u, s, v), decay in matrices:
            u.set_shape([layer.factors.n, None])  # a trace for all sizes does not know them
            v.set_shape([layer.factors.m, None])
            # Keras takes the gradient first, and lets weights decay then.
            cores.append(tf.identity(s if decay is None else s / decay))
            kernels[layer.factors] = AtNewBases(u, cores[-1], v, core=cores[-1])
        found = self._source.gradients(kernels, cores)
        metrics.restore()
        lost = [path for path, gradient in zip(layers, found) if gradient is None]
        if lost:
            raise ValueError(f"{NO_SECOND_PASS} Received: the layers {lost}")
        when = " at the new bases"
        new = _summed(self._source, layers, found, self._others, self._replicas, when)
        self.taken.append(new)
        return new.kernels


def scaled(gradient, factor):
    """The gradient times a scalar; either may be None."""
    if gradient is None or factor is None:
        return gradient
    return row_sparse.scaled(gradient, tf.cast(factor, gradient.dtype))


def product(one, other):
    """The product of two scalars, None standing for 1."""
    if one is None or other is None:
        return one if other is None else other
    if tf.is_tensor(one) and tf.is_tensor(other):  # a loss scale is float32, whatever the layers
        one = tf.cast(one, other.dtype)
    return one * other


def _summed(source, layers, kernels, others, replicas, when=""):
    """The `Gradients` of the last pass of `source`, from those of the present replica."""
    kernels, other_gradients, loss = replicas.sum((kernels, source.other_gradients, source.loss))
    places = [(f"the loss{when}", [loss])]
    places += [
        (f"the gradient of {variable.path!r}{when}", [gradient])
        for variable, gradient in zip(others, other_gradients)
    ]
    places += [
        (f"the gradient{when} of layer {path!r}", gradient)
        for path, gradient in zip(layers, kernels)
    ]
    return Gradients(layers, kernels, other_gradients, loss, places)


def _whole(gradients, factors, by_rows):
    """`FactorGradients` without None; that of U by its rows where it is wanted."""
    u, s, v = (
        tf.zeros_like(variable.value) if gradient is None else gradient
        for gradient, variable in zip(gradients, factors.variables)
    )
    u = row_sparse.collected(u, factors.n) if by_rows else row_sparse.dense(u, factors.n)
    return FactorGradients(u, row_sparse.dense(s, None), row_sparse.dense(v, factors.m))
