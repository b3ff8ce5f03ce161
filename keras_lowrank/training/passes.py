"""Passes over the network, forward and backward: the source of gradients."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.manifold.factors import Factors, RankVariable
from keras_lowrank.manifold.row_sparse import Block
from keras_lowrank.training.replicas import Replicas

NO_SECOND_PASS = (
    "`adapt_every=1` of 'rank_adaptive' and 'fixed_rank' takes a second pass, at bases that are "
    "not variables. A layer whose outputs are recomputed (`tf.recompute_grad`, `keras.remat`, "
    "`keras.RematScope`), or that is in its own traced function, has gradients for variables only. "
    "Use a larger `adapt_every`, or integrator='parallel'."
)


class Passes:
    """Passes of a model over one batch; all gradients include the loss scale.

    They are those of this replica's share of the loss.

    Args:
        model: compiled `LowRankModel`.
        batch: `(x, y, sample_weight)`.
        others: list of the trainable variables that are not factors.
        replicas: `Replicas`.

    Attributes:
        batch: `(x, y, sample_weight)`.
        y_pred: outputs of the last pass.
        loss: scalar tensor, this replica's share of the loss.
        other_gradients: list of the gradients of `others`, or None.
    """

    y_pred: Any
    loss: tf.Tensor
    other_gradients: list[Block | None]

    def __init__(
        self, model: keras.Model, batch: tuple, others: list[keras.Variable], replicas: Replicas
    ) -> None:
        self._model, self._others, self._replicas = model, others, replicas
        self.batch = batch

    def gradients(self, kernels: dict[Factors, ProductKernel], sources: Any) -> Any:
        """Makes one pass with `kernels` as overrides, and returns the gradients of `sources`."""
        model, optimizer = self._model, self._model.optimizer
        x, y, sample_weight = self.batch
        with override_kernels(kernels), tf.GradientTape() as tape:
            tape.watch([kernel.core for kernel in kernels.values()])
            self.y_pred = keras_internals.call_in_training(model, x)
            loss = keras_internals.compute_loss(model, x, y, self.y_pred, sample_weight)
            share = self._replicas.share(x)
            own = loss if share is None else tf.cast(share, loss.dtype) * loss
            scaled = optimizer.scale_loss(own)
        with override_kernels(kernels):  # for layers that are recomputed
            gradients, self.other_gradients = tape.gradient(scaled, (sources, self._others))
        self.loss = own
        if not kernels:  # a second pass is no second example
            keras_internals.track_loss(model, loss, x)
        return gradients

    def changing(self) -> list[keras.Variable]:
        """All variables that a pass may change: statistics, states, seeds of dropout."""
        model, seed = self._model, keras_internals.global_seed()
        changing = [v for v in model.non_trainable_variables if not isinstance(v, RankVariable)]
        return changing + keras_internals.states(model) + ([] if seed is None else [seed])


class GivenGradients:
    """Gradients from a custom loop, in place of `Passes`; their loss is not known.

    Other changes of that pass, such as statistics, stay even if the step is discarded.

    Args:
        gradients: dict from the id of a variable to its gradient, or None.
        others: as in `Passes`.
    """

    def __init__(self, gradients: dict[int, Any], others: list[keras.Variable]) -> None:
        self._gradients = gradients
        self.loss = tf.zeros([])
        self.other_gradients = [gradients.get(id(variable)) for variable in others]

    def gradients(self, kernels: dict[Factors, ProductKernel], sources: Any) -> Any:
        return tf.nest.map_structure(lambda variable: self._gradients.get(id(variable)), sources)

    def changing(self) -> list[keras.Variable]:
        return []


class AtNewBases(ProductKernel):
    """A matrix of a second pass, in bases that are not variables."""

    def apply(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        if not keras_internals.is_recorded():
            raise ValueError(NO_SECOND_PASS)
        return super().apply(*args, **kwargs)
