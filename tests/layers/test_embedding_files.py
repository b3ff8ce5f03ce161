"""LowRankEmbedding: files, conversion and errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.embedding import IDS, built, cross_entropy, language_model, same_table

from keras_lowrank import LowRankEmbedding, Parallel, convert_layer, from_keras, to_keras
from keras_lowrank.manifold.point import Point


def test_files_keep_the_rank_and_agree(tmp_path):
    model = language_model(built(rank=3))
    optimizer, integrator = keras.optimizers.SGD(0.5), Parallel(adapt_every=1)
    model.compile(optimizer, cross_entropy(), integrator=integrator, truncation=0.0)
    model.fit(IDS, np.roll(IDS, 1, 1), verbose=0)
    rank = model.ranks["low_rank_embedding"]
    assert rank != 3
    expected = model.predict(IDS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.ranks == model.ranks
    np.testing.assert_array_equal(loaded.predict(IDS, verbose=0), expected)
    model.save_weights(tmp_path / "model.weights.h5")
    other = language_model(built(rank=2))
    other.load_weights(tmp_path / "model.weights.h5")
    assert list(other.ranks.values()) == [rank]
    np.testing.assert_array_equal(other.predict(IDS, verbose=0), expected)


@pytest.mark.parametrize("rank", [1, 6], ids=["pair", "table"])
def test_exports_agree(tmp_path, rank):
    """`export` compares on random input by itself; here again, on indices of the whole range."""
    model = language_model(built(rank=rank))
    expected = model.predict(IDS, verbose=0)
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))  # held: it owns the variables
    found = loaded.serve(tf.constant(IDS, tf.int32))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    run = tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    (name,) = run.get_input_details()
    (outputs,) = run(**{name: IDS.astype("int32")}).values()
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


# Conversion.


@pytest.fixture(scope="module")
def plain_model():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,), dtype="int32")
    embedding = keras.layers.Embedding(
        9, 6, embeddings_initializer="normal", mask_zero=True, name="words"
    )
    x = keras.layers.GlobalAveragePooling1D()(embedding(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def test_a_keras_model_is_cut_and_comes_back(plain_model):
    full = from_keras(plain_model, tolerance=0.0, only_smaller=False, exclude="head")
    assert full.ranks == {"words": 6} and full.get_layer("words").mask_zero
    expected = plain_model(IDS)
    np.testing.assert_allclose(full(IDS), expected, atol=1e-6)
    merged = to_keras(full)
    assert [w.path for w in merged.weights] == [w.path for w in plain_model.weights]
    for one, other in zip(merged.get_weights(), plain_model.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-6)

    cut = from_keras(plain_model, rank={"words": 2})
    table = np.asarray(plain_model.get_layer("words").embeddings)
    tail = np.linalg.norm(np.linalg.svd(table, compute_uv=False)[2:])
    gap = np.linalg.norm(table - cut.get_layer("words").embeddings)
    np.testing.assert_allclose(gap, tail, rtol=1e-4)
    for style in ("factored", "merged"):
        back = to_keras(cut, style)
        np.testing.assert_allclose(back(IDS), cut(IDS), atol=1e-6)
    first, second = to_keras(cut).get_layer("words").layers
    assert (type(first), type(second)) == (keras.layers.Embedding, keras.layers.Dense)
    assert first.mask_zero and not second.use_bias

    layer = convert_layer(plain_model.get_layer("words"), rank=3)
    assert isinstance(layer, LowRankEmbedding) and layer.rank == 3


def test_a_table_is_cut_for_the_indices_that_it_sees(plain_model):
    """Rows that no sample asks for count for nothing: three rows have rank three."""
    ids = np.array([[1, 2, 5, 1], [5, 5, 2, 1]])
    cut = from_keras(plain_model, rank={"words": 3}, data=ids)
    np.testing.assert_allclose(cut(ids), plain_model(ids), atol=1e-5)
    blind = from_keras(plain_model, rank={"words": 3})
    assert np.abs(blind(ids) - plain_model(ids)).max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_projects_back_becomes_a_reversible_one(tied):
    low = language_model(LowRankEmbedding(9, 6, rank=2, tie_weights=tied, logit_soft_cap=2.0))
    if not hasattr(keras.layers, "ReversibleEmbedding"):
        with pytest.raises(ValueError, match="called with `reverse=True` too.*low_rank_embedding"):
            to_keras(low)
        return
    plain = to_keras(low)
    assert type(plain.layers[1]) is keras.layers.ReversibleEmbedding
    np.testing.assert_allclose(low(IDS), plain(IDS), rtol=1e-5, atol=1e-6)
    again = from_keras(plain, rank=2, only_smaller=False, include=keras.layers.Embedding)
    np.testing.assert_allclose(low(IDS), again(IDS), rtol=1e-4, atol=1e-5)


# Errors.


@pytest.mark.parametrize("index", [9, -10, 10**6])
def test_an_index_outside_of_the_table_raises_as_in_keras(index):
    layer = built()
    for embedding in (same_table(layer), layer):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"is not in \[0, 9\)"):
            embedding(np.array([index]))


@pytest.mark.parametrize("name", ["input_dim", "output_dim"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_sizes_that_are_no_positive_integers_raise(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*{name}={value!r}"):
        LowRankEmbedding(**{"input_dim": 9, "output_dim": 6, name: value})


@pytest.mark.parametrize(
    "argument, words",
    [
        ({"embeddings_constraint": "non_neg"}, "`embeddings_constraint` must be None"),
        ({"embeddings_regularizer": "l1"}, "`embeddings_regularizer` must be L2"),
        ({"reverse_rank": 2}, "`reverse_rank` must be None with tie_weights=True"),
        ({"activation": "relu"}, "`activation` must not be passed: an embedding"),
        (
            {"kernel_initializer": "zeros"},
            "`kernel_initializer` must not be passed: an embedding",
        ),
        ({"lora_rank": 4}, "`lora_rank` must be None"),
        ({"quantization_config": "int8"}, "`quantization_config` must be None"),
        ({"weights": np.ones((6, 9))}, r"`weights` must have the shape \(9, 6\).*\(6, 9\)"),
    ],
)
def test_argument_without_a_meaning_raises(argument, words):
    with pytest.raises(ValueError, match=words):
        LowRankEmbedding(9, 6, **argument)


def test_rank_above_the_size_of_the_table_raises_when_built():
    with pytest.raises(ValueError, match=r"must be at most min\(n, m\) = 6 for its 9 x 6"):
        LowRankEmbedding(9, 6, rank=7).build()


def test_the_factors_can_be_assigned_at_another_rank():
    layer = built()
    layer.factors.assign(Point(np.eye(9, 2), np.eye(2), np.eye(6, 2)))
    np.testing.assert_array_equal(layer(np.array([0, 1, 2])), np.eye(3, 6) * [1, 1, 0, 0, 0, 0])
