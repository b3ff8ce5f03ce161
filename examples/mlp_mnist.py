"""A fully connected network on MNIST, low-rank beside full rank.

The network has four hidden layers of 784 neurons (784-784-784-784-784-10, after arXiv:2205.13571,
section 5.1). All but the last layer are low-rank. Both networks are trained with momentum and a
learning rate that falls to zero.

    python examples/mlp_mnist.py                           # tolerance 0.1, three seeds
    python examples/mlp_mnist.py --width 2048 --seeds 1
    python examples/mlp_mnist.py --nofull_rank             # the low-rank network only
    python examples/mlp_mnist.py --compression 0.85,0.9,0.95 --baselines two_factor

Writes to out/mlp_mnist: mlp_mnist.json (with every run and epoch), .csv (the table), .png and
_ranks.png (the ranks over the epochs).
"""

import keras
from absl import flags

import frontier
import image_data
import results
import training

_DEPTH = 4

flags.adopt_module_key_flags(frontier)
flags.adopt_module_key_flags(image_data)
flags.adopt_module_key_flags(training)
flags.set_default(training.TOLERANCE, ["0.1"])
flags.set_default(training.RANKS, ["128"] * _DEPTH)
flags.set_default(training.FULL_RANK, True)
flags.set_default(training.LEARNING_RATE, 0.05)
flags.set_default(training.MOMENTUM, 0.9)
flags.set_default(training.SCHEDULE, "cosine")
flags.register_validator("ranks", lambda ranks: len(ranks) == _DEPTH, "there are four of them")
WIDTH = flags.DEFINE_integer("width", 784, "Neurons of every hidden layer.", lower_bound=1)


def build(layers):
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(inputs)
    for _ in range(_DEPTH):
        x = layers.dense(WIDTH.value, activation="relu")(x)
    return layers.model(inputs, keras.layers.Dense(10)(x))


def main(_):
    title = f"784{f'-{WIDTH.value}' * _DEPTH}-10 on MNIST"
    training.run_experiment("mlp_mnist", title, build, image_data.load("mnist"))


if __name__ == "__main__":
    results.run(main)
