"""LeNet5 on MNIST, trained low-rank from the first step.

The experiment of "Low-rank lottery tickets" (arXiv:2205.13571), section 5.1. The tolerance decides
the ranks. The table has test accuracy, ranks, and numbers of weights in evaluation and in training.
At full rank there are 430,500 weights without biases. With four entries in `--ranks`, the last
layer is low-rank too.

    python examples/lenet5_mnist.py                        # four tolerances, three seeds
    python examples/lenet5_mnist.py --tolerance 0.15 --seeds 1 --epochs 2
    python examples/lenet5_mnist.py --full_rank            # and the full-rank network
    python examples/lenet5_mnist.py --flagfile examples/frontier.flags  # accuracy by size
    python examples/lenet5_mnist.py --baselines two_factor,svd_finetune

Writes out/lenet5_mnist/lenet5_mnist.json (with every run and epoch) and .csv (the table), and
lenet5_mnist.png: accuracy against weights saved, beside published results.
"""

import keras
from absl import flags

import frontier
import image_data
import results
import training

flags.adopt_module_key_flags(frontier)
flags.adopt_module_key_flags(image_data)
flags.adopt_module_key_flags(training)
flags.set_default(training.RANKS, ["20", "50", "100"])
flags.register_validator("ranks", lambda ranks: len(ranks) in (3, 4), "LeNet5 has three or four")


def build(layers):
    inputs = keras.Input((28, 28, 1))
    x = layers.conv(20, 5, activation="relu")(inputs)
    x = keras.layers.MaxPooling2D()(x)
    x = layers.conv(50, 5, activation="relu")(x)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = layers.dense(500, activation="relu")(x)
    dense = layers.dense if len(training.start_ranks()) == 4 else keras.layers.Dense
    return layers.model(inputs, dense(10)(x))


def main(_):
    training.run_experiment("lenet5_mnist", "LeNet5 on MNIST", build, image_data.load("mnist"))


if __name__ == "__main__":
    results.run(main)
