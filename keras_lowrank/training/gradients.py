"""The gradients of a pass over the network: of factors, of cores, and of all other variables."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_override import ProductKernel
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.factors import Factors
from keras_lowrank.training.passes import NO_SECOND_PASS, AtNewBases, GivenGradients, Passes
from keras_lowrank.training.replicas import Replicas
from keras_lowrank.training.snapshot import Snapshot


class FactorGradients(NamedTuple):
    """The ordinary gradients of the three factors of one matrix.

    Attributes:
        U: tensor, shape `(n, r)`, or its nonzero rows (`row_sparse`).
        S: tensor, shape `(r, r)`.
        V: tensor, shape `(m, r)`.
    """

    U: row_sparse.Block
    S: tf.Tensor
    V: tf.Tensor


class Gradients(NamedTuple):
    """The gradients of one pass, summed over all replicas.

    Attributes:
        layers: dict from path to the `LowRankLayer`s that the loss depends on.
        kernels: list of `FactorGradients`, one for each of `layers`; for a second pass, of the
            gradients of the cores.
        others: list of the gradients of all other variables, None where there is none.
        loss: scalar tensor.
        places: list of `(place, tensors)`, as in `FaultRecord.record`.
    """

    layers: dict[str, LowRankLayer]
    kernels: list[Any]
    others: list[row_sparse.Block | None]
    loss: tf.Tensor
    places: list[tuple[str, Any]]


def first_pass(
    source: Passes | GivenGradients,
    layers: dict[str, LowRankLayer],
    others: list[keras.Variable],
    replicas: Replicas,
    by_rows: dict[str, bool],
) -> Gradients:
    """The `Gradients` of U, S and V at the present matrices.

    It leaves out layers that the loss does not depend on. As in Keras, a variable without a
    gradient stays as it is, undecayed, with a warning; a loss without any gradient is an error.

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
    """Passes over the same batch at new matrices, on request of the integrator.

    Each draws the same dropout mask, and its statistics replace those of the pass before. The
    gradients of the last pass move the cores and the other variables.

    Args:
        first: `Gradients` of the first pass.
        source: `Passes` or `GivenGradients`.
        others: list of all other variables.
        replicas: `Replicas`.
        statistics: `Snapshot` of all that a pass changes, from before the first.
        metrics: list of the variables of metrics, which count a batch once.
        decay_factors: list of scalar tensors or None, the factors of weight decay.

    Attributes:
        results: list of `Gradients`, of the first pass and of all passes here.
    """

    def __init__(
        self,
        first: Gradients,
        source: Passes | GivenGradients,
        others: list[keras.Variable],
        replicas: Replicas,
        statistics: Snapshot,
        metrics: list[keras.Variable],
        decay_factors: list[tf.Tensor | None],
    ) -> None:
        self._source, self._others, self._replicas = source, others, replicas
        self._statistics, self._metrics, self._decay_factors = statistics, metrics, decay_factors
        self.results = [first]

    def core_gradients(self, factors: Sequence[tuple]) -> list[tf.Tensor]:
        """The gradients of the cores S at new matrices, a list of `(U, S, V)`."""
        layers = self.results[0].layers
        metrics = Snapshot(self._metrics)
        self._statistics.restore()
        kernels: dict[Factors, ProductKernel] = {}
        cores = []
        matrices = zip(layers.values(), self._replicas.first(factors), self._decay_factors)
        for layer, (u, s, v), decay in matrices:
            u.set_shape([layer.factors.n, None])  # `trace_once` makes shapes unknown
            v.set_shape([layer.factors.m, None])
            # As in Keras, the gradient is that of weights before their decay.
            cores.append(tf.identity(s if decay is None else s / decay))
            kernels[layer.factors] = AtNewBases(u, cores[-1], v, core=cores[-1])
        found = self._source.gradients(kernels, cores)
        metrics.restore()
        lost = [path for path, gradient in zip(layers, found) if gradient is None]
        if lost:
            raise ValueError(f"{NO_SECOND_PASS} Received: the layers {lost}")
        when = " at the new bases"
        new = _summed(self._source, layers, found, self._others, self._replicas, when)
        self.results.append(new)
        return new.kernels


def scaled(gradient: row_sparse.Block | None, factor: Any) -> row_sparse.Block | None:
    """The gradient times a scalar; either may be None."""
    if gradient is None or factor is None:
        return gradient
    return row_sparse.scaled(gradient, tf.cast(factor, gradient.dtype))


def product(one: Any, other: Any) -> Any:
    """The product of two scalars; None stands for 1."""
    if one is None or other is None:
        return one if other is None else other
    if tf.is_tensor(one) and tf.is_tensor(other):  # a loss scale is float32, whatever the layers
        one = tf.cast(one, other.dtype)
    return one * other


def _summed(source, layers, kernels, others, replicas, when=""):
    """The `Gradients` of the last pass of `source`, summed over the replicas."""
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
    """`FactorGradients` with zeros in place of None; `by_rows` allows U by its rows."""
    u, s, v = (
        tf.zeros_like(variable.value) if gradient is None else gradient
        for gradient, variable in zip(gradients, factors.variables)
    )
    u = row_sparse.collected(u, factors.n) if by_rows else row_sparse.dense(u, factors.n)
    return FactorGradients(u, row_sparse.dense(s, None), row_sparse.dense(v, factors.m))
