"""One training step of a Keras model: its passes, as the `Problem` that an integrator solves."""

import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.factors import Factorization
from keras_lowrank.faults import Snapshot, all_finite, all_finite_flags, choose
from keras_lowrank.tangent import Product, TangentProbe, substitute

# Roundings turn orthonormal bases by some 1e-7 a step, in no direction: far from 1e-5 after these.
_STEPS_BETWEEN_CHECKS = 16


class TrainingStep:
    """A `Problem` made of a model's low-rank layers and one batch.

    Args:
        model: compiled `LowRankModel`.
        layers: dict from path to trainable `LowRankLayer`.
        batch: `(x, y, sample_weight)`.
    """

    def __init__(self, model, layers, batch):
        self._model = model
        self._layers = layers
        self._x, self._y, self._sample_weight = batch
        self._needs_coupling = model.integrator.needs_coupling
        self.factors = [layer.factors.read() for layer in layers.values()]
        self.policies = [model.policy_of(layer) for layer in layers.values()]
        # Everything that a forward pass may change: statistics, seeds of dropout.
        held = {id(v) for layer in layers.values() for v in layer.factors.variables}
        self._state = Snapshot([v for v in model.non_trainable_variables if id(v) not in held])
        self._completed = keras_internals.completed_steps(model.optimizer)
        self.check_bases = tf.equal(self._completed % _STEPS_BETWEEN_CHECKS, 0)
        self._learning_rate = tf.cast(model.optimizer.learning_rate, tf.float32)

    def run(self):
        """Performs the step: integrator, optimizer, and the decision whether any of it is kept.

        Returns:
            `(x, y, y_pred, sample_weight)`, for the metrics.
        """
        model = self._model
        new = model.integrator.step(self)
        self._note("the new core of layer", [(factors.S,) for factors in new])
        finite = all_finite_flags(self._finite) & model.faults.clear
        fatal = ~finite
        if isinstance(model.optimizer, keras_internals.LossScaleOptimizer):
            # A scaled loss overflows now and then, and the scale then shrinks: no fault, unless
            # the loss itself overflows or there is no scale left to take away.
            hopeless = ~self._finite["the loss"] | (self._scale < 1.0) | ~model.faults.clear
            fatal &= hopeless
        model.faults.record(fatal, self._finite, self._completed)
        self._update_others(finite, fatal)
        self._state.restore_unless(finite)
        flat = choose(finite, _flatten(new), _flatten(self.factors))
        for layer, *factors in zip(self._layers.values(), flat[::3], flat[1::3], flat[2::3]):
            layer.factors.assign(Factorization(*factors))
        return self._x, self._y, self._y_pred, self._sample_weight

    # The problem that the integrator sees.

    def direction(self):
        self._probes = [TangentProbe(f, self._needs_coupling) for f in self.factors]
        sources = [probe.sources for probe in self._probes]
        gradients = iter(self._pass(self._probes, _flatten(sources), first=True))
        tangents = [p.tangent([next(gradients) for _ in p.sources]) for p in self._probes]
        self._note("the gradient of layer", [(t.K, t.L) for t in tangents])
        return [self._model.rule.direction(tangent) for tangent in tangents]

    def coupling(self, index, left, right):
        return self._probes[index].coupling(left, right)

    def core_direction(self, factors):
        # The same batch, the same dropout mask, and statistics that are updated once: by this
        # pass, whose gradients move the cores and the other variables.
        metrics = Snapshot(self._model.metrics_variables)
        self._state.restore()
        kernels = [Product.of(f._replace(S=tf.identity(f.S))) for f in factors]
        gradients = self._pass(kernels, [kernel.core for kernel in kernels], first=False)
        metrics.restore()
        gradients = [tf.zeros_like(f.S) if g is None else g for f, g in zip(factors, gradients)]
        self._note("the gradient at the new bases of layer", [(g,) for g in gradients])
        return gradients

    # The passes over the network.

    def _pass(self, kernels, sources, first):
        """One forward and one backward pass; returns the gradients of `sources`, still scaled."""
        model = self._model
        others = model.other_variables
        owned = [v for layer in self._layers.values() for v in layer.factors.variables]
        table = dict(zip((layer.factors for layer in self._layers.values()), kernels))
        with substitute(table), tf.GradientTape() as tape:
            tape.watch(sources)
            y_pred = keras_internals.call_in_training(model, self._x)
            loss = model.compute_loss(
                x=self._x,
                y=self._y,
                y_pred=y_pred,
                sample_weight=self._sample_weight,
                training=True,
            )
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [*sources, *others, *owned])
        cut, end = len(sources), len(sources) + len(others)
        if any(gradient is not None for gradient in gradients[end:]):
            raise ValueError(
                "A loss term must not depend on the variables U, S or V of a low-rank layer: its "
                "gradient is not one on the manifold and would be ignored. Use "
                "`kernel_regularizer` (L2), or a term on the layer's outputs."
            )
        self._scale = model.optimizer.scale_loss(tf.ones([], tf.float32))
        self._other_gradients = gradients[cut:end]
        if first:
            keras_internals.track_loss(model, loss, self._x)
            self._y_pred = y_pred
            self._finite = {}
        # A second pass starts from what the first has found, and must not hide its findings.
        when = "" if first else " at the new bases"
        self._finite[f"the loss{when}"] = all_finite(loss)
        for variable, gradient in zip(others, self._other_gradients):
            place = f"the gradient of {variable.path!r}{when}"
            self._finite[place] = all_finite(_values(gradient))
        # The gradients stay scaled as the loss was; h is what takes the scale out.
        self.step_size = self._learning_rate / self._scale
        return gradients[:cut]

    def _note(self, place, tensors_by_layer):
        """Notes for every layer whether its tensors are finite."""
        for path, tensors in zip(self._layers, tensors_by_layer):
            self._finite[f"{place} {path!r}"] = all_finite(*tensors)

    def _update_others(self, finite, fatal):
        """Lets the compiled optimizer update the other variables, once."""
        optimizer = self._model.optimizer
        variables, gradients = self._model.other_variables, self._other_gradients
        if all(gradient is None for gradient in gradients):
            # An optimizer refuses to run without any gradient, and its step must be counted.
            variables = variables or self._model.stand_in
            gradients = [tf.zeros_like(v.value) for v in variables]
        # A scaling optimizer finds overflow by itself, in the gradients that it sees.
        gradients = [_poisoned(g, finite) for g in gradients]
        before = Snapshot([*variables, *optimizer.variables])
        optimizer.apply_gradients(zip(gradients, variables))
        before.restore_unless(~fatal)


def _flatten(tuples):
    return [tensor for entries in tuples for tensor in entries]


def _values(gradient):
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _poisoned(gradient, finite):
    """The gradient where `finite` is true, NaN where it is not."""
    if gradient is None:
        return None
    values = _values(gradient)
    values = tf.where(finite, values, tf.cast(float("nan"), values.dtype))
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values
