"""Sparse and ragged tensors: every layer reads them as Keras's does, or refuses them by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv2DTranspose,
    LowRankConv3D,
    LowRankDense,
    LowRankEinsumDense,
    LowRankEmbedding,
    LowRankGroupQueryAttention,
    LowRankGRU,
    LowRankLSTM,
    LowRankModel,
    LowRankMultiHeadAttention,
    from_keras,
    to_keras,
)

SEQUENCE, IMAGE, VOLUME = (4, 6), (4, 5, 6), (4, 3, 5, 6)
LAYERS = {
    "dense": (lambda: LowRankDense(4, rank=2), SEQUENCE),
    "conv1d": (lambda: LowRankConv1D(4, 1, rank=2), SEQUENCE),
    "conv2d": (lambda: LowRankConv2D(4, 1, rank=2), IMAGE),
    "conv2d_transpose": (lambda: LowRankConv2DTranspose(4, 1, rank=2), IMAGE),
    "conv3d": (lambda: LowRankConv3D(4, 1, rank=2), VOLUME),
    "einsum": (lambda: LowRankEinsumDense("abc,cd->abd", (None, 4), rank=2), SEQUENCE),
    "lstm": (lambda: LowRankLSTM(4, rank=2), SEQUENCE),
    "gru": (lambda: LowRankGRU(4, rank=2), SEQUENCE),
}
ATTENTION = {
    "mha": lambda: LowRankMultiHeadAttention(2, 3, rank=2),
    "gqa": lambda: LowRankGroupQueryAttention(3, 2, 1, rank=2),
}
IDS = [[1, 2, 3], [4], [], [8, 0]]


def ragged(shape):
    flat = tf.random.normal((4, *shape[1:]))
    return tf.RaggedTensor.from_row_lengths(flat, [3, 1])


def sparse(shape):
    return tf.sparse.from_dense(np.random.default_rng(0).binomial(1, 0.4, shape).astype("float32"))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", [ragged, sparse])
def test_a_layer_that_would_reshape_it_refuses_a_composite_tensor_by_name(name, kind):
    make, shape = LAYERS[name]
    value = kind(shape) if kind is ragged else sparse((2, *shape))
    words = "takes sparse" if (name, kind) == ("dense", sparse) else f"takes no {kind.__name__}"
    for call in (make(), lambda x: make()(inputs=x)):
        if name in ("lstm", "gru") and not isinstance(call, keras.layers.Layer):
            continue  # an argument of another name
        with pytest.raises(ValueError, match=words):
            call(value)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_refuses_it_in_every_argument(name):
    dense = tf.zeros((2, 3, 6))
    for kind, value in (("ragged", ragged(SEQUENCE)), ("sparse", sparse((2, 3, 6)))):
        for arguments in ((value, dense), (dense, value), (dense, dense, value)):
            with pytest.raises(ValueError, match=f"takes no {kind} tensor"):
                ATTENTION[name]()(*arguments)


def test_symbolic_ones_are_refused_too():
    inputs = keras.Input((6,), sparse=True)
    assert LowRankDense(4, rank=2)(inputs).shape == (None, 4)
    with pytest.raises(ValueError, match="takes no sparse tensor"):
        LowRankEinsumDense("ab,bc->ac", 4, rank=2)(inputs)


@pytest.fixture
def tables():
    low, full = LowRankEmbedding(9, 4, rank=2, mask_zero=True), keras.layers.Embedding(9, 4)
    low.build(), full.build()
    full.set_weights([np.asarray(low.embeddings)])
    return low, full


@pytest.mark.parametrize("ids", [IDS, [[[1, 2], []], [[3]], []]], ids=["two axes", "three"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_ragged_indices_are_looked_up_row_by_row(tables, ids, dtype):
    low, full = tables
    ids = tf.cast(tf.ragged.constant(ids), dtype)
    found, expected = low(ids), full(ids)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    for mine, its in zip(found.nested_row_splits, expected.nested_row_splits, strict=True):
        np.testing.assert_array_equal(mine, its)
    np.testing.assert_allclose(found.flat_values, expected.flat_values, atol=1e-6)
    mask = found._keras_mask
    np.testing.assert_array_equal(mask.flat_values, ids.flat_values != 0)


def test_sparse_indices_are_looked_up_as_by_keras(tables):
    low, full = LowRankEmbedding(9, 4, rank=2), tables[1]
    ids = tf.sparse.from_dense([[0, 1, 2], [3, 0, 0]])
    low(ids)
    full.set_weights([np.asarray(low.embeddings)])
    np.testing.assert_allclose(low(ids), full(ids), atol=1e-6)


def test_vectors_to_project_back_are_dense(tables):
    with pytest.raises(ValueError, match="takes no ragged tensor"):
        tables[0](ragged((4, 4)), reverse=True)


class Mean(keras.layers.Layer):
    def call(self, inputs):
        return tf.reduce_mean(inputs, axis=1)


@pytest.mark.parametrize("declared", [False, True])
def test_a_model_trains_on_ragged_indices(declared):
    try:
        inputs = keras.Input((None,), dtype="int32", **({"ragged": True} if declared else {}))
    except TypeError:
        pytest.skip("this Keras has no ragged Input")
    embedded = LowRankEmbedding(9, 4, rank=2)(inputs)
    assert getattr(embedded, "ragged", declared) == declared
    model = LowRankModel(inputs, keras.layers.Dense(1)(Mean()(embedded)))
    model.compile(keras.optimizers.SGD(0.5), "mse", run_eagerly=declared)
    data = tf.ragged.constant([[1, 2, 3], [4], [2, 2], [3]]), np.array([[1.0], [2], [3], [4]])
    before = np.asarray(model.layers[1].embeddings)
    losses = model.fit(*data, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    after = np.asarray(model.layers[1].embeddings)
    assert not np.allclose(before[1:5], after[1:5])
    batches = tf.data.Dataset.from_tensor_slices(data).batch(2)
    assert model.fit(batches, verbose=0).history["loss"][0] < losses[0]
    assert model.predict(data[0], verbose=0).shape == (4, 1)
    for style in ("factored", "smaller") if declared else ():
        plain = to_keras(model, style)
        np.testing.assert_allclose(plain(data[0]), model(data[0]), atol=1e-5)
        low = from_keras(plain, rank=2, include="low_rank_embedding", data=data[0])
        np.testing.assert_allclose(low(data[0]), model(data[0]), atol=1e-5)
