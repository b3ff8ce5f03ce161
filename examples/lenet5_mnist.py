"""LeNet5 on MNIST, trained low-rank from the first step.

The experiment of "Low-rank lottery tickets" (arXiv:2205.13571), section 5.1: the ranks follow the
tolerance, and the table has test accuracy, ranks and numbers of weights in evaluation and in
training. 430,500 weights at full rank, biases not counted. The last layer is low-rank where
`--ranks` has four entries.

    python examples/lenet5_mnist.py                        # four tolerances, three seeds
    python examples/lenet5_mnist.py --tolerance 0.15 --seeds 1 --epochs 2
    python examples/lenet5_mnist.py --full_rank            # and the full-rank network
    python examples/lenet5_mnist.py --flagfile examples/frontier.flags  # accuracy by size

Writes out/lenet5_mnist/lenet5_mnist.json (with every run and epoch) and .csv (the table), and
lenet5_mnist.png: accuracy against weights saved, beside what was published.
"""

import keras
from absl import flags

import frontier
import mnist_data
import mnist_training
import results
from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel

flags.adopt_module_key_flags(mnist_data)
flags.adopt_module_key_flags(mnist_training)
flags.set_default(mnist_training.RANKS, ["20", "50", "100"])
flags.register_validator("ranks", lambda ranks: len(ranks) in (3, 4), "LeNet5 has three or four")


def build(low_rank):
    ranks = mnist_training.start_ranks()

    def conv(filters, rank):
        if low_rank:
            return LowRankConv2D(filters, 5, rank=rank, activation="relu")
        return keras.layers.Conv2D(filters, 5, activation="relu")

    def dense(units, rank, activation="relu"):
        if low_rank:
            return LowRankDense(units, rank=rank, activation=activation)
        return keras.layers.Dense(units, activation=activation)

    inputs = keras.Input((28, 28, 1))
    x = conv(20, ranks[0])(inputs)
    x = keras.layers.MaxPooling2D()(x)
    x = conv(50, ranks[1])(x)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = dense(500, ranks[2])(x)
    head = dense(10, ranks[3], None) if ranks[3:] else keras.layers.Dense(10)
    outputs = head(x)
    return LowRankModel(inputs, outputs) if low_rank else keras.Model(inputs, outputs)


def main(_):
    folder, rows = mnist_training.run_experiment("lenet5_mnist", "LeNet5 on MNIST", build)
    frontier.plot(folder / "lenet5_mnist.png", "LeNet5 on MNIST", rows)


if __name__ == "__main__":
    results.run(main)
