"""A layer with gradients that are not finite, and a check that such a step changes nothing."""

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable("keras_lowrank_tests_faults")
class Explodes(keras.layers.Layer):
    """The identity, whose gradient is not finite if an input is above 100."""

    def __init__(self, value=np.inf, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def call(self, inputs):
        @tf.custom_gradient
        def apply(x):
            bad = tf.reduce_any(x > 100.0)
            return tf.identity(x), lambda d: tf.where(bad, d * self.value, d)

        return apply(inputs)


def state(model):
    """All variables that a step may change, as bytes."""
    return {
        v.path: v.numpy().tobytes()
        for v in (*model.variables, *model.optimizer.variables)
        if not any(v is metric for metric in model.metrics_variables)
    }


def assert_kept(model, before):
    after = state(model)
    assert after.keys() == before.keys()
    assert [path for path in before if after[path] != before[path]] == []
