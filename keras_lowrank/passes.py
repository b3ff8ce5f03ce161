"""A forward and a backward pass of a model, with matrices put in the place of its layers' own."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.substitution import substitute
from keras_lowrank.tangent import TangentProbe


class Pass(NamedTuple):
    """What a pass finds. All gradients are those of the scaled loss of this replica.

    Attributes:
        y_pred: what the model puts out.
        loss: scalar tensor, the loss as `compute_loss` has it.
        own_loss: scalar tensor, this replica's part of the loss of the whole batch.
        of_sources: list of gradients by `sources`; None where there is none.
        of_others: list of gradients by the model's variables that are no factors.
        strays: list of gradients by U, S and V themselves, that layers have whose calls were
            recomputed. Zero, unless the loss depends on the variables: `on_variables` then.
    """

    y_pred: object
    loss: tf.Tensor
    own_loss: tf.Tensor
    of_sources: list
    of_others: list
    strays: list


def run_pass(model, batch, kernels, sources, replicas):
    """Runs a model in training on a batch, and differentiates its loss.

    Args:
        model: compiled `LowRankModel`.
        batch: `(x, y, sample_weight)`.
        kernels: dict from `Factors` to what their layer multiplies with, see `substitute`.
        sources: list of tensors in the kernels to differentiate by.
        replicas: `Replicas`.

    Returns:
        `Pass`.

    Raises:
        ValueError: the loss depends on U, S or V themselves.
    """
    x, y, sample_weight = batch
    with substitute(kernels), tf.GradientTape() as tape:
        tape.watch(sources)
        y_pred = keras_internals.call_in_training(model, x)
        loss = keras_internals.compute_loss(model, x, y, y_pred, sample_weight)
        share = replicas.share(x)
        own = loss if share is None else tf.cast(share, loss.dtype) * loss
        scaled = model.optimizer.scale_loss(own)
    for kernel in kernels.values():
        if isinstance(kernel, TangentProbe):  # a loss may have taken gradients of its own
            kernel.forget_calls()
    by = sources, model.other_variables, [factors.variables for factors in kernels]
    with substitute(kernels):  # for what is recomputed
        of_sources, of_others, of_factors = tape.gradient(scaled, by)
    strays = []
    for kernel, gradients in zip(kernels.values(), of_factors):
        gradients = [gradient for gradient in gradients if gradient is not None]
        if gradients and not getattr(kernel, "found", ()):
            raise on_variables()
        strays += gradients
    return Pass(y_pred, loss, own, of_sources, of_others, strays)


def on_variables(_=None):
    """The error of a loss that depends on U, S or V themselves, at any step."""
    return ValueError(
        "A loss term must not depend on the variables U, S or V of a low-rank layer: its "
        "gradient is not one on the manifold and would be ignored. Use "
        "`kernel_regularizer` (L2), or a term on the layer's outputs. Nor may a layer be "
        "called in a `tf.function` of its own, which holds on to the variables that it was "
        "traced with: leave the decorator out, the step is one traced function anyway."
    )
