"""How far a step of an adaptive optimizer moves a kernel, beside the step that Keras takes."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankEmbedding, LowRankModel

STEPS = 12
OUTPUTS = 16


def bag_of_words(count):
    """Forty words in use, of `count`."""
    rng = np.random.default_rng(0)
    used = rng.permutation(count)[:40]
    x = np.zeros((STEPS, 32, count), "float32")
    x[:, :, used] = rng.random((STEPS, 32, 40)) < 0.3
    y = x[..., used] @ rng.standard_normal((40, OUTPUTS)).astype("float32")
    layers = [
        LowRankDense(OUTPUTS, rank=4, use_bias=False),
        keras.layers.Dense(OUTPUTS, use_bias=False),
    ]
    return x, y, layers


def tokens(count):
    """Fifty tokens in use, of `count`, ten of them seldom.

    None twice in a batch: Keras then adds the squares of parts of a gradient, not that of the sum.
    """
    rng = np.random.default_rng(1)
    used = rng.permutation(count)[:50]
    often, seldom = used[:40], used[40:]
    draws = [(rng.permutation(often)[:30], rng.permutation(seldom)[:2]) for _ in range(STEPS)]
    x = np.array([np.concatenate(draw).reshape(4, 8) for draw in draws])
    table = rng.standard_normal((count, OUTPUTS)).astype("float32")
    layers = [LowRankEmbedding(count, OUTPUTS, rank=4), keras.layers.Embedding(count, OUTPUTS)]
    return x, table[x].astype("float32"), layers


def lengths(layer, optimizer, x, y):
    """The norm of what each step makes of the kernel, and of the rows that are not used."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[2:], dtype=x.dtype)
    model = (LowRankModel if hasattr(layer, "rank") else keras.Model)(inputs, layer(inputs))
    model.compile(optimizer, "mse", run_eagerly=True)

    def read():
        return np.array(layer.kernel if isinstance(layer, LowRankDense) else table())

    def table():
        return layer.embeddings if hasattr(layer, "embeddings") else layer.kernel

    kernels = [read()]
    for batch in zip(x, y):
        model.train_on_batch(*batch)
        kernels.append(read())
    return np.linalg.norm(np.diff(kernels, axis=0), axis=(1, 2))


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.RMSprop])
@pytest.mark.parametrize("data", [bag_of_words, tokens])
def test_a_step_is_about_as_long_as_that_of_keras_whatever_rows_are_not_used(data, optimizer):
    for count in (60, 3000):
        x, y, layers = data(count)
        ours, keras_own = (lengths(layer, optimizer(1e-3), x, y) for layer in layers)
        ratios = ours / keras_own
        assert ratios.min() > 0.6 and ratios.max() < 1.5, ratios
