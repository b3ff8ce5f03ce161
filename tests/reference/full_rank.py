"""A network of Keras's layers, and the same network with low-rank layers at full rank."""

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel
from keras_lowrank.keras_internals import all_layers, sublayers
from keras_lowrank.manifold.point import Point

STEP_SIZE = 0.2


def _network(conv, middle, last, normalization, channels):
    inputs = keras.Input((6, 5, channels))
    x = keras.layers.MaxPooling2D()(conv(inputs))
    x = middle(keras.layers.GlobalAveragePooling2D()(normalization(x)))
    return inputs, keras.layers.Dense(3)(last(x))


def full_rank_pair(integrator, channels, filters, units):
    """Returns `(low, full)`, a compiled LowRankModel and keras.Model with equal weights.

    The kernels are copied with an SVD. Every rank is min(n, m), and nothing is truncated.
    """
    dense = {"activation": "tanh", "bias_initializer": "normal"}
    middle, last = keras.layers.Dense(units, **dense), keras.layers.Dense(units, **dense)
    conv = keras.layers.Conv2D(filters, 2, activation="relu", bias_initializer="normal")
    kernels = (conv, middle, last)
    full = keras.Model(*_network(*kernels, keras.layers.BatchNormalization(), channels))
    ranks = [min(np.prod(layer.kernel.shape[:-1]), layer.kernel.shape[-1]) for layer in kernels]
    ranks = [int(rank) for rank in ranks]
    low_layers = (
        LowRankConv2D(filters, 2, activation="relu", rank=ranks[0]),
        LowRankDense(units, rank=ranks[1], **dense),
        LowRankDense(units, rank=ranks[2], **dense),
    )
    low = LowRankModel(*_network(*low_layers, keras.layers.BatchNormalization(), channels))
    for old, new in zip(full.layers, low.layers):
        if old in kernels:
            kernel = old.kernel.numpy().astype("float64")
            u, values, vt = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), full_matrices=False)
            parts = (tf.constant(part, tf.float32) for part in (u, np.diag(values), vt.T))
            new.factors.assign(Point(*parts))
            new.bias.assign(old.bias)
        else:
            new.set_weights(old.get_weights())
    low.compile(keras.optimizers.SGD(STEP_SIZE), "mse", integrator=integrator, truncation=0.0)
    full.compile(keras.optimizers.SGD(STEP_SIZE), "mse")
    return low, full


def compare_step_by_step(low, full, steps=12):
    """Trains both on the same batches and compares every weight after every step."""
    rng = np.random.default_rng(0)
    pairs = list(zip(_innermost(full), _innermost(low), strict=True))
    start = [old.kernel.numpy() for old, _ in pairs if hasattr(old, "kernel")]
    for _ in range(steps):
        x, y = (
            rng.standard_normal((16, *shape[1:])).astype("float32")
            for shape in (full.input_shape, full.output_shape)
        )
        low_loss, full_loss = low.train_on_batch(x, y), full.train_on_batch(x, y)
        np.testing.assert_allclose(low_loss, full_loss, rtol=1e-5)
        for old, new in pairs:
            if hasattr(old, "kernel"):
                np.testing.assert_allclose(new.kernel, old.kernel, atol=1e-5)
                assert (new.bias is None) == (old.bias is None)
                if old.bias is not None:
                    np.testing.assert_allclose(new.bias, old.bias, atol=1e-5)
            else:
                for one, two in zip(new.get_weights(), old.get_weights()):
                    np.testing.assert_allclose(one, two, atol=1e-5)
    end = [old.kernel.numpy() for old, _ in pairs if hasattr(old, "kernel")]
    assert all(np.abs(a - b).max() > 1e-2 for a, b in zip(start, end))


def _innermost(model):
    """The layers without sublayers."""
    return [one for one in all_layers(model) if not sublayers(one)]
