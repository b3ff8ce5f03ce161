"""Models in several replicas: what `distributed_training.py` draws from."""

import functools
import os

import keras
import numpy as np
import tensorflow as tf

import keras_lowrank as kl

BATCH_SIZE, UNITS = 16, 5


@functools.cache
def cluster():
    """The strategy of the cluster that this process is a worker of; before any operation."""
    return tf.distribute.MultiWorkerMirroredStrategy()


def start():
    """Takes part in a cluster, or makes four devices of the one; before any operation."""
    if "TF_CONFIG" in os.environ:
        cluster()
    else:
        (cpu,) = tf.config.list_physical_devices("CPU")
        four = [tf.config.LogicalDeviceConfiguration()] * 4
        tf.config.set_logical_device_configuration(cpu, four)


@functools.cache  # two strategies over the same devices get into each other's way
def strategy_of(count):
    """Two workers where this is one of them, so many devices elsewhere, none for 1."""
    if count == 1:
        return tf.distribute.get_strategy()
    if "TF_CONFIG" in os.environ:
        assert cluster().num_replicas_in_sync == count
        return cluster()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def problem(examples):
    """Inputs, targets and sample weights."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((examples, 20)), rng.uniform(0.2, 2.0, examples)
    matrix = rng.standard_normal((20, 6)) * [3.0, 2.0, 1.0, 0.5, 0.2, 0.1]
    y = np.tanh(0.3 * x @ matrix @ rng.standard_normal((6, UNITS)))
    return tuple(part.astype(keras.config.floatx()) for part in (x, y, weights))


def compiled(strategy, optimizer, truncation, **arguments):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((20,))
        penalty = keras.regularizers.L2(1e-3)
        x = kl.LowRankDense(30, "tanh", rank=8, kernel_regularizer=penalty)(inputs)
        x = kl.LowRankDense(24, "tanh", rank=10)(x)
        model = kl.LowRankModel(inputs, keras.layers.Dense(UNITS)(x))
        model.compile(
            optimizer(),
            "mse",
            metrics=["mae"],
            weighted_metrics=["mse"],
            truncation=truncation,
            **arguments,
        )
    return model


class RankOverTime(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.ranks = []

    def on_train_batch_end(self, batch, logs=None):
        self.ranks.append(tuple(self.model.ranks.values()))


def kernels(model):
    return [layer.kernel.numpy() for layer in low_rank(model)]


def low_rank(model):
    return [layer for layer in model.layers if isinstance(layer, kl.LowRankLayer)]


def copies(variable):
    """What each replica of this process holds of a variable."""
    value = getattr(variable, "value", variable)
    return [one.numpy() for one in getattr(value, "values", [value])]


def check_replicas_are_equal(model):
    """Bit for bit, in this process and, by a sum over all, between processes."""
    variables = [*model.variables, *model.optimizer.variables]
    for variable in variables:
        first, *others = copies(variable)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)
    if "TF_CONFIG" in os.environ:
        folder, task = os.environ["SHARED_FOLDER"], cluster().cluster_resolver.task_id
        np.savez(f"{folder}/{task}.npz", *[variable.numpy() for variable in variables])
        everyone_is_here()
        with np.load(f"{folder}/{1 - task}.npz") as other:
            for variable, name in zip(variables, other.files):
                np.testing.assert_array_equal(variable.numpy(), other[name], variable.path)
        everyone_is_here()


def everyone_is_here():
    def arrive():
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.ones([]))

    results = cluster().experimental_local_results(cluster().run(arrive))
    assert float(results[0]) == 2.0


def every(steps, name):
    """An integrator by its name in Keras, with a full step every so many steps."""
    return type(kl.integrators.get(name))(adapt_every=steps)


def momentum():
    return keras.optimizers.SGD(0.05, momentum=0.9)
