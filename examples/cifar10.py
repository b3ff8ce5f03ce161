"""ResNet20, VGG, AlexNet and a vision transformer on CIFAR-10, low-rank beside full rank.

The first convolution and the last layer stay full rank; in the transformer, which reads patches,
only the last layer does. The optimizer is momentum, Adam or Muon, with a learning rate that falls
to zero. The ranks meet the budget after a quarter of the training. Images are flipped and shifted
at random.

    python examples/cifar10.py --full_rank                 # ResNet20 (He et al. 2016, section 4.2)
    python examples/cifar10.py --epochs 12 --compression 0.6 --flagfile examples/resnet20.flags
    python examples/cifar10.py --full_rank --network vgg   # 32-32-64-64-128-128-256, pooled thrice
    python examples/cifar10.py --full_rank --network vgg11 --flagfile examples/cifar10.flags
    python examples/cifar10.py --full_rank --network vit   # 4 blocks, 128 wide, on 8 x 8 patches
    python examples/cifar10.py --limit 5000 --epochs 3 --width 8     # a short run on a CPU

Writes out/cifar10_NETWORK/cifar10_NETWORK.json (with every run and epoch), .csv (the table) and
.png: accuracy against weights saved.
"""

import functools

from absl import flags

import cifar10_networks
import frontier
import image_data
import results
import training

flags.adopt_module_key_flags(frontier)
flags.adopt_module_key_flags(image_data)
flags.adopt_module_key_flags(training)
flags.set_default(training.COMPRESSION, ["0.6", "0.85"])
flags.set_default(training.SEEDS, 1)
flags.set_default(training.MOMENTUM, 0.9)
flags.set_default(training.SCHEDULE, "cosine")
NETWORK = flags.DEFINE_enum(
    "network", "resnet20", ["resnet20", "vgg", "vgg11", "vgg16", "alexnet", "vit"], "The network."
)
WIDTH = flags.DEFINE_integer(
    "width",
    None,
    "Channels of the first layers: 16 in ResNet20, 32 in the VGG-like network and VGG11, 64 in "
    "VGG16 and AlexNet; of all of the transformer, 128, and there a multiple of 4.",
    lower_bound=1,
)
SHIFT = flags.DEFINE_integer(
    "shift", 4, "Pixels by which training images are shifted at most, each way.", lower_bound=0
)
NETWORKS = {
    "resnet20": ("ResNet20", cifar10_networks.resnet20),
    "vgg": ("A VGG-like network", cifar10_networks.vgg),
    "vgg11": ("VGG11", cifar10_networks.vgg11),
    "vgg16": ("VGG16", cifar10_networks.vgg16),
    "alexnet": ("AlexNet", cifar10_networks.alexnet),
    "vit": ("A vision transformer", cifar10_networks.vit),
}


def main(_):
    label, network = NETWORKS[NETWORK.value]
    title = f"{label} on CIFAR-10"
    width = {"width": WIDTH.value} if WIDTH.value else {}
    if width:
        title += f", width {WIDTH.value}"

    def build(layers):
        return network(layers, **width)

    augment = functools.partial(image_data.flip_and_shift, reach=SHIFT.value)
    splits = image_data.load("cifar10")
    training.run_experiment(f"cifar10_{NETWORK.value}", title, build, splits, augment)


if __name__ == "__main__":
    results.run(main)
