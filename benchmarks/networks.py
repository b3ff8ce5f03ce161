"""The networks that are measured, each in the same shape by every method."""

import keras

from keras_lowrank import (
    LowRankConv2D,
    LowRankDense,
    LowRankEmbedding,
    LowRankLSTM,
    LowRankModel,
)

FEATURES, CLASSES = 784, 10
LOW_RANK = ("parallel", "rank_adaptive", "fixed_rank")
# two_factor is plain low-rank Keras: a layer with r outputs and no bias, then the layer itself.
METHODS = ("two_factor", *LOW_RANK)


def dense(method, widths, rank=None, optimizer=None):
    """A fully connected network, compiled: all hidden layers by the method, the head dense."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((FEATURES,))
    for width in widths:
        if method in LOW_RANK:
            x = LowRankDense(width, rank=rank, activation="relu", **_bounds(rank))(x)
        else:
            if method == "two_factor":
                x = keras.layers.Dense(rank, use_bias=False)(x)
            x = keras.layers.Dense(width, activation="relu")(x)
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(x), optimizer)


def conv(method, layers, size=16, channels=256, rank=None):
    """A stack of 3 x 3 convolutions, as in the middle of VGG, compiled."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((size, size, channels))
    options = {"padding": "same", "activation": "relu"}
    for _ in range(layers):
        if method in LOW_RANK:
            x = LowRankConv2D(channels, 3, rank=rank, **options, **_bounds(rank))(x)
        elif method == "two_factor":
            x = keras.layers.Conv2D(rank, 3, padding="same", use_bias=False)(x)
            x = keras.layers.Conv2D(channels, 1, activation="relu")(x)
        else:
            x = keras.layers.Conv2D(channels, 3, **options)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(x))


def lenet5(method, rank=None):
    """LeNet5 of the paper on 28 x 28 images, every rank the given one or the largest there is."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((28, 28, 1))
    for filters in (20, 50):
        r = rank and min(rank, filters)
        if method in LOW_RANK:
            x = LowRankConv2D(filters, 5, rank=r, activation="relu", **_bounds(r))(x)
        elif method == "two_factor":
            x = keras.layers.Conv2D(r, 5, use_bias=False)(x)
            x = keras.layers.Conv2D(filters, 1, activation="relu")(x)
        else:
            x = keras.layers.Conv2D(filters, 5, activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    if method in LOW_RANK:
        x = LowRankDense(500, rank=rank, activation="relu", **_bounds(rank))(x)
    else:
        if method == "two_factor":
            x = keras.layers.Dense(rank, use_bias=False)(x)
        x = keras.layers.Dense(500, activation="relu")(x)
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(x))


def embedding(method, rank=None, vocabulary=200_000, width=512, steps=32, optimizer=None):
    """A table of vectors, their mean over a sequence, and the head, compiled."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((steps,), dtype="int32")
    if method in LOW_RANK:
        x = LowRankEmbedding(vocabulary, width, rank=rank, **_bounds(rank))(inputs)
    elif method == "two_factor":
        x = keras.layers.Embedding(vocabulary, rank)(inputs)
        x = keras.layers.Dense(width, use_bias=False)(x)
    else:
        x = keras.layers.Embedding(vocabulary, width)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(x), optimizer)


def lstm(method, rank=None, features=256, units=512, steps=64):
    """A sequence of vectors, one LSTM, its last state and the head, compiled."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((steps, features))
    if method in LOW_RANK:
        x = LowRankLSTM(units, rank=rank, **_bounds(rank))(x)
    elif method == "two_factor":
        # Both products with the inputs before the loop, as a LowRankLSTM has them.
        x = keras.layers.Dense(rank, use_bias=False)(x)
        x = keras.layers.RNN(_TwoFactorLSTMCell(units, rank))(keras.layers.Dense(4 * units)(x))
    else:
        x = keras.layers.LSTM(units)(x)
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(x))


class _TwoFactorLSTMCell(keras.layers.Layer):
    """What is left of an LSTM inside its loop, where the recurrent kernel is a product of two."""

    def __init__(self, units, rank):
        super().__init__()
        self.units, self.state_size = units, [units, units]
        self.left = keras.layers.Dense(rank, use_bias=False)
        self.right = keras.layers.Dense(4 * units, use_bias=False)

    def build(self, _):
        self.left.build((None, self.units))
        self.right.build((None, self.left.units))

    def call(self, inputs, states):
        h, c = states
        i, f, g, o = keras.ops.split(inputs + self.right(self.left(h)), 4, axis=-1)
        c = keras.ops.sigmoid(f) * c + keras.ops.sigmoid(i) * keras.ops.tanh(g)
        h = keras.ops.sigmoid(o) * keras.ops.tanh(c)
        return h, [h, c]


def _bounds(rank):
    # Bounds instead of `freeze_ranks`: the whole adaptive step is measured, its decision on the
    # rank too, and still the rank is the one that is named.
    return {"min_rank": rank, "max_rank": rank}


def _compiled(method, inputs, outputs, optimizer=None):
    low_rank = method in LOW_RANK
    model = LowRankModel(inputs, outputs) if low_rank else keras.Model(inputs, outputs)
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **({"integrator": method} if low_rank else {}),
    )
    return model
