"""ResNet20 and a VGG-like network on CIFAR-10, low-rank against full-rank trained the same way.

All kernels are low-rank but those of the first convolution, which has three channels to read, and
of the last layer, which has ten units. Momentum, a learning rate that falls to zero, a budget of
weights that is met after 60% of the training; images flipped and shifted at random.

    python examples/cifar10.py --full_rank                 # ResNet20 (He et al. 2016, section 4.2)
    python examples/cifar10.py --full_rank --network vgg   # 32-32-64-64-128-128-256, pooled thrice
    python examples/cifar10.py --limit 5000 --epochs 3 --width 8     # a short run on a CPU

Writes out/cifar10_NETWORK/cifar10_NETWORK.json (with every run and epoch), .csv (the table) and
.png: accuracy against weights saved.
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
flags.set_default(training.COMPRESSION, ["60", "85"])
flags.set_default(training.SEEDS, 1)
flags.set_default(training.MOMENTUM, 0.9)
flags.set_default(training.SCHEDULE, "cosine")
NETWORK = flags.DEFINE_enum("network", "resnet20", ["resnet20", "vgg"], "The network.")
WIDTH = flags.DEFINE_integer(
    "width", None, "Channels of the first layers: 16 in ResNet20, 32 in VGG.", lower_bound=1
)


def resnet20(layers):
    width = WIDTH.value or 16
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(4.0, -2.0)(inputs)
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    for stage in range(3):
        for block in range(3):
            x = _residual_block(layers, x, width * 2**stage, 2 if stage and not block else 1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return layers.model(inputs, keras.layers.Dense(10)(x))


def _residual_block(layers, x, filters, strides):
    options = {"padding": "same", "use_bias": False}
    y = layers.conv(filters, 3, strides=strides, **options)(x)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
    y = keras.layers.BatchNormalization()(layers.conv(filters, 3, **options)(y))
    if strides > 1:  # He et al., option A: a shortcut without parameters
        added = filters - x.shape[-1]
        x = keras.ops.pad(x[:, ::2, ::2], [(0, 0)] * 3 + [(added // 2, added - added // 2)])
    return keras.layers.ReLU()(x + y)


def vgg(layers):
    width = WIDTH.value or 32
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(4.0, -2.0)(inputs)
    for stage in range(3):
        for number in range(2):
            first = stage == number == 0
            conv = keras.layers.Conv2D if first else layers.conv
            x = conv(width * 2**stage, 3, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.MaxPooling2D()(x)
    x = layers.dense(8 * width, use_bias=False)(keras.layers.Flatten()(x))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return layers.model(inputs, keras.layers.Dense(10)(x))


def main(_):
    build = {"resnet20": resnet20, "vgg": vgg}[NETWORK.value]
    title = f"{ {'resnet20': 'ResNet20', 'vgg': 'A VGG-like network'}[NETWORK.value] } on CIFAR-10"
    if WIDTH.value:
        title += f", width {WIDTH.value}"
    training.run_experiment(
        f"cifar10_{NETWORK.value}", title, build, "cifar10", image_data.flip_and_shift
    )


if __name__ == "__main__":
    results.run(main)
