"""Low-rank attention: files, exports, conversion and errors."""

import keras
import numpy as np
import pytest
from keras import layers
from reference.attention import GROUPED, MULTI_HEAD, NAMES, draw, every, model_of

from keras_lowrank import (
    LowRankGroupQueryAttention,
    LowRankModel,
    LowRankMultiHeadAttention,
    from_keras,
    to_keras,
)
from keras_lowrank.convert.attention import projections
from keras_lowrank.convert.inspection import kernels

SECOND = {"query": 3, "attention_output": 2}


@pytest.fixture(scope="module")
def model():
    """Both kinds in one model; the projections of keys and values of the second are dense."""
    keras.utils.set_random_seed(0)
    first = LowRankMultiHeadAttention(**MULTI_HEAD, rank=3, name="first")
    second = LowRankGroupQueryAttention(**GROUPED, rank=SECOND, name="second")
    inputs, x = keras.Input((5, 8)), None
    x = inputs + first(inputs, inputs, use_causal_mask=True)
    model = LowRankModel(inputs, layers.Dense(3, name="head")(second(x, x)))
    for variable in model.weights:
        if variable.name == "bias":
            variable.assign(draw(*variable.shape))
    return model


RANKS = {f"first/{name}": 3 for name in NAMES}
RANKS |= {f"second/{name}": rank for name, rank in SECOND.items()}


def test_weights_load_across_ranks_and_a_whole_model_comes_back(model, tmp_path):
    assert model.ranks == RANKS
    x = draw(2, 5, 8)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(x), model(x), atol=1e-6)
    for one in projections(again.get_layer("first")).values():
        one.factors.assign(
            [part[:, :1] for part in one.factors.read()[:1]]
            + [one.factors.read().S[:1, :1], one.factors.read().V[:, :1]]
        )
    assert again.ranks["first/key"] == 1
    assert again.get_layer("first").rank == dict.fromkeys(NAMES, 1)
    assert again.get_layer("first").get_config()["rank"] == 3  # what it started with
    model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    assert again.ranks == RANKS
    np.testing.assert_allclose(again(x), model(x), atol=1e-6)


@pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
def test_exports_agree_with_the_model(model, tmp_path, format):
    path = tmp_path / ("1" if format == "tf_saved_model" else "model.tflite")
    report = model.export(path, format=format, verbose=0, report=True)
    assert report.difference < 1e-4
    assert report.artefact.parameters < report.full_rank.parameters


def test_to_keras_merges_projections(model):
    plain = to_keras(model)
    assert type(plain.get_layer("first")) is layers.MultiHeadAttention
    assert type(plain.get_layer("second")) is layers.GroupQueryAttention
    x = draw(2, 5, 8)
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)
    # The very paths that a model of Keras would have.
    assert "first/attention_output/kernel" in [variable.path for variable in plain.weights]


def test_a_low_rank_layer_is_copied_with_its_dense_projections(model):
    copy = from_keras(model, rank=2, only_smaller=False)
    assert copy.ranks == {**RANKS, "head": 2}
    copy = from_keras(model, rank=3, only_smaller=False)
    x = draw(2, 5, 8)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-5)


@pytest.fixture(scope="module")
def full_model():
    keras.utils.set_random_seed(1)
    return keras.Model(*model_of(layers.MultiHeadAttention(**MULTI_HEAD, name="attend")))


@pytest.mark.parametrize(
    "arguments, ranks",
    [
        ({"rank": 2}, {**{f"attend/{name}": 2 for name in NAMES}, "head": 2}),
        ({"rank": 2, "include": "attend"}, {f"attend/{name}": 2 for name in NAMES}),
        ({"rank": 2, "exclude": layers.MultiHeadAttention}, {"head": 2}),
        ({"rank": 2, "include": ["key", "attend/value"]}, {"attend/key": 2, "attend/value": 2}),
        ({"rank": {"attend": 3, "*/query": 2}, "exclude": "attention_output"},
         {"attend/query": 2, "attend/key": 3, "attend/value": 3}),
        # Of 8 x 8 only ranks below 4 save anything; of 8 x 3 those below 2.2.
        ({"rank": {"query": 3, "key": 4, "head": 2}}, {"attend/query": 3, "head": 2}),
    ],
)  # fmt: skip
def test_from_keras_takes_the_projections_that_are_meant(full_model, arguments, ranks):
    low = from_keras(full_model, **arguments)
    assert low.ranks == ranks
    twin, attend = low.get_layer("attend"), full_model.get_layer("attend")
    for name, one in projections(twin).items():
        kernel = projections(attend)[name].kernel.numpy()
        if f"attend/{name}" not in ranks:
            np.testing.assert_array_equal(one.kernel, kernel)
            continue
        values = np.linalg.svd(one.matricization.matrix(kernel), compute_uv=False)
        tail = np.linalg.norm(values[ranks[f"attend/{name}"] :])
        assert np.linalg.norm(kernel - one.kernel) == pytest.approx(tail, rel=1e-4)


def test_projections_are_inspected_one_by_one(full_model, model):
    found = {one.path: one for one in kernels(full_model)}
    assert list(found) == [*(f"attend/{name}" for name in NAMES), "head"]
    outputs = found["attend/attention_output"]
    assert outputs.form == (8, 8) and outputs.rank is None
    ranks = {one.path: one.rank for one in kernels(model)}
    assert ranks == {**RANKS, "second/key": None, "second/value": None, "head": None}
    low_rank = {one.path for one in kernels(model) if one.kind == "LowRankEinsumDense"}
    assert low_rank == set(RANKS)


def test_from_keras_looks_at_data(full_model):
    x = draw(64, 5, 8)
    x[..., 4:] *= 1e-3  # nothing happens in half of the axes
    plain, aware = (
        from_keras(full_model, rank=3, include="attend", only_smaller=False, data=data)
        for data in (None, x)
    )
    expected = full_model(x)
    plain, aware = (np.linalg.norm(one(x) - expected) for one in (plain, aware))
    assert aware < 0.7 * plain


def test_trainable_flags_of_projections_stay():
    full = keras.Model(*model_of(layers.MultiHeadAttention(**MULTI_HEAD, name="attend")))
    projections(full.get_layer("attend"))["key"].trainable = False
    low = from_keras(full, rank=2, include="attend")
    flags = {name: one.trainable for name, one in projections(low.get_layer("attend")).items()}
    assert flags == {"query": True, "key": False, "value": True, "attention_output": True}


# Errors.


@every
@pytest.mark.parametrize(
    "options, words",
    [
        ({"rank": 0}, "`rank` must be a positive integer.*rank=0"),
        ({"rank": {"key": 2.5}}, "`rank` must be a positive integer.*rank=2.5"),
        (
            {"rank": {"qery": 2}},
            r"dict with some of the keys \['query', 'key', 'value', 'attention_output'\]",
        ),
        ({"rank": {"gate": 2}}, "dict with some of the keys"),
        ({"rank": {}}, "dict with some of the keys"),
        (
            {"rank": {"key": 2}, "min_rank": {"value": 2}},
            "`min_rank` must be for kernels that",
        ),
        ({"rank": 2, "truncation": {"output": 0.1}}, "`truncation` must be one value.*'output'"),
        ({"rank": 4, "max_rank": 3}, "min_rank <= rank <= max_rank"),
        ({"truncation": 1.5}, r"must be in \[0, 1\)"),
        ({"kernel_constraint": "non_neg"}, "`kernel_constraint` must be None in a low-rank layer"),
        ({"kernel_regularizer": "l1"}, "`kernel_regularizer` must be L2"),
    ],
)
def test_argument_outside_its_range_raises(low, plain, arguments, options, words):
    with pytest.raises(ValueError, match=words):
        low(**arguments, **options)


@every
def test_rank_above_the_size_of_a_kernel_raises_when_built(low, plain, arguments):
    with pytest.raises(ValueError, match=r"'query' must be at most min\(n, m\) = 8"):
        low(**arguments, rank={"query": 9}).build((None, 5, 8), (None, 5, 8))


def test_what_keras_refuses_is_refused_in_its_words():
    for cls in (layers.GroupQueryAttention, LowRankGroupQueryAttention):
        with pytest.raises(ValueError, match="must be divisible by `num_key_value_heads`"):
            cls(4, 3, 2)
    for cls in (layers.MultiHeadAttention, LowRankMultiHeadAttention):
        with pytest.raises(ValueError, match="All dimensions of `value` and `key`"):
            cls(2, 4).build((2, 5, 8), (2, 5, 8), (2, 6, 8))


def test_a_refused_projection_stays_dense_with_a_warning():
    attend = layers.MultiHeadAttention(**MULTI_HEAD, kernel_constraint="non_neg", name="attend")
    full = keras.Model(*model_of(attend))
    with pytest.warns(UserWarning, match="attend/query.*: `kernel_constraint` must be None"):
        low = from_keras(full, rank=2)
    assert low.ranks == {"head": 2}
    stack = layers.EinsumDense("abc,bcd->abd", (5, 3), name="stack")
    inputs = keras.Input((5, 8))
    full = keras.Model(inputs, layers.Dense(9, name="dense")(stack(inputs)))
    with pytest.warns(UserWarning, match="stack: The kernel of `equation` must be one matrix"):
        low = from_keras(full, rank=1)
    assert low.ranks == {"dense": 1}
