"""ResNet20, a VGG-like network and a vision transformer on CIFAR-10, beside their full-rank twins.

All kernels are low-rank but those of the first convolution, which has three channels to read, and
of the last layer, which has ten units; in the transformer the first one too, which reads patches.
Momentum, a learning rate that falls to zero, a budget of weights that is met after a quarter of the
training; images flipped and shifted at random.

    python examples/cifar10.py --full_rank                 # ResNet20 (He et al. 2016, section 4.2)
    python examples/cifar10.py --full_rank --network vgg   # 32-32-64-64-128-128-256, pooled thrice
    python examples/cifar10.py --full_rank --network vit   # 4 blocks, 128 wide, on 8 x 8 patches
    python examples/cifar10.py --limit 5000 --epochs 3 --width 8     # a short run on a CPU

Writes out/cifar10_NETWORK/cifar10_NETWORK.json (with every run and epoch), .csv (the table) and
.png: accuracy against weights saved.
"""

import keras
import numpy as np
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
NETWORK = flags.DEFINE_enum("network", "resnet20", ["resnet20", "vgg", "vit"], "The network.")
WIDTH = flags.DEFINE_integer(
    "width",
    None,
    "Channels of the first layers, 16 in ResNet20 and 32 in VGG; of all of the transformer, 128, "
    "and there a multiple of 4.",
    lower_bound=1,
)
HEADS = 4


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


def vit(layers):
    """As "Better plain ViT baselines" (arXiv:2205.01580): fixed positions, pooled by the mean."""
    width = WIDTH.value or 128
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(4.0, -2.0)(inputs)
    x = layers.conv(width, 4, strides=4)(x)
    x = keras.layers.Reshape((-1, width))(x) + _positions(*x.shape[1:])
    for _ in range(4):
        x = x + _attention(layers, keras.layers.LayerNormalization()(x))
        y = layers.dense(2 * width, activation="gelu")(keras.layers.LayerNormalization()(x))
        x = x + layers.dense(width)(y)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return layers.model(inputs, keras.layers.Dense(10)(x))


def _attention(layers, x):
    split = keras.layers.Reshape((-1, HEADS, x.shape[-1] // HEADS))
    query, key, value = (split(layers.dense(x.shape[-1])(x)) for _ in range(3))
    mixed = keras.ops.dot_product_attention(query, key, value)
    return layers.dense(x.shape[-1])(keras.layers.Reshape(x.shape[1:])(mixed))


def _positions(height, width, channels):
    """Sines and cosines of row and column, wavelengths from 2 pi to 2 pi 10,000."""
    rates = 1e-4 ** np.linspace(0.0, 1.0, channels // 4)
    rows, columns = (i.reshape(-1, 1) * rates for i in np.indices((height, width)))
    waves = [wave(angles) for angles in (rows, columns) for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=-1).astype("float32")


NETWORKS = {
    "resnet20": ("ResNet20", resnet20),
    "vgg": ("A VGG-like network", vgg),
    "vit": ("A vision transformer", vit),
}


def main(_):
    label, build = NETWORKS[NETWORK.value]
    title = f"{label} on CIFAR-10"
    if WIDTH.value:
        title += f", width {WIDTH.value}"
    training.run_experiment(
        f"cifar10_{NETWORK.value}", title, build, "cifar10", image_data.flip_and_shift
    )


if __name__ == "__main__":
    results.run(main)
