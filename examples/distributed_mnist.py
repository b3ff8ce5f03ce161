"""A low-rank network on MNIST, trained by several workers (MultiWorkerMirroredStrategy).

    python examples/distributed_mnist.py --workers 2     # two processes on this host, 127.0.0.1

On several hosts, run it once on each. TF_CONFIG lists the addresses of all, and the index of this
one:

    TF_CONFIG='{"cluster": {"worker": ["host0:12345", "host1:12345"]},
                "task": {"type": "worker", "index": 0}}' python examples/distributed_mnist.py

Every worker needs the data set at --data_dir, and trains on all GPUs of its host or on the CPU.
The batch size is that of all workers together. The first worker prints the results and saves
model.keras in --output_dir.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import tensorflow as tf
from absl import flags

import image_data
import keras_lowrank
import results

flags.adopt_module_key_flags(image_data)
WORKERS = flags.DEFINE_integer(
    "workers", 2, "Processes to start on this host; with TF_CONFIG set, none.", lower_bound=1
)
EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch of all.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Of SGD, momentum 0.9.", lower_bound=0.0)
TOLERANCE = flags.DEFINE_float("tolerance", 0.1, "Truncation tolerance.", 0.0, 1.0)
WIDTH = flags.DEFINE_integer("width", 784, "Neurons of each hidden layer.", lower_bound=1)
RANK = flags.DEFINE_integer("rank", 64, "The rank to start with.", lower_bound=1)
LIMIT = flags.DEFINE_integer("limit", None, "Train on that many images only.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "The same for all workers: they share the order of images.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/distributed_mnist", "Where the model goes.")


def start_workers(count):
    """Runs this program in `count` processes; returns the first exit status that is not 0."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    processes = []
    for index in range(count):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        processes.append(subprocess.Popen([sys.executable, *sys.argv], env=environment))
    try:
        return next((code for process in processes if (code := process.wait())), 0)
    finally:
        for process in processes:  # after a failure the others wait forever
            process.kill()


def build():
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(inputs)
    for _ in range(2):
        rank = min(RANK.value, WIDTH.value)
        x = keras_lowrank.LowRankDense(WIDTH.value, activation="relu", rank=rank)(x)
    return keras_lowrank.LowRankModel(inputs, keras.layers.Dense(10)(x))


def train(strategy):
    index = strategy.cluster_resolver.task_id or 0
    keras.utils.set_random_seed(SEED.value)
    training, test = image_data.load("mnist")
    with strategy.scope():
        model = build()
        model.compile(
            keras.optimizers.SGD(LEARNING_RATE.value, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            truncation=TOLERANCE.value,
        )
    model.fit(
        training.take(LIMIT.value).training_batches(BATCH_SIZE.value, SEED.value),
        validation_data=test.take(LIMIT.value).test_batches(),
        epochs=EPOCHS.value,
        verbose=0 if index else 2,
    )
    folder = pathlib.Path(OUTPUT_DIR.value) / (f"worker_{index}" if index else ".")
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    if not index:
        saved = model.compression().factored
        results.say(
            f"{strategy.num_replicas_in_sync} replicas, ranks {list(model.ranks.values())}, "
            f"{saved} weights; saved to {folder / 'model.keras'}"
        )


def main(_):
    if "TF_CONFIG" in os.environ:
        # TensorFlow needs the strategy before anything else.
        train(tf.distribute.MultiWorkerMirroredStrategy())
    else:
        sys.exit(start_workers(WORKERS.value))


if __name__ == "__main__":
    results.run(main)
