"""Muon on the manifold: a momentum whose singular values are all brought close to 1."""

import inspect
import re

import keras
import tensorflow as tf

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.adam import AdamRule
from keras_lowrank.optimizers.rule import TANGENT, Direction, Float, Rule, State, register_rule


class MuonRule(Rule):
    r"""`keras.optimizers.Muon`: `M <- mu P(M) + G`, then an odd polynomial of M.

    A momentum in the tangent space is `[U, Q] C [V, Z]^T` with a core C of at most 2r x 2r. The
    Newton-Schulz iteration computes an odd polynomial p of it, `[U, Q] p(C) [V, Z]^T`, without an
    n x m matrix. The block between Q and Z is left out: it is not in the tangent space. The
    momentum of a Tucker-2 kernel is that of its matrix `(kh kw c, f)`, and `p(M)` is projected onto
    the tangent space.

    At full rank it is Keras's own step of a dense kernel. Every low-rank kernel gets the Muon
    update, including convolutions, which Keras's Muon leaves to AdamW. Layers that
    `exclude_layers` and `exclude_embeddings` name get AdamW, as in Keras.
    """

    takes_tucker = True

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        super().__init__(optimizer)
        self.state = {"momentum": TANGENT}
        self.decay = float(optimizer.momentum)
        self._adamw = _AdamWRule(optimizer)

    def of_layer(self, path: str) -> Rule:
        keywords = self.optimizer.exclude_layers
        is_embedding = self.optimizer.exclude_embeddings and "embedding" in path.lower()
        excluded = is_embedding or any(re.search(keyword, path) for keyword in keywords)
        return self._adamw if excluded else self

    def direction(
        self, gradient: TangentVector, state: State, point: Chart, learning_rate: Float, step: Float
    ) -> tuple[Direction, State]:
        momentum = state["momentum"].plus(gradient)
        ahead = momentum
        if self.optimizer.nesterov:
            ahead = gradient.plus(momentum.scaled(self.decay))
        direction = point.mapped(ahead, self._newton_schulz).scaled(self._scale(point))
        return Direction(direction, gradient_weight=None), {"momentum": momentum}

    def _newton_schulz(self, core):
        a, b, c = self.optimizer.muon_a, self.optimizer.muon_b, self.optimizer.muon_c
        core /= tf.norm(core) + 1e-7
        for _ in range(self.optimizer.ns_steps):
            # Of the columns: the core of a Tucker-2 kernel has many more rows.
            gram = tf.matmul(core, core, transpose_a=True)
            core = a * core + tf.matmul(core, b * gram + c * tf.matmul(gram, gram))
        return core

    def _scale(self, point):
        if self.optimizer.rms_rate is None:
            return 1.0
        places = tf.reduce_prod(tf.shape(point.S)[:-2])  # of a Tucker-2 kernel
        longest = tf.maximum(places * tf.shape(point.U)[0], tf.shape(point.V)[0])
        return self.optimizer.rms_rate * tf.sqrt(tf.cast(longest, point.S.dtype))


class _AdamWRule(AdamRule):
    """AdamW for the layers that Muon excludes, in units of Muon's learning rate."""

    def __init__(self, optimizer):
        super().__init__(optimizer, "adam_")

    @property
    def weight_decay(self):
        return self.optimizer.adam_weight_decay

    def direction(self, gradient, state, point, learning_rate, step):
        unit = self.step_size(self.optimizer.adam_lr_ratio, step)
        direction, state = super().direction(gradient, state, point, learning_rate, step)
        return direction._replace(
            tangent=direction.tangent.scaled(unit), gradient_weight=unit
        ), state


# Muon of Keras 3.10 to 3.12 raises with TensorFlow for any model; 3.13 added `rms_rate`.
RUNS = "rms_rate" in inspect.signature(getattr(keras.optimizers, "Muon", object)).parameters
if RUNS:
    register_rule(keras.optimizers.Muon)(MuonRule)
