"""Decompositions of kernels, plain and weighted by the data, against direct formulas."""

from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from reference.cases import few, partly_slow, same, seeds

from keras_lowrank import from_keras
from keras_lowrank.convert import decomposition as ways
from keras_lowrank.convert.decomposition import Decomposition, is_small, singular_values


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def product(factors):
    u, s, v = factors
    return u @ s @ v.T


def weighted_best(matrix, covariance, rank):
    """The minimiser of ||C^{1/2} (W - W_r)||_F by the root and its inverse, as papers write it."""
    energies, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(energies)) @ vectors.T
    inverse = (vectors / np.sqrt(energies)) @ vectors.T
    left, values, right = np.linalg.svd(root @ matrix, full_matrices=False)
    return inverse @ (left[:, :rank] * values[:rank]) @ right[:rank], values


@few
@given(seeds, st.integers(1, 40), st.integers(1, 40), st.data())
def test_plain_is_the_truncated_svd(seed, n, m, data):
    matrix = draw(n, m, seed=seed)
    rank = data.draw(st.integers(1, min(n, m)))
    decomposition = Decomposition(matrix)
    u, s, v = decomposition.factors(rank)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(decomposition.values, values, atol=1e-6 * values[0])
    np.testing.assert_allclose(np.diag(s), values[:rank], atol=1e-6 * values[0])
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(v.T @ v, np.eye(rank), atol=1e-6)
    error = np.linalg.norm(matrix - product((u, s, v)))
    np.testing.assert_allclose(error, np.linalg.norm(values[rank:]), atol=1e-6 * values[0])


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize("faintest", [1e-3, 1e-6, 1e-9, 0.0])
def test_faint_and_vanishing_singular_values(shape, faintest):
    values = np.array([1.0] * 5 + [faintest] * 15)
    left, _ = np.linalg.qr(draw(30, 20))
    right, _ = np.linalg.qr(draw(20, 20, seed=1))
    matrix = left * values @ right.T
    matrix = matrix if shape[0] == 30 else matrix.T
    u, s, v = Decomposition(matrix).factors(20)
    np.testing.assert_allclose(product((u, s, v)), matrix, atol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(20), atol=1e-5)
    np.testing.assert_allclose(v.T @ v, np.eye(20), atol=1e-5)


def test_a_zero_kernel_has_orthonormal_factors():
    u, s, v = Decomposition(np.zeros((6, 4), "float32")).factors(3)
    assert not s.any()
    np.testing.assert_allclose(u.T @ u, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(v.T @ v, np.eye(3), atol=1e-12)


def test_a_tall_kernel_is_read_in_blocks():
    matrix = draw(9000, 6).astype("float32")
    decomposition = Decomposition(matrix)
    np.testing.assert_allclose(decomposition.values, np.linalg.svd(matrix, compute_uv=False), 1e-5)
    np.testing.assert_allclose(product(decomposition.factors(6)), matrix, atol=1e-5)


# The randomised way, at small ranks of large kernels.

SPECTRA = {
    "independent entries": None,
    "flat": lambda i: np.ones(len(i)),
    "a step": lambda i: np.where(i < 20, 1.0, 0.5),
    "1 / sqrt(i)": lambda i: (i + 1) ** -0.5,
    "1 / i": lambda i: (i + 1) ** -1.0,
    "1 / i^3": lambda i: (i + 1) ** -3.0,
    "exponential": lambda i: np.exp(-i / 10),
    "rank 5": lambda i: np.where(i < 5, 1.0, 0.0),
}


def kernel(n, m, spectrum, seed):
    matrix = draw(n, m, seed=seed)
    if spectrum is not None:
        k = min(n, m)
        left, right = np.linalg.qr(matrix[:, :k])[0], np.linalg.qr(draw(m, k, seed=seed + 1))[0]
        matrix = left * spectrum(np.arange(k)) @ right.T
    return (matrix / np.linalg.norm(matrix)).astype("float32")


# The hardest one, and one that falls.
SOME = ("independent entries", "1 / i")


@pytest.mark.parametrize(
    "spectrum", partly_slow(SOME, [name for name in SPECTRA if name not in SOME])
)
@settings(same, max_examples=2)
@given(seeds, st.integers(512, 640), st.integers(512, 640), st.data())
def test_a_small_rank_is_within_a_percent_of_the_least_error(spectrum, seed, n, m, data):
    rank = data.draw(st.integers(1, min(n, m) // 8))
    matrix = kernel(n, m, SPECTRA[spectrum], seed)
    with mock.patch.object(ways, "_LEAST", 512):  # kernels small enough for a quick reference
        one = Decomposition(matrix, rank=rank)
    assert len(one.values) == rank  # of those alone, so the randomised way was taken
    u, s, v = one.factors(rank)
    values = np.linalg.svd(matrix, compute_uv=False)
    least = np.linalg.norm(values[rank:])
    assert np.linalg.norm(matrix - product((u, s, v))) <= 1.01 * least + 1e-6
    assert u.dtype == v.dtype == np.float32
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=5e-6)
    np.testing.assert_allclose(v.T @ v, np.eye(rank), atol=5e-6)
    assert np.all(np.diff(one.values) <= 0) and np.all(one.values <= values[:rank] + 1e-5)


def test_the_randomised_way_is_for_small_ranks_and_always_the_same():
    assert is_small(128, (1024, 4096)) and is_small(1, (9000, 1024))
    assert not is_small(129, (1024, 4096)) and not is_small(1, (1023, 4096))
    matrix = kernel(1100, 1024, None, seed=0)
    first, second = (Decomposition(matrix, rank=9).factors(9) for _ in range(2))
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    assert len(Decomposition(matrix[:600], rank=9).values) == 600
    assert len(Decomposition(matrix[:, :600], np.eye(600), rank=9).values) == 600
    u, s, v = Decomposition(np.zeros((1024, 1100), "float32"), rank=9).factors(9)
    assert not s.any()
    np.testing.assert_allclose(u.T @ u, np.eye(9), atol=1e-6)
    np.testing.assert_allclose(v.T @ v, np.eye(9), atol=1e-6)


def test_a_model_is_converted_by_it_where_a_rank_is_asked_for(monkeypatch):
    monkeypatch.setattr(ways, "_LEAST", 512)
    taken = []
    leading = ways._leading
    monkeypatch.setattr(
        ways, "_leading", lambda *given: taken.append(given[0].shape) or leading(*given)
    )
    inputs = keras.Input((600,))
    x = layers.Dense(512, name="large")(inputs)
    model = keras.Model(inputs, layers.Dense(100, name="small")(x))
    model.get_layer("large").kernel.assign(kernel(600, 512, SPECTRA["1 / i"], seed=3))
    for rule in ({"energy": 0.5}, {"budget": 30000}, {"rank": 100}):
        from_keras(model, **rule)
    assert not taken
    low = from_keras(model, rank={"large": 20, "small": 5})
    assert taken == [(600, 512)] and low.ranks == {"large": 20, "small": 5}
    values = singular_values(np.asarray(model.get_layer("large").kernel))
    error = np.linalg.norm(model.get_layer("large").kernel - low.get_layer("large").kernel)
    np.testing.assert_allclose(error, np.linalg.norm(values[20:]), rtol=1e-2)


@few
@given(seeds, st.integers(1, 40), st.integers(1, 40))
def test_singular_values_alone(seed, n, m):
    matrix = draw(n, m, seed=seed)
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(singular_values(matrix), expected, atol=1e-6 * expected[0])


# Weighted by the data.


@few
@given(seeds, st.integers(2, 20), st.integers(2, 20), st.data())
def test_weighted_is_the_minimiser_of_the_output_error(seed, n, m, data):
    rank = data.draw(st.integers(1, min(n, m)))
    matrix, inputs = draw(n, m, seed=seed), draw(4 * n, n, seed=seed + 1) * np.linspace(0.2, 3, n)
    covariance = inputs.T @ inputs / len(inputs)
    decomposition = Decomposition(matrix, matrix.T @ covariance @ matrix)
    best, values = weighted_best(matrix, covariance, rank)
    slack = 1.01e-6 * np.sum(values**2)  # the regularization is part of what is minimised
    np.testing.assert_allclose(decomposition.values**2, values**2, atol=slack)
    error, least = (
        np.mean(np.sum((inputs @ (matrix - w)) ** 2, axis=1))
        for w in (product(decomposition.factors(rank)), best)
    )
    assert error <= least + slack
    tail = np.sum(decomposition.values[rank:] ** 2)
    np.testing.assert_allclose(error, tail, atol=slack)
    u, s, v = decomposition.factors(rank)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-10)
    np.testing.assert_allclose(v.T @ v, np.eye(rank), atol=1e-10)
    assert np.all(np.diff(np.diag(s)) <= 1e-12)


def test_directions_without_data_are_ordered_by_the_kernel():
    matrix = draw(8, 8)
    inputs = np.zeros((5, 8))
    inputs[:, 0] = 1.0  # one direction of eight
    outputs = inputs @ matrix
    decomposition = Decomposition(matrix, outputs.T @ outputs / 5)
    np.testing.assert_allclose(product(decomposition.factors(8)), matrix, atol=1e-12)
    approximation = product(decomposition.factors(3))
    np.testing.assert_allclose(inputs @ approximation, outputs, atol=1e-4)
    # What is left of the kernel in the other directions is its best approximation of rank 2.
    row = matrix[:1] / np.linalg.norm(matrix[0])
    rest = np.linalg.svd(matrix - matrix @ row.T @ row, compute_uv=False)
    error = np.linalg.norm(matrix - approximation)
    np.testing.assert_allclose(error, np.linalg.norm(rest[2:]), rtol=1e-2)


def test_a_moment_that_is_not_finite_raises():
    with pytest.raises(ValueError, match="second moment of the outputs must be finite"):
        Decomposition(np.eye(3), np.full((3, 3), np.inf))


@pytest.mark.parametrize(
    "conv",
    [
        {"strides": 2, "padding": "same"},
        {"padding": "valid"},
        {"padding": "same", "dilation_rate": 2},
    ],
)
def test_a_convolution_is_weighted_by_the_moment_of_its_patches(conv):
    keras.utils.set_random_seed(2)
    keras.config.set_dtype_policy("float64")
    images = draw(7, 9, 8, 3) * [1.0, 3.0, 0.1]
    inputs = keras.Input((9, 8, 3), dtype="float64")
    x = layers.Conv2D(10, (3, 2), **conv, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(6, name="dense")(layers.Flatten()(x)))
    low = from_keras(model, rank=3, only_smaller=False, data=images)
    kernel = np.asarray(model.get_layer("conv").kernel).reshape(-1, 10)
    patches = tf.image.extract_patches(
        images,
        [1, 3, 2, 1],
        [1, *model.get_layer("conv").strides, 1],
        [1, *model.get_layer("conv").dilation_rate, 1],
        conv["padding"].upper(),
    ).numpy()
    for name, matrix, rows in (
        ("conv", kernel, patches.reshape(-1, kernel.shape[0])),
        (
            "dense",
            np.asarray(model.get_layer("dense").kernel),
            np.asarray(keras.Model(inputs, x)(images)).reshape(7, -1),
        ),
    ):
        received = np.asarray(low.get_layer(name).kernel).reshape(matrix.shape)
        covariance = rows.T @ rows / len(rows)
        # Made invertible for the direct formula: there are fewer rows than columns.
        ridge = 1e-6 * np.trace(matrix.T @ covariance @ matrix) / np.sum(matrix**2)
        best, _ = weighted_best(matrix, covariance + ridge * np.eye(len(covariance)), 3)
        np.testing.assert_allclose(received, best, atol=1e-6)


# The ways to give data.


def network():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    x = layers.Dense(20, activation="relu", name="hidden")(layers.Add()([a, b]))
    return keras.Model([a, b], layers.Dense(3, name="head")(x))


class Batches(keras.utils.PyDataset):
    def __init__(self, inputs):
        super().__init__()
        self._inputs = inputs

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(20 * index, 20 * (index + 1))
        return tuple(one[part] for one in self._inputs), np.zeros(20)


def test_every_kind_of_data_is_streamed():
    keras.utils.set_random_seed(3)
    model = network()
    inputs = [draw(40, 6).astype("float32"), draw(40, 6, seed=1).astype("float32") * 3]
    targets = np.zeros(40)
    pairs = tf.data.Dataset.from_tensor_slices((tuple(inputs), targets)).batch(7)
    kinds = {
        "arrays": inputs,
        "data set": pairs,
        "without targets": pairs.map(lambda x, y: (x,)),
        "PyDataset": Batches(inputs),
    }
    kernels = {
        name: from_keras(model, rank=2, data=data).get_layer("hidden").kernel
        for name, data in kinds.items()
    }
    for kernel in kernels.values():
        np.testing.assert_allclose(kernel, kernels["arrays"], atol=1e-4)
    plain = from_keras(model, rank=2).get_layer("hidden").kernel
    assert np.abs(plain - kernels["arrays"]).max() > 0.05
    with pytest.raises(ValueError, match="`data` must hold at least one batch"):
        from_keras(model, rank=2, data=pairs.take(0))


def test_the_layers_outputs_are_closer_than_those_of_the_plain_svd():
    keras.utils.set_random_seed(4)
    model = network()
    scales = np.array([10, 5, 1, 0.1, 0.1, 0.1], "float32")
    inputs = [draw(200, 6).astype("float32") * scales, np.zeros((200, 6), "float32")]

    def error(**arguments):
        low = from_keras(model, rank=2, include="hidden", **arguments)
        return float(np.linalg.norm(low(inputs) - model(inputs)))

    assert error(data=inputs) < 0.5 * error()
