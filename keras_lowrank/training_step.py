"""One training step of a Keras model: its passes, as the `Problem` that an integrator solves."""

import itertools
import warnings

import tensorflow as tf

from keras_lowrank import keras_internals, row_slices
from keras_lowrank.distribution import Replicas
from keras_lowrank.faults import (
    Findings,
    Snapshot,
    all_finite_flags,
    choose,
    is_zero,
    poisoned,
)
from keras_lowrank.optimizers.options import clip_factors, rules_of, weight_decay
from keras_lowrank.optimizers.state import ACCUMULATED
from keras_lowrank.passes import on_variables, run_pass
from keras_lowrank.substitution import Product
from keras_lowrank.tangent import TangentProbe
from keras_lowrank.tangent_vector import core_in, zeros_at

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
        self._replicas = Replicas()
        self.replicated = self._replicas.count > 1
        self._rules, self._slots = rules_of(model.rule, layers), model.optimizer_state
        self._optimizer = keras_internals.inner_optimizer(model.optimizer)
        for path, layer in layers.items():
            layer.factors.check_trainable(path)
        self._points = [layer.factors.read() for layer in layers.values()]
        # Everything that a forward pass may change: statistics, states, seeds of dropout.
        held = {id(v) for layer in layers.values() for v in layer.factors.variables}
        changing = [v for v in model.non_trainable_variables if id(v) not in held]
        seed = keras_internals.global_seed()
        changing += keras_internals.states(model) + ([] if seed is None else [seed])
        self._state = Snapshot(changing)
        # As it is now: a step that is found to be bad has been counted by then.
        self._completed = tf.identity(
            tf.convert_to_tensor(keras_internals.completed_steps(model.optimizer))
        )
        self.check_bases = tf.equal(self._completed % _STEPS_BETWEEN_CHECKS, 0)
        rate = tf.convert_to_tensor(model.optimizer.learning_rate)
        self._learning_rate = rate if rate.dtype == tf.float64 else tf.cast(rate, tf.float32)
        self._number = tf.cast(self._completed, tf.float32) + 1.0
        self._checks = {}
        self.step_size = model.rule.step_size(self._learning_rate, self._number)
        self.wants_overlap = self._slots.carries

    def run(self):
        """Performs the step: integrator, optimizer, and the decision whether any of it is kept.

        Returns:
            `(x, y, y_pred, sample_weight)`, for the metrics.
        """
        model = self._model
        gradients = self._tangent_gradients()
        self._set_out()
        old_slots = [self._slots.read(path) for path in self._layers]
        if self._optimizer.gradient_accumulation_steps:
            new, new_slots = self._accumulate(gradients, old_slots)
        else:
            new, new_slots = self._advance(gradients, old_slots)
        new, new_slots = self._replicas.to_assign((new, new_slots))
        self._note("the new core of layer", [(factors.S,) for factors in new])
        self._finite = self._replicas.decided(self._finite)
        obeyed = all_finite_flags(self._checks)
        finite = all_finite_flags(self._finite) & obeyed & model.faults.clear
        fatal = ~finite
        if isinstance(model.optimizer, keras_internals.LossScaleOptimizer):
            # A scaled loss overflows now and then, and the scale then shrinks: no fault, unless
            # the loss itself overflows or there is no scale left to take away.
            hopeless = ~self._finite["the loss"] | (self._scale < 1.0) | ~obeyed
            fatal &= hopeless | ~model.faults.clear
        before = self._update_others(finite)
        updated = self._note_updates(before.variables)
        fatal |= finite & ~updated
        finite &= updated
        model.faults.record(fatal, {**self._checks, **self._finite}, self._completed)
        before.restore_unless(~fatal)
        self._state.restore_unless(finite)
        new, new_slots = choose(finite, (new, new_slots), (self._points, old_slots))
        for (path, layer), factors, slots in zip(self._layers.items(), new, new_slots):
            layer.factors.assign(factors)
            self._slots.assign(path, slots)
        return self._x, self._y, self._y_pred, self._sample_weight

    # The problem that the integrator sees.

    def _set_out(self):
        """Where the step starts from, and what the ranks will follow."""
        layers = self._layers.values()
        self._kept = [self._after_decay(*item) for item in self._layers.items()]
        self.factors = [
            point if kept is None else point._replace(S=kept * point.S)
            for point, kept in zip(self._points, self._kept)
        ]
        self.policies = self._model.policies(layers, self.factors, self._number)
        for policy in self.policies:
            self._checks.update(policy.truncation.checks())

    def direction(self):
        clips, self._common_clip = clip_factors(
            self._optimizer,
            self._tangents,
            [_scaled(g, self._unscaling) for g in self._other_gradients],
        )
        # What the gradient of the network is multiplied with before the rule sees it.
        self._gains = [_product(self._unscaling, clip) for clip in clips]
        self._clipped = [
            tangent if clip is None else tangent.scaled(clip)
            for tangent, clip in zip(self._tangents, clips)
        ]
        results = [
            self._rules[path].direction(gradient, slots, point, self._learning_rate, self._number)
            for path, gradient, slots, point in zip(
                self._layers, self._clipped, self._old_slots, self._points
            )
        ]
        self._directions = [direction for direction, _ in results]
        self._new_slots = [slots for _, slots in results]
        return [direction.tangent for direction in self._directions]

    def coupling(self, index, left, right):
        direction = self._directions[index]
        if direction.share is None:
            shape = [tf.shape(left.root)[1], tf.shape(right.root)[1]]
            return tf.zeros(shape, left.root.dtype)
        if self.replicated:
            parts = self._replicas.first([(added.root, added.leak) for added in (left, right)])
            left, right = (
                added._replace(root=root, leak=leak)
                for added, (root, leak) in zip((left, right), parts)
            )
        block = self._probes[index].coupling(left, right, direction.rows, direction.columns)
        block = self._replicas.sum(block)
        gain = _product(self._gains[index], direction.share)
        return block if gain is None else tf.cast(gain, block.dtype) * block

    def core_direction(self, factors):
        """Where D is a multiple of the gradient and something known, the gradient is a new one."""
        settled = [d.share is None or d.rows is not None for d in self._directions]
        new_gradients = [None] * len(settled) if all(settled) else self._second_pass(factors)
        cores = []
        for index, (direction, new) in enumerate(zip(self._directions, factors)):
            point, gradient = self._points[index], self._clipped[index]
            is_gradient = direction.tangent is gradient and not settled[index]
            core = 0.0 if is_gradient else core_in(direction.tangent, point, new)
            if not settled[index]:
                new_gradient = new_gradients[index]
                gain = tf.cast(_product(self._gains[index], direction.share), new_gradient.dtype)
                core += gain * new_gradient
            if not (settled[index] or is_gradient):
                old = core_in(gradient, point, new)
                core -= tf.cast(direction.share, old.dtype) * old
            cores.append(core)
        return cores

    def _advance(self, tangents, slots):
        """A step from gradients: the new matrices, and the state of the optimizer for them."""
        self._tangents, self._old_slots = tangents, slots
        moves = self._model.integrator.step(self)
        carried = [
            self._slots.carried(state, point, moved, direction.tangent, self._rules[path].decay)
            for path, state, point, moved, direction in zip(
                self._layers, self._new_slots, self._points, moves, self._directions
            )
        ]
        return [moved.factors for moved in moves], carried

    def _accumulate(self, tangents, slots):
        """A step from the mean of some gradients at one point, or nothing but their sum."""
        steps = self._optimizer.gradient_accumulation_steps
        sums = [t.plus(state[ACCUMULATED]) for t, state in zip(tangents, slots)]

        def advance():
            means = [total.scaled(1.0 / steps) for total in sums]
            new, states = self._advance(means, slots)
            states = [
                {**state, ACCUMULATED: zeros_at(factors)} for state, factors in zip(states, new)
            ]
            return _flat((new, states))

        def wait():
            states = [{**state, ACCUMULATED: total} for state, total in zip(slots, sums)]
            return _flat((self._points, states))

        complete = keras_internals.completes_accumulation(self._optimizer)
        return _packed((self._points, slots), tf.cond(complete, advance, wait))

    def _after_decay(self, path, layer):
        """What decoupled weight decay, as Keras has it, leaves of W; None for all of it."""
        decay = weight_decay(self._rules[path], layer)
        if not decay:
            return None
        return tf.cast(1.0 - decay * self._learning_rate, layer.S.dtype)

    def _tangent_gradients(self):
        """One forward and one backward pass; returns the tangent gradients, as of no scale."""
        integrator = self._model.integrator
        # Replicas have other rows each, and XLA asks for a number of rows that is known.
        by_rows = integrator.takes_rows and not self.replicated and not self._model.jit_compile
        self._probes = [
            TangentProbe(
                point,
                integrator.needs_coupling,
                by_rows and self._rules[path].takes_rows,
                layer.factors,
            )
            for point, (path, layer) in zip(self._points, self._layers.items())
        ]
        sources = [probe.sources for probe in self._probes]
        found = self._pass(self._probes, _flat(sources), first=True)
        gradients = [
            probe.with_found(own) for probe, own in zip(self._probes, _packed(sources, found))
        ]
        gradients = self._of_reached(gradients)
        tangents = [probe.tangent(own) for probe, own in zip(self._probes, gradients)]
        tangents = self._summed(tangents)
        self._note("the gradient of layer", [(row_slices.values(t.K), t.L) for t in tangents])
        if self._unscaling is None:
            return tangents
        return [tangent.scaled(self._unscaling) for tangent in tangents]

    def _of_reached(self, gradients):
        """The gradients of the layers that have one; the step goes on as if there were no others.

        As Keras has it: a variable without a gradient stays what it is, undecayed, and is worth a
        warning; where none has one, it is an error.
        """
        lost = [
            path
            for path, probe, own in zip(self._layers, self._probes, gradients)
            if not probe.reached(own)
        ]
        others = [gradient for own in gradients for gradient in own] + self._other_gradients
        if all(gradient is None for gradient in others):
            raise ValueError(
                "The loss must depend on a variable of the model. No gradients provided for any "
                f"variable. Received: a loss that depends on none of the layers {lost}"
            )
        if lost:
            warnings.warn(
                f"Gradients do not exist for the low-rank layers {lost}: the loss does not depend "
                "on what they put out, or by a `tf.custom_gradient` around them that knows nothing "
                "of them. They are not trained by it.",
                stacklevel=2,
            )
        moved = [probe.is_moved(own) for probe, own in zip(self._probes, gradients)]
        self._layers = dict(itertools.compress(self._layers.items(), moved))
        self._points = list(itertools.compress(self._points, moved))
        self._probes = list(itertools.compress(self._probes, moved))
        return list(itertools.compress(gradients, moved))

    def _second_pass(self, factors):
        """The gradients of the cores at new matrices."""
        recomputed = [path for path, probe in zip(self._layers, self._probes) if probe.found]
        if recomputed:
            raise ValueError(
                "With plain steps or a momentum `integrator='fixed_rank'` takes a second pass, at "
                "bases that no variable holds, and a layer whose outputs are recomputed "
                "(`tf.recompute_grad`, `keras.remat`, `keras.RematScope`) is differentiated by "
                "variables alone. Use integrator='parallel' or 'rank_adaptive'. "
                f"Received: the layers {recomputed}"
            )
        # The same batch, the same dropout mask, and statistics that are updated once: by this
        # pass, whose gradients move the cores and the other variables.
        metrics = Snapshot(self._model.metrics_variables)
        self._state.restore()
        factors = self._replicas.first(factors)
        for new, point in zip(factors, self._points):  # a trace for all sizes does not know them
            new.U.set_shape([point.U.shape[0], None])
            new.V.set_shape([point.V.shape[0], None])
        # Keras takes the gradient first, and lets weights decay then.
        cores = [
            tf.identity(f.S if kept is None else f.S / kept) for f, kept in zip(factors, self._kept)
        ]
        kernels = [Product.of(f._replace(S=core)) for f, core in zip(factors, cores)]
        gradients = self._pass(kernels, [kernel.core for kernel in kernels], first=False)
        metrics.restore()
        gradients = [tf.zeros_like(f.S) if g is None else g for f, g in zip(factors, gradients)]
        gradients = self._summed(gradients, " at the new bases")
        self._note("the gradient at the new bases of layer", [(g,) for g in gradients])
        return gradients

    # The passes over the network.

    def _pass(self, kernels, sources, first):
        """One forward and one backward pass; returns the gradients of `sources`, still scaled."""
        model, batch = self._model, (self._x, self._y, self._sample_weight)
        table = dict(zip((layer.factors for layer in self._layers.values()), kernels))
        found = run_pass(model, batch, table, sources, self._replicas)
        if found.strays:
            zero = {n: is_zero(gradient) for n, gradient in enumerate(found.strays)}
            self._checks.update(self._replicas.all({on_variables: all_finite_flags(zero)}))
        self._scale = model.optimizer.scale_loss(tf.ones([], tf.float32))
        self._other_gradients, self._loss = found.of_others, found.own_loss
        if first:
            keras_internals.track_loss(model, found.loss, self._x)
            self._y_pred = found.y_pred
            self._finite = Findings()
        scales = self._optimizer is not model.optimizer or self._optimizer.loss_scale_factor
        self._unscaling = 1.0 / self._scale if scales else None
        return found.of_sources

    def _summed(self, gradients, when=""):
        """Sums over all replicas what a pass has found: these, and all else that it keeps."""
        gradients, self._other_gradients, self._loss = self._replicas.sum(
            (gradients, self._other_gradients, self._loss)
        )
        # A second pass starts from what the first has found, and must not hide its findings.
        self._finite.note(f"the loss{when}", self._loss)
        for variable, gradient in zip(self._model.other_variables, self._other_gradients):
            place = f"the gradient of {variable.path!r}{when}"
            self._finite.note(place, row_slices.values(gradient))
        return gradients

    def _note(self, place, tensors_by_layer):
        """Notes for every layer whether its tensors are finite."""
        for path, tensors in zip(self._layers, tensors_by_layer):
            self._finite.note(f"{place} {path!r}", *tensors)

    def _update_others(self, finite):
        """Lets the compiled optimizer update the other variables, once; returns how they were."""
        optimizer = self._model.optimizer
        variables, gradients = self._model.other_variables, self._other_gradients
        idle = all(gradient is None for gradient in gradients)
        if idle:
            # An optimizer refuses to run without any gradient, and its step must be counted.
            variables = variables or self._model.stand_in
            gradients = [tf.zeros_like(v.value) for v in variables]
        gradients = [_scaled(g, self._common_clip) for g in gradients]
        if isinstance(optimizer, keras_internals.LossScaleOptimizer):
            # It finds overflow by itself, in the gradients that it sees: these tell of all others.
            gradients = [poisoned(gradient, finite) for gradient in gradients]
        held = {id(variable) for variable in self._slots.variables}
        own = [v for v in optimizer.variables if id(v) not in held]
        before = Snapshot([*variables, *own])
        keras_internals.sum_gradients(self._optimizer, not self.replicated)
        optimizer.apply_gradients(zip(gradients, variables))
        if idle:  # decayed, and as in Keras not to be
            before.restore(variables)
        return before

    def _note_updates(self, variables):
        """Notes for variables and moments whether they are finite: a square may overflow.

        Returns:
            Scalar bool tensor, whether all are.
        """
        finite = Findings()
        for variable in variables:
            if "float" in str(variable.dtype):
                finite.note(f"the new value of {variable.path!r}", variable.value)
        finite = self._replicas.all(finite)
        self._finite.update(finite)
        return all_finite_flags(finite)


def _flat(structure):
    return tf.nest.flatten(structure)


def _packed(structure, tensors):
    return tf.nest.pack_sequence_as(structure, tensors)


def _product(one, other):
    """The product of two factors, None standing for 1."""
    if one is None or other is None:
        return one if other is None else other
    if tf.is_tensor(one) and tf.is_tensor(other):  # a loss scale is float32, whatever the layers
        one = tf.cast(one, other.dtype)
    return one * other


def _scaled(gradient, factor):
    """The gradient times a scalar; either may be None."""
    if gradient is None or factor is None:
        return gradient
    return row_slices.scaled(gradient, tf.cast(factor, gradient.dtype))
