"""Networks for 32 x 32 images with three channels, with the layers of any method."""

import keras
import numpy as np
import tensorflow as tf

_HEADS = 4


@keras.saving.register_keras_serializable("cifar10")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer with TensorFlow's fused operation for images.

    On a CPU its training takes less than half the time of Keras's separate mean, variance and
    product.
    """

    def call(self, inputs, training=None):
        if not (training and self.trainable and inputs.shape.rank == 4):
            return super().call(inputs, training=training)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, data_format="NHWC"
        )
        count = tf.cast(tf.size(inputs) // tf.size(mean), variance.dtype)
        variance *= (count - 1.0) / count  # the variance of the batch, not the unbiased estimate
        for moving, new in (self.moving_mean, mean), (self.moving_variance, variance):
            moving.assign(moving * self.momentum + new * (1.0 - self.momentum))
        return outputs


def resnet20(layers, width=16):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(4.0, -2.0)(inputs)
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(BatchNormalization()(x))
    for stage in range(3):
        for block in range(3):
            x = _residual_block(layers, x, width * 2**stage, 2 if stage and not block else 1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return layers.model(inputs, keras.layers.Dense(10)(x))


def _residual_block(layers, x, filters, strides):
    options = {"padding": "same", "use_bias": False}
    y = layers.conv(filters, 3, strides=strides, **options)(x)
    y = keras.layers.ReLU()(BatchNormalization()(y))
    y = BatchNormalization()(layers.conv(filters, 3, **options)(y))
    if strides > 1:  # He et al., option A: a shortcut without parameters
        added = filters - x.shape[-1]
        x = keras.ops.average_pool(x, 1, strides)  # four times as fast as x[:, ::2, ::2]
        x = keras.ops.pad(x, [(0, 0)] * 3 + [(added // 2, added - added // 2)])
    return keras.layers.ReLU()(x + y)


def vgg(layers, width=32):
    inputs = keras.Input((32, 32, 3))
    x = _vgg_convolutions(layers, inputs, width, [(1, 2), (2, 2), (4, 2)])
    x = layers.dense(8 * width, use_bias=False)(x)
    x = keras.layers.ReLU()(BatchNormalization()(x))
    return layers.model(inputs, keras.layers.Dense(10)(x))


def vgg11(layers, width=32):
    """Configuration A of Simonyan and Zisserman (arXiv:1409.1556) with one dense layer."""
    inputs = keras.Input((32, 32, 3))
    x = _vgg_convolutions(layers, inputs, width, [(1, 1), (2, 1), (4, 2), (8, 2), (8, 2)])
    return layers.model(inputs, keras.layers.Dense(10)(x))


def vgg16(layers, width=64):
    """Configuration D of Simonyan and Zisserman with normalisation, as in arXiv:2205.13571."""
    inputs = keras.Input((32, 32, 3))
    x = _vgg_convolutions(layers, inputs, width, [(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)])
    for _ in range(2):
        x = layers.dense(64 * width, activation="relu")(x)
        x = keras.layers.Dropout(0.5)(x)
    return layers.model(inputs, keras.layers.Dense(10)(x))


def alexnet(layers, width=64):
    """The five convolutions and three dense layers of AlexNet, as in arXiv:2205.13571."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(4.0, -2.0)(inputs)
    x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    for filters, pooled in (None, True), (3, True), (6, False), (4, False), (4, True):
        if filters:
            x = layers.conv(filters * width, 3, padding="same", use_bias=False)(x)
        x = BatchNormalization()(x)
        x = keras.layers.ReLU()(keras.layers.MaxPooling2D()(x) if pooled else x)
    x = keras.layers.Flatten()(x)
    for _ in range(2):
        x = layers.dense(64 * width, activation="relu")(keras.layers.Dropout(0.2)(x))
    return layers.model(inputs, keras.layers.Dense(10)(x))


def _vgg_convolutions(layers, x, width, stages):
    """Stages of convolutions of `channels * width` filters, each pooled at its end, flattened.

    The first convolution is full rank.
    """
    x = keras.layers.Rescaling(4.0, -2.0)(x)
    conv = keras.layers.Conv2D
    for channels, count in stages:
        for _ in range(count):
            x = conv(channels * width, 3, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(BatchNormalization()(x))
            conv = layers.conv
        x = keras.layers.MaxPooling2D()(x)
    return keras.layers.Flatten()(x)


def vit(layers, width=128):
    """As in "Better plain ViT baselines" (arXiv:2205.01580): fixed positions, mean pooling."""
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
    split = keras.layers.Reshape((-1, _HEADS, x.shape[-1] // _HEADS))
    query, key, value = (split(layers.dense(x.shape[-1])(x)) for _ in range(3))
    mixed = keras.ops.dot_product_attention(query, key, value)
    return layers.dense(x.shape[-1])(keras.layers.Reshape(x.shape[1:])(mixed))


def _positions(height, width, channels):
    """Sines and cosines of row and column, with wavelengths from 2 pi to 2 pi 10,000."""
    rates = 1e-4 ** np.linspace(0.0, 1.0, channels // 4)
    rows, columns = (i.reshape(-1, 1) * rates for i in np.indices((height, width)))
    waves = [wave(angles) for angles in (rows, columns) for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=-1).astype("float32")
