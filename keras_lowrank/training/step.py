"""One training step of a Keras model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.optimizers.options import rules_by_layer
from keras_lowrank.training.faults import are_finite, poisoned
from keras_lowrank.training.gradients import SecondPasses, first_pass, scaled
from keras_lowrank.training.matrices import MatricesStep
from keras_lowrank.training.passes import GivenGradients, Passes
from keras_lowrank.training.replicas import Replicas
from keras_lowrank.training.snapshot import Snapshot

if TYPE_CHECKING:
    from keras_lowrank.training.training import Training


def take_step(
    training: Training,
    layers: dict[str, LowRankLayer],
    others: list[keras.Variable],
    source: Passes | GivenGradients,
) -> None:
    """Updates all variables, or none of them if a value is not finite.

    Args:
        training: `Training` of the model.
        layers: dict from path to trainable `LowRankLayer`.
        others: list of all other variables that the step may update.
        source: `Passes` or `GivenGradients`, the source of gradients.
    """
    model, state, replicas = training.model, training.state, Replicas()
    assert training.rule is not None and state is not None
    several = replicas.count > 1
    for path, layer in layers.items():
        layer.factors.check_trainable(path)
    training.trained_paths |= layers.keys()
    # Read now: a bad step has been counted by the time it is recorded.
    completed = tf.identity(tf.convert_to_tensor(keras_internals.completed_steps(model.optimizer)))

    statistics = Snapshot(source.changing())
    rules = rules_by_layer(training.rule, layers)
    # Replicas have different rows, and XLA needs a known number of rows.
    sparse = not several and not model.jit_compile
    by_rows = {path: sparse and rule.takes_rows for path, rule in rules.items()}
    first = first_pass(source, layers, others, replicas, by_rows)

    layers = first.layers
    matrices = MatricesStep(training, {path: rules[path] for path in layers}, layers, completed)
    factors = [variable for layer in layers.values() for variable in layer.factors.variables]
    before = Snapshot([*factors, *state.variables_of(layers)])
    passes = SecondPasses(
        first,
        source,
        others,
        replicas,
        statistics,
        model.metrics_variables,
        matrices.decay_factors,
    )
    new, common_clip = matrices.move(passes, several)
    # All but the check, a float32 whatever the layer's type is.
    sent = replicas.to_assign([(one.factors, one.scale, one.slots) for one in new])
    new = [
        one._replace(factors=factors, scale=scale, slots=slots)
        for one, (factors, scale, slots) in zip(new, sent)
    ]

    last = passes.results[-1]
    verdict = _Verdict(training, matrices, replicas)
    good, fatal = verdict.before_update(first.loss, last.loss, new)
    gradients = [scaled(gradient, common_clip) for gradient in last.others]
    others_before = _update_others(training, others, gradients, good)
    updated = [v for v in others_before.variables if "float" in str(v.dtype)]
    good, fatal = verdict.after_update(good, fatal, updated)
    places = [place for one in passes.results for place in one.places]
    places += [(f"the new core of layer {path!r}", [m.factors.S]) for path, m in zip(layers, new)]
    places += [(f"the new value of {v.path!r}", [v.value]) for v in updated]
    training.faults.record(fatal, matrices.checks, places, completed)

    others_before.restore_unless(~fatal, several)
    for (path, layer), matrix in zip(layers.items(), new):
        layer.factors.assign(matrix.factors)
        state.assign(path, matrix.scale, matrix.slots)
    for snapshot in (statistics, before):
        snapshot.restore_unless(good, several)


class _Verdict:
    """Whether a step counts (good), and whether the host raises (fatal): scalar bool tensors.

    A scaled loss may overflow, and the loss scale then shrinks. Such a step is discarded without an
    error, unless the loss itself overflows or the scale is below 1.
    """

    def __init__(self, training, matrices, replicas):
        self._replicas, self._clear = replicas, training.faults.clear
        self._valid = tf.reduce_all([True, *matrices.checks.values()])
        scales = isinstance(training.model.optimizer, keras_internals.LossScaleOptimizer)
        self._loss_scale = matrices.loss_scale if scales else None

    def before_update(self, first_loss, last_loss, new):
        """`(good, fatal)` from the matrices, a list of `MatrixState`."""
        finite = are_finite([last_loss, *(matrix.check for matrix in new)])
        good = self._replicas.decided(finite) & self._valid & self._clear
        fatal = ~good
        if self._loss_scale is not None:
            hopeless = ~are_finite(first_loss) | (self._loss_scale < 1.0) | ~self._valid
            fatal &= hopeless | ~self._clear
        return good, fatal

    def after_update(self, good, fatal, updated):
        """`(good, fatal)` from all other variables too."""
        finite = self._replicas.decided(are_finite([v.value for v in updated]))
        return good & finite, fatal | (good & ~finite)


def _update_others(training, variables, gradients, good):
    """Has the compiled optimizer update the other variables once; returns their `Snapshot`."""
    optimizer = training.model.optimizer
    idle = all(gradient is None for gradient in gradients)
    if idle:
        # An optimizer refuses to run without any gradient, but must count the step.
        variables = variables or training.stand_in
        gradients = [tf.zeros_like(v.value) for v in variables]
    if isinstance(optimizer, keras_internals.LossScaleOptimizer):
        # It looks for overflow in these gradients only: they must show that of the matrices.
        gradients = [poisoned(gradient, good) for gradient in gradients]
    of_matrices = {id(variable) for variable in training.state.variables}
    own = [v for v in optimizer.variables if id(v) not in of_matrices]
    before = Snapshot([*variables, *own])
    keras_internals.sum_gradients(keras_internals.inner_optimizer(optimizer), False)
    optimizer.apply_gradients(zip(gradients, variables))
    if idle:  # as in Keras, variables without a gradient do not decay
        before.restore(variables)
    return before
