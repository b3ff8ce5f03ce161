"""Blocks given by their rows against whole ones, and what training makes of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from reference.cases import few, partly_slow, seeds
from reference.embedding import built, cross_entropy, language_model
from reference.explosions import Explodes, assert_kept, state

from keras_lowrank import LowRankDense, LowRankEmbedding, LowRankModel, Parallel, RankAdaptive
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.tangent_vector import TangentVector

SGD = keras.optimizers.SGD
n, m = 30, 6


@st.composite
def slices(draw):
    """Rows with repeated indices, none at all among them, and the block that they are."""
    count, number = draw(st.integers(1, 12)), draw(st.integers(0, 20))
    rng = np.random.default_rng(draw(seeds))
    indices, rows = rng.integers(0, count, number), rng.standard_normal((number, 3))
    block = np.zeros((count, 3))
    np.add.at(block, indices, rows)
    given_rows = tf.IndexedSlices(tf.constant(rows), tf.constant(indices))
    return row_sparse.collected(given_rows, count), block, rng


@few
@given(slices())
def test_rows_are_the_block(case):
    rows, block, rng = case
    assert row_sparse.is_slices(rows) and rows.shape == block.shape
    assert len(set(rows.indices.numpy())) == len(rows.indices)
    whole = rng.standard_normal(block.shape)
    a, b = rng.standard_normal((2, 3, 2))
    for found, expected in (
        (row_sparse.dense(rows), block),
        (row_sparse.dense(row_sparse.scaled(rows, 2.0)), 2.0 * block),
        (row_sparse.plus(rows, tf.constant(whole)), block + whole),
        (row_sparse.plus(tf.constant(whole), rows), block + whole),
        (row_sparse.plus(rows, row_sparse.scaled(rows, 2.0)), 3.0 * block),
        (row_sparse.inner(rows, rows), block.T @ block),
        (row_sparse.inner(rows, tf.constant(whole)), block.T @ whole),
        (row_sparse.inner(tf.constant(whole), rows), whole.T @ block),
        (row_sparse.inner(rows, row_sparse.scaled(rows, 2.0)), 2.0 * block.T @ block),
        (row_sparse.combined(tf.constant(whole), a, rows, b), whole @ a + block @ b),
        (row_sparse.mean_squares(rows), np.mean(block**2, axis=1)),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    tangent = TangentVector(rows, tf.zeros([3, 3], tf.float64), tf.zeros([m, 3], tf.float64))
    np.testing.assert_allclose(tangent.squared_norm(), np.sum(block**2), atol=1e-12)


def test_adding_rows_leaves_what_they_are_added_to():
    variable = tf.Variable(tf.ones([4, 2]))
    rows = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([1]))

    @tf.function
    def add():
        return row_sparse.plus(variable.value(), rows)

    np.testing.assert_array_equal(add()[1], [2.0, 2.0])
    np.testing.assert_array_equal(variable, np.ones((4, 2)))


def network(first, inputs, integrator, optimizer):
    flat = keras.layers.Flatten(dtype="float64")(first)
    model = LowRankModel(inputs, keras.layers.Dense(5, dtype="float64")(flat))
    model.compile(optimizer, cross_entropy(), integrator=integrator, truncation=0.05)
    return model


def twins(integrator, optimizer, regularizer):
    """An embedding, and the same matrix behind indices written as unit vectors."""
    keras.utils.set_random_seed(1)
    ids = keras.Input((4,), dtype="int32")
    options = {"rank": 4, "dtype": "float64"}
    table = LowRankEmbedding(n, m, embeddings_regularizer=regularizer, **options)
    low = network(table(ids), ids, integrator(), optimizer())
    units = keras.Input((4, n), dtype="float64")
    kernel = LowRankDense(m, use_bias=False, kernel_regularizer=regularizer, **options)
    twin = network(kernel(units), units, integrator(), optimizer())
    table.S.assign(np.diag([1.0, 0.7, 0.5, 0.3]))
    twin.set_weights(low.get_weights())
    return low, twin, table, kernel


@pytest.mark.parametrize(
    "integrator, optimizer, regularizer",
    partly_slow(
        [
            (
                Parallel,
                lambda: SGD(0.3, clipnorm=0.2, loss_scale_factor=8.0),
                keras.regularizers.L2(1),
            ),
            (Parallel, lambda: keras.optimizers.Adam(0.02), None),
        ],
        [
            (RankAdaptive, lambda: SGD(0.1, momentum=0.8, nesterov=True), None),
            (Parallel, lambda: SGD(0.3, weight_decay=0.1, global_clipnorm=0.5), None),
            (Parallel, lambda: SGD(0.2, momentum=0.8, gradient_accumulation_steps=2), None),
            (Parallel, lambda: keras.optimizers.RMSprop(0.02), None),
        ],
    ),
    ids=["scale", "adam", "rank_adaptive", "decay", "accumulation", "rmsprop"],
)
def test_a_lookup_trains_as_the_product_with_unit_vectors(
    float64, integrator, optimizer, regularizer
):
    low, twin, table, kernel = twins(integrator, optimizer, regularizer)
    rng = np.random.default_rng(2)
    start = np.asarray(table.embeddings)
    for step in range(8):
        ids = rng.integers(0, 7, (8, 4))  # of 32 indices most come several times
        if step == 5:
            ids[:] = 3
        targets = rng.integers(0, 5, 8)
        losses = low.train_on_batch(ids, targets), twin.train_on_batch(np.eye(n)[ids], targets)
        np.testing.assert_allclose(*losses, rtol=1e-9)
        assert [*low.ranks.values()] == [*twin.ranks.values()]
        np.testing.assert_allclose(table.embeddings, kernel.kernel, atol=1e-9)
    assert np.abs(start - table.embeddings).max() > 1e-2


def test_uses_both_ways_train_as_whole_blocks_do(float64):
    """Where one table is looked up and projected back, its gradient is no longer a few rows."""
    kernels = []
    for takes_rows in (True, False):
        keras.utils.set_random_seed(1)
        layer = built(dtype="float64")
        model = language_model(layer)
        integrator = Parallel()
        integrator.takes_rows = takes_rows
        model.compile(SGD(0.2, momentum=0.8), cross_entropy(), integrator=integrator)
        rng = np.random.default_rng(3)
        for _ in range(5):
            ids = rng.integers(0, 9, (8, 4))
            model.train_on_batch(ids, np.roll(ids, 1, 1))
        kernels.append(np.asarray(layer.embeddings))
    np.testing.assert_allclose(*kernels, atol=1e-10)


@pytest.mark.parametrize("optimizer", partly_slow(["adam"], ["sgd"]))
def test_rows_that_are_not_finite_are_found_and_named(optimizer):
    inputs = keras.Input((4,), dtype="int32")
    x = LowRankEmbedding(n, m, rank=3, name="table")(inputs)
    x = Explodes(np.nan)(keras.layers.Rescaling(200.0)(x))
    model = LowRankModel(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    model.compile(optimizer, "mse")
    targets = np.zeros((2, 3), "float32")
    model.train_on_batch(np.zeros((2, 4)), targets)
    core = model.get_layer("table").S
    core.assign(1e6 * core.numpy())
    model._training.state.verify()  # the momenta of an assigned layer start anew
    before = state(model)
    with pytest.raises(FloatingPointError, match="in the gradient of layer 'table' at training"):
        model.train_on_batch(np.arange(8).reshape(2, 4), targets)
    assert_kept(model, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*doesn't support `jit_compile=True`")
def test_xla_is_given_whole_blocks():
    """It asks for shapes that are known, and how many rows a batch has is not."""
    losses = []
    for jit in (True, False):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,), dtype="int32")
        x = keras.layers.Flatten()(LowRankEmbedding(n, m, rank=3)(inputs))
        model = LowRankModel(inputs, keras.layers.Dense(5)(x))
        model.compile(SGD(1.0), cross_entropy(), jit_compile=jit)
        model.freeze_ranks()
        assert model.jit_compile == jit
        batch = np.arange(8).reshape(2, 4), np.array([1, 2])
        losses.append([model.train_on_batch(*batch) for _ in range(3)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
