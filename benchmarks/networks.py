"""The networks of the benchmarks, with the layers of every method."""

import functools

import keras

from keras_lowrank import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv2DTranspose,
    LowRankConv3D,
    LowRankDense,
    LowRankEmbedding,
    LowRankLSTM,
    LowRankModel,
    LowRankMultiHeadAttention,
)

FEATURES, CLASSES = 784, 10
LOW_RANK = ("parallel", "rank_adaptive", "fixed_rank")
# two_factor is plain Keras: a layer with r outputs and no bias, then the layer itself; three layers
# for a Tucker-2 kernel.
METHODS = ("two_factor", *LOW_RANK)


def dense(method, widths, rank=None, optimizer=None):
    """A compiled fully connected network: hidden layers of the method, and a dense head."""
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


_SPATIAL = functools.partial(LowRankConv2D, factorization="spatial")
_TUCKER = functools.partial(LowRankConv2D, factorization="tucker")

# By name: the Keras layer, the low-rank layer, the spatial extents of the inputs.
CONVOLUTIONS = {
    "conv": (keras.layers.Conv2D, LowRankConv2D, (16, 16)),
    "conv_spatial": (keras.layers.Conv2D, _SPATIAL, (16, 16)),
    "conv_tucker": (keras.layers.Conv2D, _TUCKER, (16, 16)),
    "conv1d": (keras.layers.Conv1D, LowRankConv1D, (256,)),
    "conv3d": (keras.layers.Conv3D, LowRankConv3D, (6, 6, 6)),
    "conv_transpose": (keras.layers.Conv2DTranspose, LowRankConv2DTranspose, (16, 16)),
}


def conv(method, layers, name="conv", channels=256, rank=None):
    """A compiled stack of convolutions of size 3, as in the middle of VGG."""
    keras.utils.set_random_seed(0)
    full_rank, low_rank, extents = CONVOLUTIONS[name]
    inputs = x = keras.Input((*extents, channels))
    options = {"padding": "same", "activation": "relu"}
    for _ in range(layers):
        if method in LOW_RANK:
            x = low_rank(channels, 3, rank=rank, **options, **_bounds(rank))(x)
        elif method == "two_factor":
            first, last = ((3, 1), (1, 3)) if name == "conv_spatial" else (3, 1)
            if name == "conv_tucker":  # three layers
                x = full_rank(rank, 1, use_bias=False)(x)
            x = full_rank(rank, first, padding="same", use_bias=False)(x)
            second = keras.layers.Conv2D if name == "conv_transpose" else full_rank
            x = second(channels, last, **options)(x)
        else:
            x = full_rank(channels, 3, **options)(x)
    pooled = keras.ops.mean(x, axis=list(range(1, len(x.shape) - 1)))
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(pooled))


def lenet5(method, rank=None):
    """The paper's LeNet5 on 28 x 28 images, with every rank the given or the largest one.

    Without a rank, the ranks adapt.
    """
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


class _TwoFactorAttention(keras.layers.MultiHeadAttention):
    """Keras's attention with two plain layers for each projection."""

    def __init__(self, rank, *arguments, **options):
        super().__init__(*arguments, **options)
        self.rank = rank

    def __setattr__(self, name, value):
        if type(value) is keras.layers.EinsumDense:  # as Keras makes each in `build`
            inputs, kernel, outputs = value.equation.replace("->", ",").split(",")
            free = "".join(axis for axis in inputs if axis in outputs)
            rows = "".join(axis for axis in kernel if axis not in outputs)
            columns = "".join(axis for axis in kernel if axis in outputs)
            first = keras.layers.EinsumDense(f"{inputs},{rows}z->{free}z", (None, self.rank))
            config = {**value.get_config(), "equation": f"{free}z,z{columns}->{outputs}"}
            value = keras.Sequential([first, keras.layers.EinsumDense.from_config(config)])
        super().__setattr__(name, value)


def attention(method, layers, length=128, width=512, heads=8, rank=None):
    """A compiled stack of self-attention with residuals, as in a transformer."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((length, width))
    for _ in range(layers):
        arguments = {"num_heads": heads, "key_dim": width // heads}
        if method in LOW_RANK:
            attend = LowRankMultiHeadAttention(**arguments, rank=rank, **_bounds(rank))
        elif method == "two_factor":
            attend = _TwoFactorAttention(rank, **arguments)
        else:
            attend = keras.layers.MultiHeadAttention(**arguments)
        x = x + attend(x, x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(x))


def embedding(method, rank=None, vocabulary=200_000, width=512, steps=32, optimizer=None):
    """A compiled model: an embedding, the mean over the sequence, and a dense head."""
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
    """A compiled model: one LSTM over a sequence of vectors, and a dense head."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((steps, features))
    if method in LOW_RANK:
        x = LowRankLSTM(units, rank=rank, **_bounds(rank))(x)
    elif method == "two_factor":
        # Both products with the inputs run before the loop, as in a LowRankLSTM.
        x = keras.layers.Dense(rank, use_bias=False)(x)
        x = keras.layers.RNN(_TwoFactorLSTMCell(units, rank))(keras.layers.Dense(4 * units)(x))
    else:
        x = keras.layers.LSTM(units)(x)
    return _compiled(method, inputs, keras.layers.Dense(CLASSES)(x))


class _TwoFactorLSTMCell(keras.layers.Layer):
    """The loop of an LSTM, whose recurrent kernel is a product of two matrices."""

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


def resnet20():
    """He et al. (arXiv:1512.03385), section 4.2, on 32 x 32 images, at full rank."""
    inputs = keras.Input((32, 32, 3))
    options = {"padding": "same", "use_bias": False}
    norm = keras.layers.BatchNormalization
    x = norm()(keras.layers.Conv2D(16, 3, **options)(inputs))
    for filters in (16, 32, 64):
        for block in range(3):
            strides = 1 if block or filters == 16 else 2
            y = norm()(keras.layers.Conv2D(filters, 3, strides=strides, **options)(x))
            y = norm()(keras.layers.Conv2D(filters, 3, **options)(keras.layers.ReLU()(y)))
            if strides > 1:
                x = keras.layers.AveragePooling2D(2)(x)
                x = keras.layers.Concatenate()([x, x])
            x = keras.layers.ReLU()(x + y)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def resnet50():
    return keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=CLASSES, classifier_activation=None
    )


def bert(layers=6, width=256, length=128):
    """A small encoder as in BERT (arXiv:1810.04805), at full rank."""
    inputs = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(8000, width)(inputs)
    for _ in range(layers):
        attend = keras.layers.MultiHeadAttention(num_heads=4, key_dim=width // 4)
        x = keras.layers.LayerNormalization()(x + attend(x, x))
        y = keras.layers.Dense(width)(keras.layers.Dense(4 * width, activation="gelu")(x))
        x = keras.layers.LayerNormalization()(x + y)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


# Common networks, at full rank and not compiled.
WHOLE = {
    "resnet20": resnet20,
    "resnet50": resnet50,
    "bert": bert,
    "dense": lambda: keras.Model(*_dense_layers([2048] * 4)),
}


def _dense_layers(widths):
    inputs = x = keras.Input((FEATURES,))
    for width in widths:
        x = keras.layers.Dense(width, activation="relu")(x)
    return inputs, keras.layers.Dense(CLASSES)(x)


def _bounds(rank):
    # Bounds instead of `freeze_ranks`, so that the measured step includes the decision on the rank.
    return {"min_rank": rank, "max_rank": rank} if rank else {}


def _compiled(method, inputs, outputs, optimizer=None):
    low_rank = method in LOW_RANK
    model = LowRankModel(inputs, outputs) if low_rank else keras.Model(inputs, outputs)
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **({"integrator": method} if low_rank else {}),
    )
    return model
