# %% [markdown]
# # Several devices
#
# `fit` trains under `tf.distribute`. Two devices of the CPU stand in for two GPUs here; on a
# machine with GPUs leave out the next cell.

# %%
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_lowrank import LowRankDense, LowRankModel

(cpu,) = tf.config.list_physical_devices("CPU")
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)  # before anything else of TensorFlow

# %% [markdown]
# Make and compile the model under the scope of the strategy. All else stays as on one device; the
# batch size is that of all devices together.

# %%
digits = load_digits()
x, y = digits.data.astype("float32") / 16, digits.target


def train(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((64,))
        hidden = LowRankDense(128, rank=32, activation="relu", name="hidden")(inputs)
        outputs = keras.layers.Dense(10, activation="softmax", name="head")(hidden)
        model = LowRankModel(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", truncation=0.2)
    model.fit(x, y, batch_size=128, epochs=2, verbose=0)
    return model


both = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
print(both.ranks)

# %% [markdown]
# The step is that of one device on the whole batch, up to rounding:

# %%
one = train(tf.distribute.OneDeviceStrategy("CPU:0"))
print(one.ranks)
difference = np.abs(one.predict(x, verbose=0) - both.predict(x, verbose=0))
print(f"largest difference of a probability: {difference.max():.1e}")

# %% [markdown]
# [Distribution](../distribution.md) has several hosts, what travels between devices, and what is
# refused.
