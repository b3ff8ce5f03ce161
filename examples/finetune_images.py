"""Fine-tuning of a convolutional network: all weights, the head, LoRA, and adapters.

A VGG-like network learns five classes of CIFAR-10, and is then adapted to the other five. Every row
trains from the same pretrained weights, and trains the last layer as a whole. Keras's `enable_lora`
is for Dense and EinsumDense alone: it leaves the convolutions as they are. Adapters change those,
too. Their ranks follow a tolerance, or a budget for the weights that are trained.

    python examples/finetune_images.py                    # half an hour on two cores
    python examples/finetune_images.py --seeds=3 --plot=loss.png
    python examples/finetune_images.py --width=8 --limit=2000 --pretraining=3 --epochs=3

Writes out/finetune_images/cifar10.json with every run and the rank of every adapter.
"""

import functools
import pathlib

import keras
import numpy as np
from absl import flags

import cifar10_networks
import finetuning
import image_data
import methods
import results

flags.adopt_module_key_flags(finetuning)
flags.adopt_module_key_flags(image_data)
flags.set_default(finetuning.LEARNING_RATE, 1e-3)
flags.set_default(finetuning.EPOCHS, 5)
# More than LoRA trains in the one layer that it has.
flags.set_default(finetuning.BUDGETS, ["5000", "10000", "20000"])
WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first layers.", lower_bound=1)
LIMIT = flags.DEFINE_integer(
    "limit", None, "Train on that many images of each five classes only.", lower_bound=1
)
PRETRAINING = flags.DEFINE_integer("pretraining", 8, "Epochs on the first five.", lower_bound=1)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/finetune_images", "Folder for the JSON.")


def build(weights=None):
    """The network, with the names of a new session: equal names in all rows."""
    keras.utils.clear_session()
    model = cifar10_networks.vgg(methods.FullRank(), WIDTH.value)
    if weights:
        model.set_weights(weights)
    return model


def half(split, first):
    """`(images, labels)` of the five classes from `first` on."""
    chosen = np.flatnonzero((split.labels >= first) & (split.labels < first + 5))[: LIMIT.value]
    return split.images[chosen].astype("float32") / 255.0, split.labels[chosen]


def starts():
    """A `Start` for each seed."""
    train, test = image_data.load("cifar10")
    others = half(train, 5), half(test, 5)
    for seed in range(finetuning.SEEDS.value):
        keras.utils.set_random_seed(seed)
        model = finetuning.compiled(build())
        model.fit(
            *half(train, 0),
            batch_size=finetuning.BATCH_SIZE.value,
            epochs=PRETRAINING.value,
            verbose=0,
        )
        make = functools.partial(build, model.get_weights())
        yield finetuning.Start(make, *others, head=[model.layers[-1].name])


def main(_):
    path = pathlib.Path(OUTPUT_DIR.value, "cifar10.json")
    title = "From five classes of CIFAR-10 to the other five"
    finetuning.compare(title, path, starts(), (WIDTH, LIMIT, PRETRAINING))


if __name__ == "__main__":
    results.run(main)
