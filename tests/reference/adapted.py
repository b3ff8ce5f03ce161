"""Small plain models for the tests of adapters, and a step or two of training."""

import keras
import numpy as np

from keras_lowrank import RankAdaptive

layers = keras.layers
rng = np.random.default_rng(0)
X = rng.standard_normal((64, 6)).astype("float32")


def dense(width=8):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(width, activation="relu", name="body")(inputs)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x))


def train(model, x=X, steps=3, optimizer=None, truncation=0.05, **kwargs):
    """A few eager steps towards what the model is not, with full steps among them."""
    optimizer = optimizer or keras.optimizers.Adam(0.02)
    integrator = RankAdaptive(adapt_every=2)
    model.compile(optimizer, "mse", truncation=truncation, integrator=integrator, **kwargs)
    y = np.sin(7 * np.arange(np.prod(model(x).shape))).reshape(model(x).shape)
    return model.fit(x, y, batch_size=len(x), epochs=steps, verbose=0).history["loss"]


def outputs(model, x=X):
    return np.asarray(model(x))
