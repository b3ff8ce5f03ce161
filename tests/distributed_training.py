"""Trainings under `tf.distribute`, in processes of their own: devices are chosen before TensorFlow.

Run as a program, `python distributed_training.py CHECK...`, it performs checks and prints what it
found; `python distributed_training.py workers CHECK` performs one in two worker processes.
"""

import itertools
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from replicas import (
    BATCH_SIZE,
    UNITS,
    RankOverTime,
    check_replicas_are_equal,
    cluster,
    compiled,
    every,
    everyone_is_here,
    kernels,
    momentum,
    problem,
    start,
    strategy_of,
)
from worker_processes import free_ports, in_workers

import keras_lowrank as kl


def check_agreement(count, integrator, steps, optimizer, bound, adapt_every=1, **arguments):
    """A run in replicas against one on one device, with a last batch that does not divide."""
    x, y, weights = problem(BATCH_SIZE * steps - 13)
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(BATCH_SIZE)
    rising = keras.optimizers.schedules.PolynomialDecay(0.0, int(0.6 * steps), 0.2)
    runs = {}
    for replicas in (1, count):
        ranks = RankOverTime()
        truncation = kl.Tolerance(rising)
        chosen = every(adapt_every, integrator)
        arguments["integrator"] = chosen
        model = compiled(strategy_of(replicas), optimizer, truncation, **arguments)
        history = model.fit(data, validation_data=data, verbose=0, callbacks=[ranks]).history
        runs[replicas] = model, history, ranks.ranks
    (alone, logs, ranks), (model, shared_logs, shared_ranks) = runs.values()
    assert ranks == shared_ranks
    changes = sum(one != two for one, two in itertools.pairwise(ranks))
    assert changes >= (0 if integrator == "fixed_rank" else 3 if steps == 100 else 1), ranks
    difference = max(
        np.abs(one - two).max() / np.abs(one).max()
        for one, two in zip(kernels(alone), kernels(model))
    )
    assert difference < bound, difference
    assert logs.keys() == shared_logs.keys()
    # Keras 3.8 reports other numbers under replicas, for any model.
    for name in () if keras.__version__.startswith("3.8.") else logs:
        np.testing.assert_allclose(logs[name], shared_logs[name], rtol=bound, err_msg=name)
    check_replicas_are_equal(model)
    precision = keras.config.floatx()
    print(f"{integrator}, {count} replicas, {steps} steps, {precision}: ", end="")
    print(f"{changes} changes of ranks, largest difference {difference:.1e}")


def agreement(count=2):
    keras.config.set_floatx("float64")
    check_agreement(count, "parallel", 100, momentum, 1e-5)
    check_agreement(count, "fixed_rank", 20, momentum, 1e-5)
    keras.config.set_floatx("float32")
    check_agreement(count, "rank_adaptive", 20, lambda: keras.optimizers.SGD(0.05), 1e-5, 4)


def a_few_steps():
    """Short enough for `make test`: one pass over a batch, and two.

    In float64: new directions are found in what is left of a gradient, where rounding grows.
    """
    keras.config.set_floatx("float64")
    for integrator, adapt_every in (("rank_adaptive", 2), ("fixed_rank", 1)):
        check_agreement(2, integrator, 5, momentum, 1e-5, adapt_every, run_eagerly=True)


def adapters():
    """Adapters beside a frozen base: two replicas find what one device does."""
    keras.config.set_floatx("float64")
    x, y, _ = problem(5 * BATCH_SIZE)
    found = []
    for count in (1, 2):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        with strategy_of(count).scope():
            inputs = keras.Input((20,))
            hidden = keras.layers.Dense(24, "tanh", name="hidden")(inputs)
            model = keras.Model(inputs, keras.layers.Dense(UNITS)(hidden))
            frozen = model.get_layer("hidden").kernel.numpy()
            added = kl.add_adapters(model, rank=2, max_rank=4, trainable="bias")
            chosen = every(2, "rank_adaptive")
            model.compile(momentum(), "mse", integrator=chosen, truncation=0.1, run_eagerly=True)
        model.fit(x, y, batch_size=BATCH_SIZE, shuffle=False, verbose=0)
        check_replicas_are_equal(model)
        found.append((added.ranks, model.get_weights()))
        kl.merge_adapters(model)
        assert np.abs(model.get_layer("hidden").kernel.numpy() - frozen).max() > 1e-3
    (ranks, alone), (other_ranks, two) = found
    assert ranks == other_ranks, (ranks, other_ranks)
    for one, other in zip(alone, two, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    print(f"adapters, 2 replicas: ranks {list(ranks.values())}")


def four():
    keras.config.set_floatx("float64")
    check_agreement(4, "rank_adaptive", 100, momentum, 1e-5)


def worker_agreement():
    agreement(2)
    keras.config.set_floatx("float64")
    check_agreement(2, "rank_adaptive", 100, lambda: keras.optimizers.Adam(0.01), 1e-5)


class OwnMind(kl.Truncation):
    """Another rank in every replica."""

    def rank(self, singular_values, current):
        return 2 + tf.distribute.get_replica_context().replica_id_in_sync_group


def disagreement(count=2):
    """Replicas that would choose other ranks, and so other factors and moments."""
    data = tf.data.Dataset.from_tensor_slices(problem(4 * BATCH_SIZE)).batch(BATCH_SIZE)
    for integrator in (every(2, "parallel"), every(1, "rank_adaptive")):
        model = compiled(strategy_of(count), momentum, OwnMind(), integrator=integrator)
        model.fit(data, verbose=0)
        assert set(model.ranks.values()) == {2}, model.ranks  # the first replica's
        check_replicas_are_equal(model)
    print("replicas of another mind: rank 2 in all")
    fault(count)


def fault(count):
    """A value that is not finite, in the part of one replica alone."""
    x, y, weights = problem(4 * BATCH_SIZE)
    model = compiled(strategy_of(count), momentum, 0.1)
    # The scales of charts are set before the first step.
    slots = [v for v in model.optimizer.variables if "scale" not in v.path]
    before = [v.numpy() for v in (*model.variables, *slots)]
    x[BATCH_SIZE - 1] = np.nan  # the last of the first batch
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(BATCH_SIZE)
    try:
        model.fit(data, verbose=0)
    except FloatingPointError as error:
        assert "training step 1." in str(error), error
    else:
        raise AssertionError("no error")
    for variable, value in zip((*model.variables, *slots), before):
        np.testing.assert_array_equal(variable.numpy(), value, variable.path)
    check_replicas_are_equal(model)
    model.fit(data.skip(1), verbose=0)  # and training can go on
    print("a fault in one replica: undone in all")


def mixed():
    """Loss scaling, clipping by the norm of sums, Adam, a sparse gradient, another strategy."""
    ids = np.random.default_rng(0).integers(0, 50, (6 * BATCH_SIZE, 3))
    _, y, _ = problem(len(ids))
    data = tf.data.Dataset.from_tensor_slices((ids, y)).batch(BATCH_SIZE)

    def train(strategy, policy, **arguments):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        with strategy.scope():
            inputs = keras.Input((3,), dtype="int32")
            x = keras.layers.Flatten()(keras.layers.Embedding(50, 8)(inputs))
            x = kl.LowRankDense(24, "tanh", rank=8)(x)
            model = kl.LowRankModel(inputs, keras.layers.Dense(UNITS, dtype="float32")(x))
            optimizer = keras.optimizers.Adam(0.01, global_clipnorm=0.1)
            model.compile(optimizer, "mse", truncation=0.2, **arguments)
        losses = model.fit(data, epochs=2, verbose=0).history["loss"]
        assert losses[1] < losses[0], losses
        return model

    one_device = tf.distribute.OneDeviceStrategy("CPU:1")
    alone = train(one_device, "float32")
    two = train(strategy_of(2), "float32")
    for one, other in zip(alone.get_weights(), two.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-5)
    check_replicas_are_equal(two)
    scaled = train(strategy_of(2), "mixed_float16")
    assert type(scaled.optimizer).__name__ == "LossScaleOptimizer"
    check_replicas_are_equal(scaled)
    print("OneDeviceStrategy, Embedding, Adam, global_clipnorm, mixed_float16")


def unreached():
    """What the loss does not reach stays as it is, and the rest is trained as on one device."""
    x, y, _ = problem(4 * BATCH_SIZE)

    def train(count, integrator):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        with strategy_of(count).scope():
            inputs = keras.Input((20,))
            outputs = [kl.LowRankDense(UNITS, rank=4)(inputs) for _ in range(2)]
            model = kl.LowRankModel(inputs, outputs)
            optimizer = keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1)
            model.compile(optimizer, ["mse", None], integrator=integrator, truncation=0.3)
        start = kernels(model)
        model.fit(x, y, batch_size=BATCH_SIZE, epochs=2, verbose=0)
        (moved, idle), (was, idle_was) = kernels(model), start
        np.testing.assert_array_equal(idle, idle_was)
        assert np.abs(moved - was).max() > 0.01
        return moved, model

    for integrator in ("parallel", "rank_adaptive", "fixed_rank"):
        (alone, _), (two, model) = (train(count, integrator) for count in (1, 2))
        np.testing.assert_allclose(two, alone, atol=1e-5, err_msg=integrator)
        check_replicas_are_equal(model)
        print(f"{integrator}: untouched")


class Counting(tf.distribute.ReductionToOneDevice):
    """Counts the numbers that one replica gives to sums."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def batch_reduce_implementation(self, reduce_op, value_destination_pairs, options):
        for value, _ in value_destination_pairs:
            (one, *_) = getattr(value, "values", [value])
            self.bytes += one.dtype.size * int(tf.size(one))
        return super().batch_reduce_implementation(reduce_op, value_destination_pairs, options)


def traffic():
    """What is summed in a step, measured, against the same network at full rank."""
    counting, (n, m, rank, heads) = Counting(), (512, 512, 16, 10)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=counting)
    x = np.random.default_rng(0).standard_normal((8, n)).astype("float32")
    y = np.ones((8, heads), "float32")

    def measure(model_class, dense, **arguments):
        with strategy.scope():
            inputs = keras.Input((n,))
            model = model_class(inputs, keras.layers.Dense(heads)(dense(inputs)))
            model.compile(momentum(), "mse", run_eagerly=True, **arguments)
        counting.bytes = 0
        model.fit(x, y, batch_size=8, verbose=0)
        return counting.bytes

    others = m + m * heads + heads
    full = measure(keras.Model, keras.layers.Dense(m))
    assert full == 4 * (n * m + others), full
    for integrator in ("parallel", "rank_adaptive", "fixed_rank"):
        arguments = {"integrator": integrator, "truncation": 0.0}
        low = measure(kl.LowRankModel, kl.LowRankDense(m, rank=rank), **arguments)
        sums = rank * (n + m + rank) + others
        scalars = low - 4 * sums
        assert 0 < scalars <= 4 * 40, (integrator, scalars)
        print(f"{integrator}: {low} bytes a step, {scalars} of them single numbers; full {full}")


def example():
    """The example's training on a few random images, in each of two workers."""
    folder = os.environ["SHARED_FOLDER"]
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
    from absl import flags

    import distributed_mnist
    import image_data

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 28, 28, 1)).astype("uint8")
    split = image_data.Split(images, rng.integers(0, 10, 40))
    image_data.load = lambda name: (split, split)
    arguments = ["--epochs=1", "--batch_size=16", "--width=32", "--rank=8"]
    flags.FLAGS(["distributed_mnist", *arguments, f"--output_dir={folder}"])
    distributed_mnist.train(cluster())
    everyone_is_here()
    saved = [f"{folder}/model.keras", f"{folder}/worker_1/model.keras"]
    first, second = (keras.saving.load_model(path).get_weights() for path in saved)
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)
    everyone_is_here()
    print("saved alike")


class InterruptedTrainingError(Exception):
    """What ends a training in the midst of an epoch."""


def backup():
    """A training that two workers broke off goes on, bit for bit, from what the first has saved."""
    data = tf.data.Dataset.from_tensor_slices(problem(7 * BATCH_SIZE)).batch(BATCH_SIZE)
    folder = pathlib.Path(os.environ["SHARED_FOLDER"])

    def train(name, *others):
        model = compiled(cluster(), momentum, 0.1)
        callback = kl.callbacks.BackupAndRestore(folder / name, save_freq=2)
        model.fit(data, epochs=3, verbose=0, callbacks=[*others, callback])
        everyone_is_here()
        return model.get_weights()

    def stop(batch, logs):
        steps.append(batch)
        if len(steps) == 12:  # the fifth batch of the second epoch
            raise InterruptedTrainingError

    steps = []
    whole = train("whole")
    try:
        train("broken", keras.callbacks.LambdaCallback(on_train_batch_end=stop))
    except InterruptedTrainingError:
        everyone_is_here()
    assert len(steps) == 12 and any((folder / "broken").iterdir())
    for one, other in zip(whole, train("broken"), strict=True):
        np.testing.assert_array_equal(one, other)
    everyone_is_here()
    print("went on alike")


def errors():
    """What is refused, and in which words."""

    def refused(words, function):
        try:
            function()
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")

    def accumulating():
        return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)

    strategy = strategy_of(2)
    refused("`gradient_accumulation_steps` must be", lambda: compiled(strategy, accumulating, 0.1))
    model = compiled(strategy, momentum, 0.1)
    batch = tuple(tf.constant(part[:BATCH_SIZE]) for part in problem(BATCH_SIZE))
    with strategy.scope():
        refused("must run in every replica", lambda: model.train_step(batch))
    model.steps_per_execution = 2
    refused(
        "`steps_per_execution` must be 1",
        lambda: model.fit(*batch[:2], batch_size=BATCH_SIZE, verbose=0),
    )
    ports = free_ports(3)
    cluster = tf.train.ClusterSpec(
        {name: [f"127.0.0.1:{port}"] for name, port in zip(("chief", "ps", "worker"), ports)}
    )
    servers = [
        tf.distribute.Server(cluster, job_name=name, task_index=0, protocol="grpc")
        for name in ("ps", "worker")
    ]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    parameter_server = tf.distribute.ParameterServerStrategy(resolver)
    refused("Received: ParameterServerStrategy", lambda: compiled(parameter_server, momentum, 0.1))
    print("refused", len(servers))


if __name__ == "__main__":
    if sys.argv[1] == "workers":
        print("\n".join(in_workers(__file__, sys.argv[2])))
    else:
        start()
        for check in sys.argv[1:]:
            globals()[check]()
