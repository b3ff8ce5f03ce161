"""One training step of a Keras model: what follows from the gradients of a batch."""

import warnings

import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.integrators.trace_once import trace_once
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.tangent_vector import TangentVector, core_in, transport, zero_vector
from keras_lowrank.optimizers.options import clip_factors, rules_by_layer, weight_decay
from keras_lowrank.optimizers.rule import ACCUMULATED
from keras_lowrank.training.faults import are_finite, poisoned
from keras_lowrank.training.matrix_step import (
    MatrixState,
    StepScalars,
    advance,
    tangent_gradient,
    transport_state,
)
from keras_lowrank.training.passes import NO_SECOND_PASS, AtNewBases
from keras_lowrank.training.replicas import Replicas
from keras_lowrank.training.snapshot import Snapshot


class TrainingStep:
    """A step of a model. To an integrator with `adapt_every=1` it is the `Problem`.

    Args:
        training: `Training` of the model.
        layers: dict from path to trainable `LowRankLayer`.
        others: list of all other variables that the step may move.
        source: `Passes` or `GivenGradients`, where gradients come from.
    """

    def __init__(self, training, layers, others, source):
        self._training, self._model = training, training.model
        self._layers, self._others, self._source = layers, others, source
        training.moved |= layers.keys()
        self._replicas = Replicas()
        self.replicated = self._replicas.count > 1
        model = self._model
        self._rules, self._slots = rules_by_layer(training.rule, layers), training.state
        self._optimizer = keras_internals.inner_optimizer(model.optimizer)
        for path, layer in layers.items():
            layer.factors.check_trainable(path)
        # As it is now: a step that is found to be bad has been counted by then.
        self._completed = tf.identity(
            tf.convert_to_tensor(keras_internals.completed_steps(model.optimizer))
        )
        rate = tf.convert_to_tensor(model.optimizer.learning_rate)
        rate = rate if rate.dtype == tf.float64 else tf.cast(rate, tf.float32)
        number, every = tf.cast(self._completed, tf.float32) + 1.0, model.integrator.adapt_every
        adapts = tf.equal((self._completed + 1) % every, 0)
        self.step_size = tf.convert_to_tensor(training.rule.step_size(rate, number))
        self._numbers = StepScalars(rate, number, self.step_size, adapts)
        self._scale = model.optimizer.scale_loss(tf.ones([], tf.float32))
        scales = self._optimizer is not model.optimizer or self._optimizer.loss_scale_factor
        self._unscaling = 1.0 / self._scale if scales else None
        self._tangent_gradient = trace_once(tangent_gradient)

    def run(self):
        """Performs the step: gradients, factors, optimizer, and whether any of it is kept."""
        model, faults = self._model, self._training.faults
        self._statistics = Snapshot(self._source.changing())
        gradients = self._first_pass()
        loss = self._loss  # a second pass starts from what the first has found
        factors = [v for layer in self._layers.values() for v in layer.factors.variables]
        matrices = Snapshot([*factors, *self._slots.variables_of(self._layers)])
        held = [self._slots.read(path) for path in self._layers]
        new = self._moved(held, gradients)
        kept = self._replicas.to_assign([matrix[:3] for matrix in new])
        new = [MatrixState(*parts, matrix.check) for parts, matrix in zip(kept, new)]
        self._places += [
            (f"the new core of layer {path!r}", [matrix.factors.S])
            for path, matrix in zip(self._layers, new)
        ]
        obeyed = tf.reduce_all([True, *self._obeyed.values()])
        good = are_finite([self._loss, *(matrix.check for matrix in new)])
        good = self._replicas.decided(good) & obeyed & faults.clear
        fatal = ~good
        if isinstance(model.optimizer, keras_internals.LossScaleOptimizer):
            # A scaled loss overflows now and then, and the scale then shrinks: no fault, unless
            # the loss itself overflows or there is no scale left to take away.
            hopeless = ~are_finite(loss) | (self._scale < 1.0) | ~obeyed
            fatal &= hopeless | ~faults.clear
        before = self._update_others(good)
        moved = [v for v in before.variables if "float" in str(v.dtype)]
        self._places += [(f"the new value of {v.path!r}", [v.value]) for v in moved]
        updated = self._replicas.decided(are_finite([v.value for v in moved]))
        fatal |= good & ~updated
        good &= updated
        faults.record(fatal, self._obeyed, self._places, self._completed)
        before.restore_unless(~fatal, self.replicated)
        for (path, layer), matrix in zip(self._layers.items(), new):
            layer.factors.assign(matrix.factors)
            self._slots.assign(path, matrix.scale, matrix.slots)
        for snapshot in (self._statistics, matrices):
            snapshot.restore_unless(good, self.replicated)

    # The low-rank matrices.

    def _moved(self, held, gradients):
        """What a step makes of all matrices, list of `MatrixState`."""
        tangents = [
            self._tangent_gradient(one.factors, one.scale, gradient, self._unscaling)
            for one, gradient in zip(held, gradients)
        ]
        self._decay_factors = [self._decay(*item) for item in self._layers.items()]
        held = [one.decayed(decay) for one, decay in zip(held, self._decay_factors)]
        self.factors = [one.factors for one in held]
        self.policies = self._training.policies(
            self._layers.values(), self.factors, self._numbers.number
        )
        self._obeyed = {}
        for policy in self.policies:
            self._obeyed.update(policy.truncation.checks())
        if self._optimizer.gradient_accumulation_steps:
            return self._accumulated(held, tangents)
        return self._advanced(held, tangents)

    def _advanced(self, held, tangents):
        """A step from gradients, list of `MatrixState`."""
        clips, self._common_clip = clip_factors(
            self._optimizer,
            tangents,
            [_scaled(gradient, self._unscaling) for gradient in self._other_gradients],
        )
        # What the gradient of the network is multiplied with before a rule sees it.
        self._gradient_scales = [_product(self._unscaling, clip) for clip in clips]
        clipped = [
            tangent if clip is None else tangent.scaled(clip)
            for tangent, clip in zip(tangents, clips)
        ]
        integrator = self._model.integrator
        if integrator.adapt_every > 1:
            steps = {
                rule: trace_once(_of_rule(advance, integrator, rule))
                for rule in self._rules.values()
            }
            matrices = zip(self._rules.values(), held, clipped, self.policies)
            return [steps[rule](*matrix, self._numbers) for rule, *matrix in matrices]
        self._held, self._clipped = held, clipped
        new = integrator.step(self)
        matrices = zip(self._rules.values(), held, self._new_slots, new)
        return [
            MatrixState.of(factors, transport_state(rule, slots, old.factors, factors))
            for rule, old, slots, factors in matrices
        ]

    def _accumulated(self, held, tangents):
        """A step from the mean of some gradients at one point, or nothing but their sum."""
        steps = self._optimizer.gradient_accumulation_steps
        sums = [t.plus(one.slots[ACCUMULATED]) for t, one in zip(tangents, held)]

        def advance_all():
            new = self._advanced(held, [total.scaled(1.0 / steps) for total in sums])
            zeros = [zero_vector(matrix.factors) for matrix in new]
            return _flat([one.with_slot(ACCUMULATED, zero) for one, zero in zip(new, zeros)])

        def wait():
            return _flat([one.with_slot(ACCUMULATED, total) for one, total in zip(held, sums)])

        complete = keras_internals.completes_accumulation(self._optimizer)
        return tf.nest.pack_sequence_as(held, tf.cond(complete, advance_all, wait))

    def _decay(self, path, layer):
        """What decoupled weight decay, as Keras has it, leaves of W; None for all of it."""
        decay = weight_decay(self._rules[path], layer)
        if not decay:
            return None
        return tf.cast(1.0 - decay * self._numbers.learning_rate, layer.S.dtype)

    # The problem that an integrator with `adapt_every=1` sees.

    def direction(self):
        rate, number = self._numbers.learning_rate, self._numbers.number
        results = [
            rule.direction(gradient, one.slots, Chart(one.factors, one.scale), rate, number)
            for rule, gradient, one in zip(self._rules.values(), self._clipped, self._held)
        ]
        # What a rule has worked out part by part, as the parts of one vector.
        self._directions = [
            direction._replace(tangent=transport(direction.tangent, point, point))
            for (direction, _), point in zip(results, self.factors)
        ]
        self._new_slots = [slots for _, slots in results]
        return [direction.tangent for direction in self._directions]

    def normal_blocks(self, augmented):
        if all(direction.gradient_weight is None for direction in self._directions):
            return [None] * len(augmented)  # of Muon: nothing is known outside of tangent spaces
        kernels = []
        for (point, left, right), direction in zip(augmented, self._directions):
            if direction.gradient_weight is None:
                kernels.append(point)
                continue
            q, z = left.formed(point.U), right.formed(point.V)
            if direction.rows is not None:
                q, z = direction.rows[:, None] * q, direction.columns[:, None] * z
            core = tf.pad(point.S, [[0, tf.shape(q)[1]], [0, tf.shape(z)[1]]])
            u, v = tf.concat([point.U, q], axis=1), tf.concat([point.V, z], axis=1)
            kernels.append((u, core, v))
        blocks = []
        gradients = self._second_pass(kernels)
        for gradient, gain, direction in zip(gradients, self._gradient_scales, self._directions):
            rank = tf.shape(direction.tangent.S)[0]
            block = _scaled(gradient[rank:, rank:], _product(gain, direction.gradient_weight))
            blocks.append(None if direction.gradient_weight is None else block)
        return blocks

    def core_direction(self, factors):
        """Where D is a multiple of the gradient and something known, the gradient is a new one."""
        settled = [d.gradient_weight is None or d.rows is not None for d in self._directions]
        new_gradients = [None] * len(settled) if all(settled) else self._second_pass(factors)
        cores = []
        for index, (direction, new) in enumerate(zip(self._directions, factors)):
            point = self.factors[index]
            core = core_in(direction.tangent, point, new)
            if not settled[index]:
                weight = direction.gradient_weight
                scale = _product(self._gradient_scales[index], weight)
                core += _scaled(new_gradients[index], scale)
                core -= _scaled(core_in(self._clipped[index], point, new), weight)
            cores.append(core)
        return cores

    def _second_pass(self, factors):
        """The gradients of the cores at new matrices, given as `(U, S, V)`."""
        # The same batch, the same dropout mask, and statistics that are updated once: by this
        # pass, whose gradients move the cores and the other variables.
        metrics = Snapshot(self._model.metrics_variables)
        self._statistics.restore()
        kernels, cores = {}, []
        matrices = zip(self._layers.values(), self._replicas.first(factors), self._decay_factors)
        for layer, (u, s, v), decay in matrices:
            u.set_shape([layer.factors.n, None])  # a trace for all sizes does not know them
            v.set_shape([layer.factors.m, None])
            # Keras takes the gradient first, and lets weights decay then.
            cores.append(tf.identity(s if decay is None else s / decay))
            kernels[layer.factors] = AtNewBases(u, cores[-1], v, core=cores[-1])
        gradients = self._source.gradients(kernels, cores)
        metrics.restore()
        lost = [path for path, gradient in zip(self._layers, gradients) if gradient is None]
        if lost:
            raise ValueError(f"{NO_SECOND_PASS} Received: the layers {lost}")
        when = " at the new bases"
        gradients = self._summed(gradients, when)
        self._places += [
            (f"the gradient{when} of layer {path!r}", [gradient])
            for path, gradient in zip(self._layers, gradients)
        ]
        return gradients

    # The gradients of a pass.

    def _first_pass(self):
        """The gradients of U, S and V of each layer, summed over all replicas."""
        variables = [v for layer in self._layers.values() for v in layer.factors.variables]
        found = self._source.gradients({}, variables)
        by_layer = [found[at : at + 3] for at in range(0, len(found), 3)]
        gradients = self._of_reached(by_layer)
        # Replicas have other rows each, and XLA asks for a number of rows that is known.
        by_rows = not self.replicated and not self._model.jit_compile
        gradients = [
            _whole(path, gradient, layer.factors, by_rows and self._rules[path].takes_rows)
            for (path, layer), gradient in zip(self._layers.items(), gradients)
        ]
        self._places = []
        gradients = self._summed(gradients)
        self._places += [
            (f"the gradient of layer {path!r}", gradient)
            for path, gradient in zip(self._layers, gradients)
        ]
        return gradients

    def _of_reached(self, gradients):
        """The gradients of the layers that have one; the step goes on as if there were no others.

        As Keras has it: a variable without a gradient stays what it is, undecayed, and is worth a
        warning; where none has one, it is an error.
        """
        reached = [any(g is not None for g in gradient) for gradient in gradients]
        lost = [path for path, has_one in zip(self._layers, reached) if not has_one]
        if not any(reached) and all(gradient is None for gradient in self._source.other_gradients):
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
        keep = [path for path, has_one in zip(self._layers, reached) if has_one]
        self._layers = {path: self._layers[path] for path in keep}
        self._rules = {path: self._rules[path] for path in keep}
        return [gradient for gradient, has_one in zip(gradients, reached) if has_one]

    def _summed(self, gradients, when=""):
        """Sums over all replicas what a pass has found: these, and all else that it keeps."""
        gradients, self._other_gradients, self._loss = self._replicas.sum(
            (gradients, self._source.other_gradients, self._source.loss)
        )
        self._places.append((f"the loss{when}", [self._loss]))
        self._places += [
            (f"the gradient of {variable.path!r}{when}", [gradient])
            for variable, gradient in zip(self._others, self._other_gradients)
        ]
        return gradients

    # All other variables.

    def _update_others(self, good):
        """Lets the compiled optimizer update the other variables, once; returns how they were."""
        optimizer = self._model.optimizer
        variables, gradients = self._others, self._other_gradients
        idle = all(gradient is None for gradient in gradients)
        if idle:
            # An optimizer refuses to run without any gradient, and its step must be counted.
            variables = variables or self._training.stand_in
            gradients = [tf.zeros_like(v.value) for v in variables]
        gradients = [_scaled(g, self._common_clip) for g in gradients]
        if isinstance(optimizer, keras_internals.LossScaleOptimizer):
            # It finds overflow by itself, in the gradients that it sees: these tell of all others.
            gradients = [poisoned(gradient, good) for gradient in gradients]
        held = {id(variable) for variable in self._slots.variables}
        own = [v for v in optimizer.variables if id(v) not in held]
        before = Snapshot([*variables, *own])
        keras_internals.sum_gradients(self._optimizer, False)
        optimizer.apply_gradients(zip(gradients, variables))
        if idle:  # decayed, and as in Keras not to be
            before.restore(variables)
        return before


def _of_rule(advance, integrator, rule):
    return lambda *matrix: advance(integrator, rule, *matrix)


def _whole(path, gradient, factors, by_rows):
    """The gradients of U, S and V, none of them None; that of U by its rows where it is wanted."""
    tensors = [
        tf.zeros_like(v.value) if one is None else one
        for one, v in zip(gradient, factors.variables)
    ]
    if by_rows:
        tensors[0] = row_sparse.collected(tensors[0], factors.n)
    tensors = [
        one if by_rows and index == 0 else row_sparse.dense(one, size)
        for index, (one, size) in enumerate(zip(tensors, (factors.n, None, factors.m)))
    ]
    return TangentVector(*tensors)


def _flat(structure):
    return tf.nest.flatten(structure)


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
    return row_sparse.scaled(gradient, tf.cast(factor, gradient.dtype))
