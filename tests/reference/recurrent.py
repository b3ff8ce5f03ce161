"""Recurrent layers of Keras, and low-rank ones with the same weights."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankGRU, LowRankLSTM
from keras_lowrank.manifold.point import Point

LSTM, GRU = (LowRankLSTM, keras.layers.LSTM), (LowRankGRU, keras.layers.GRU)
KINDS = pytest.mark.parametrize("kind", [LSTM, GRU], ids=["lstm", "gru"])
N, UNITS, STEPS, BATCH = 5, 4, 3, 6
RANDOM = {"bias_initializer": "normal", "unit_forget_bias": False}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


X = draw(BATCH, STEPS, N)
MASK = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)


def options_for(kind, options):
    return {k: v for k, v in options.items() if kind is LSTM or k != "unit_forget_bias"}


def copy_kernels(cell, plain_cell):
    """Copies the kernels and the bias of a Keras cell to a low-rank cell at full rank."""
    for layers, kernel in (
        (cell.kernels, plain_cell.kernel),
        (cell.recurrent_kernels, plain_cell.recurrent_kernel),
    ):
        kernel = np.asarray(kernel, "float64")
        for layer, part in zip(layers, np.split(kernel, len(layers), axis=1)):
            u, values, vt = np.linalg.svd(part, full_matrices=False)
            layer.factors.assign(Point(u, np.diag(values), vt.T))
    if cell.bias is not None:
        cell.bias.assign(plain_cell.bias)


def ranks(stacked=True):
    width = UNITS if not stacked else 3 * UNITS
    return {"kernel": min(N, width), "recurrent_kernel": UNITS}


def pair(kind, shape=X.shape, stacked=True, **options):
    """Returns a low-rank layer at full rank and the Keras layer, with equal weights."""
    low, plain = kind
    options = options_for(kind, options)
    low = low(UNITS, rank=ranks(stacked), stacked=stacked, **options)
    plain = plain(UNITS, **options)
    low.build(shape)
    plain.build(shape)
    copy_kernels(low.cell, plain.cell)
    return low, plain
