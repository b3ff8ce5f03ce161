"""ResNet-50 and VGG16 of Keras on ImageNet, low-rank beside full rank.

The first convolution and the last layer stay full rank. ImageNet is the set `imagenet2012` of
tensorflow-datasets, which names the archives to download by hand and the folder to put them in.
From scratch, or from trained weights: each row is then cut to its tolerance or size by SVD, and
trained on.

    python examples/imagenet.py --full_rank                # ResNet-50 from scratch, tolerance 0.1
    python examples/imagenet.py --network vgg16 --learning_rate 0.01 --full_rank
    python examples/imagenet.py --weights imagenet --compression 0.5 --epochs 10 --learning_rate .01
    python examples/imagenet.py --dataset imagenette --size 64 --epochs 5    # a short run

Writes out/imagenet_NETWORK/imagenet_NETWORK.json (with every run and epoch), .csv (the table: top
1, top 5, weights saved) and .png.
"""

import pathlib

import keras
from absl import flags

import frontier
import image_data
import photographs
import results
import training

flags.adopt_module_key_flags(frontier)
flags.adopt_module_key_flags(image_data)
flags.adopt_module_key_flags(training)
flags.set_default(training.TOLERANCE, ["0.1"])
flags.set_default(training.SEEDS, 1)
flags.set_default(training.EPOCHS, 90)
flags.set_default(training.BATCH_SIZE, 256)
flags.set_default(training.LEARNING_RATE, 0.1)
flags.set_default(training.MOMENTUM, 0.9)
flags.set_default(training.WEIGHT_DECAY, 1e-4)
flags.set_default(training.SCHEDULE, "cosine")
flags.set_default(training.WARMUP, 0.05)
NETWORK = flags.DEFINE_enum("network", "resnet50", ["resnet50", "vgg16"], "The network.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "Start from these: imagenet, which Keras downloads, or a file of Keras."
)
DATASET = flags.DEFINE_string(
    "dataset", "imagenet2012", "The set of tensorflow-datasets, with the split `validation`."
)
SIZE = flags.DEFINE_integer("size", 224, "Pixels of the images, each way.", lower_bound=32)
flags.register_multi_flags_validator(
    ["weights", "baselines"],
    lambda values: not (values["weights"] and values["baselines"]),
    "baselines start from scratch, without --weights",
)
NETWORKS = {
    "resnet50": ("ResNet-50", keras.applications.ResNet50),
    "vgg16": ("VGG16", keras.applications.VGG16),
}


def whole(classes):
    """The network of Keras, on images in [0, 1].

    Raises:
        SystemExit: there are no such weights, or not for this network; one line.
    """
    inputs = keras.Input((SIZE.value, SIZE.value, 3))
    x = keras.applications.imagenet_utils.preprocess_input(255.0 * inputs, mode="caffe")
    try:
        return NETWORKS[NETWORK.value][1](
            weights=WEIGHTS.value, input_tensor=x, classes=classes, classifier_activation=None
        )
    except Exception as error:  # of many classes: network, file, shapes
        if not WEIGHTS.value:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SystemExit(f"--weights {WEIGHTS.value} cannot be used: {reason[:200]}") from None


def main(_):
    splits = photographs.load(DATASET.value, SIZE.value)
    classes = splits[0].builder.info.features["label"].num_classes
    title = f"{NETWORKS[NETWORK.value][0]} on {DATASET.value}, {SIZE.value} pixels"
    if WEIGHTS.value:
        title += f", from the weights {pathlib.Path(WEIGHTS.value).name}"

    def build(layers):
        model = whole(classes)
        return layers.convert(model) if WEIGHTS.value else layers.rebuild(model)

    training.run_experiment(
        f"imagenet_{NETWORK.value}", title, build, splits, photographs.random_part, top5=True
    )


if __name__ == "__main__":
    results.run(main)
