"""Passes over the network, forward and backward: where the gradients of a step come from."""

import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.manifold.factors import RankVariable

NO_SECOND_PASS = (
    "`adapt_every=1` of 'rank_adaptive' and 'fixed_rank' takes a second pass, at bases that no "
    "variable holds, and a layer whose outputs are recomputed (`tf.recompute_grad`, "
    "`keras.remat`, `keras.RematScope`), or that is in a traced function of its own, is "
    "differentiated by variables alone. Use a larger `adapt_every`, or integrator='parallel'."
)


class Passes:
    """Passes of a model over one batch; all gradients are still scaled.

    They are those of the part that this replica has in the loss of the whole batch.

    Args:
        model: compiled `LowRankModel`.
        batch: `(x, y, sample_weight)`.
        others: list of the trainable variables that are no factors.
        replicas: `Replicas`.

    Attributes:
        batch: `(x, y, sample_weight)`.
        y_pred: outputs of the last pass.
        loss: scalar tensor, the part of this replica in the loss.
        other_gradients: list of the gradients of `others`, or None.
    """

    def __init__(self, model, batch, others, replicas):
        self._model, self._others, self._replicas = model, others, replicas
        self.batch = batch

    def gradients(self, kernels, sources):
        """One pass with `kernels` in the place of layers; the gradients of `sources`."""
        model, optimizer = self._model, self._model.optimizer
        x, y, sample_weight = self.batch
        with override_kernels(kernels), tf.GradientTape() as tape:
            tape.watch([kernel.core for kernel in kernels.values()])
            self.y_pred = keras_internals.call_in_training(model, x)
            loss = keras_internals.compute_loss(model, x, y, self.y_pred, sample_weight)
            share = self._replicas.share(x)
            own = loss if share is None else tf.cast(share, loss.dtype) * loss
            scaled = optimizer.scale_loss(own)
        with override_kernels(kernels):  # for what is recomputed
            gradients, self.other_gradients = tape.gradient(scaled, (sources, self._others))
        self.loss = own
        if not kernels:  # a second pass is no second example
            keras_internals.track_loss(model, loss, x)
        return gradients

    def changing(self):
        """All variables that a pass may change: statistics, states, seeds of dropout."""
        model, seed = self._model, keras_internals.global_seed()
        changing = [v for v in model.non_trainable_variables if not isinstance(v, RankVariable)]
        return changing + keras_internals.states(model) + ([] if seed is None else [seed])


class GivenGradients:
    """In the place of `Passes`: gradients that someone else has taken, of a loss not known here.

    What their pass has changed, such as statistics, stays, whether the step is kept or not.

    Args:
        gradients: dict from the id of a variable to its gradient, or None.
        others: as in `Passes`.
    """

    def __init__(self, gradients, others):
        self._gradients = gradients
        self.loss = tf.zeros([])
        self.other_gradients = [gradients.get(id(variable)) for variable in others]

    def gradients(self, kernels, sources):
        return tf.nest.map_structure(lambda variable: self._gradients.get(id(variable)), sources)

    def changing(self):
        return []


class AtNewBases(ProductKernel):
    """A matrix of a second pass, in bases that no variable holds."""

    def apply(self, *args, **kwargs):
        if not keras_internals.is_recorded():
            raise ValueError(NO_SECOND_PASS)
        return super().apply(*args, **kwargs)
