"""LowRankMultiHeadAttention and LowRankGroupedQueryAttention against Keras's layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference.full_rank import compare_step_by_step

from keras_lowrank import (
    LowRankGroupedQueryAttention,
    LowRankModel,
    LowRankMultiHeadAttention,
    Tolerance,
    convert_layer,
    from_keras,
    to_keras,
)
from keras_lowrank.inspection import kernels
from keras_lowrank.layers.attention import projections
from keras_lowrank.tangent import TangentProbe, substitute

MULTI_HEAD = {"num_heads": 2, "key_dim": 4}
GROUPED = {"head_dim": 4, "num_query_heads": 4, "num_key_value_heads": 2}
NAMES = ["query", "key", "value", "output"]
GATED = pytest.mark.skipif(
    "use_gate" not in layers.MultiHeadAttention(1, 1).get_config(), reason="this Keras has no gate"
)
every = pytest.mark.parametrize(
    "low, plain, arguments",
    [
        (LowRankMultiHeadAttention, layers.MultiHeadAttention, MULTI_HEAD),
        (LowRankGroupedQueryAttention, layers.GroupQueryAttention, GROUPED),
    ],
    ids=["multi-head", "grouped"],
)
rng = np.random.default_rng(0)


def draw(*shape):
    return rng.standard_normal(shape).astype("float32")


def randomized(layer):
    for variable in layer.weights:
        if "float" in variable.dtype:
            variable.assign(0.5 * draw(*variable.shape))
    return layer


def with_twin(plain, *inputs):
    """A Keras layer with random weights, and a low-rank layer with the factors of its kernels."""
    plain.build(*(one.shape for one in inputs))
    return randomized(plain), convert_layer(plain, tolerance=0.0)


def check_calls(plain, twin, *inputs, **call):
    expected, found = (keras.tree.flatten(one(*inputs, **call)) for one in (plain, twin))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())


@every
def test_attention_basics(low, plain, arguments):
    layer = low(**arguments, rank=3, name="attend")
    x = draw(8, 5, 8)
    assert layer(x, x).shape == (8, 5, 8)
    paths = [variable.path for variable in layer.weights]
    assert paths[:4] == [f"attend/query/{name}" for name in ("U", "S", "V", "bias")]
    assert len(set(paths)) == len(paths)
    kernels = {name: tuple(one.kernel.shape) for name, one in projections(layer).items()}
    expected = plain(**arguments)
    expected.build(x.shape, x.shape)
    assert kernels == {name: one.kernel.shape for name, one in projections(expected).items()}
    inputs = keras.Input((5, 8))
    model = LowRankModel(inputs, layer(inputs, inputs))
    assert model.ranks == {f"attend/{name}": 3 for name in NAMES}
    full = sum(np.prod(kernel) for kernel in kernels.values())
    factored = sum(3 * (one.factors.n + one.factors.m) for one in projections(layer).values())
    assert model.compression()[:2] == (full, factored)  # biases, which have two axes, do not count
    model.compile("sgd", "mse", truncation=0.1)
    losses = model.fit(x, draw(8, 5, 8), epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]


@every
def test_config_round_trip_keeps_every_argument(low, plain, arguments):
    layer = low(
        **arguments,
        rank={"query": 3, "output": None},
        min_rank=2,
        max_rank=4,
        truncation=Tolerance(0.2),
        dropout=0.1,
        use_bias=False,
        kernel_initializer="he_uniform",
        kernel_regularizer="l2",
        seed=5,
        dtype="mixed_bfloat16",
        name="mine",
    )
    config = layer.get_config()
    assert set(plain(**arguments).get_config()) < set(config)
    again = low.from_config(config)
    assert again.get_config() == config
    assert again.rank == {"query": 3, "output": None} and again.truncation.tau == 0.2
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config
    again.build((None, 5, 8), (None, 5, 8))
    one = projections(again)["query"]
    assert (one.factors.rank, one.policy.min_rank, one.policy.max_rank) == (3, 2, 4)
    assert one.policy.truncation.tau == 0.2 and one.dtype_policy.name == "mixed_bfloat16"
    assert one.kernel_regularizer is not None and one.bias is None
    assert [name for name, one in projections(again).items() if hasattr(one, "factors")] == [
        "query",
        "output",
    ]


MASK = np.tril(np.ones((1, 5, 7), bool), 1)


@pytest.mark.parametrize(
    "arguments, call",
    [
        ({}, {}),
        ({}, {"use_causal_mask": True}),
        ({}, {"attention_mask": MASK}),
        ({}, {"attention_mask": MASK, "use_causal_mask": True}),
        ({}, {"return_attention_scores": True}),
        ({"value_dim": 3, "output_shape": (2, 3), "use_bias": False}, {}),
        ({"dropout": 0.5, "seed": 3}, {"training": True}),
        ({"dropout": 0.5, "seed": 3}, {"training": False}),
        pytest.param({"use_gate": True}, {}, marks=GATED),
        pytest.param({"sliding_window": 2}, {"use_causal_mask": True}, marks=GATED),
    ],
)
def test_multi_head_attention_is_called_as_in_keras(arguments, call):
    plain = layers.MultiHeadAttention(**MULTI_HEAD, **arguments)
    inputs = draw(2, 5, 8), draw(2, 7, 6), draw(2, 7, 5)
    check_calls(*with_twin(plain, *inputs), *inputs, **call)


@pytest.mark.parametrize(
    "arguments, call",
    [
        ({}, {"use_causal_mask": True}),
        ({}, {"attention_mask": MASK, "return_attention_scores": True}),
        ({"dropout": 0.5, "seed": 3, "use_bias": False}, {"training": True}),
        pytest.param({"use_gate": True}, {}, marks=GATED),
    ],
)
def test_grouped_query_attention_is_called_as_in_keras(arguments, call):
    plain = layers.GroupQueryAttention(**GROUPED, **arguments)
    inputs = draw(2, 5, 8), draw(2, 7, 8)
    check_calls(*with_twin(plain, *inputs), *inputs, **call)


@pytest.mark.parametrize("axes", [None, (2,), (1, 2)])
def test_attention_over_several_axes(axes):
    plain = layers.MultiHeadAttention(**MULTI_HEAD, attention_axes=axes)
    inputs = draw(2, 3, 5, 8), draw(2, 3, 5, 8)
    check_calls(*with_twin(plain, *inputs), *inputs)


@every
def test_masks_of_keras_are_obeyed_and_handed_on(low, plain, arguments):
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])
    embedding = layers.Embedding(4, 8, mask_zero=True)
    attend = plain(**arguments)
    attend(embedding(tokens), embedding(tokens))
    twin = convert_layer(randomized(attend), tolerance=0.0)
    pool = layers.GlobalAveragePooling1D()
    expected, found = (pool(one(embedding(tokens), embedding(tokens))) for one in (attend, twin))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_factors_are_never_coarser_than_float32(policy):
    layer = LowRankMultiHeadAttention(**MULTI_HEAD, rank=3, dtype=policy)
    x = draw(2, 5, 8)
    outputs = layer(x, x)
    assert outputs.dtype == layer.compute_dtype
    expected = "float64" if policy == "float64" else "float32"
    for one in projections(layer).values():
        assert {v.dtype for v in one.factors.variables} == {expected}


# Training.


def model_of(attend, *extra):
    inputs = keras.Input((5, 8))
    x = inputs + attend(inputs, inputs, use_causal_mask=True)
    return inputs, layers.Dense(3, name="head")(x)


@every
def test_full_rank_trains_as_keras_does_step_by_step(low, plain, arguments):
    full = keras.Model(*model_of(plain(**arguments, bias_initializer="normal", name="attend")))
    twin = from_keras(full, tolerance=0.0, only_smaller=False, exclude="head")
    assert type(twin.get_layer("attend")) is low
    twin.compile(keras.optimizers.SGD(0.2), "mse", truncation=0.0)
    full.compile(keras.optimizers.SGD(0.2), "mse")
    compare_step_by_step(twin, full, steps=6)


@every
def test_tangent_gradients_of_all_projections_in_one_pass(low, plain, arguments):
    """`(G V, U^T G V, G^T U)` of each, where G is its gradient in Keras's layer, in float64."""
    layer, full = low(**arguments, rank=2, dtype="float64"), plain(**arguments, dtype="float64")
    x = tf.constant(rng.standard_normal((3, 5, 8)))
    for one in (layer, full):
        one(x, x)
    ours, theirs = projections(layer), projections(full)
    for name, one in ours.items():
        one.S.assign(rng.standard_normal((2, 2)))
        theirs[name].kernel.assign(one.kernel)

    def loss_of(attend):
        return tf.reduce_sum(tf.sin(attend(x, x, use_causal_mask=True)))

    with tf.GradientTape() as tape:
        loss = loss_of(full)
    gradients = tape.gradient(loss, {name: one.kernel.value for name, one in theirs.items()})
    probes = {name: TangentProbe(one.factors.read()) for name, one in ours.items()}
    with (
        substitute({ours[name].factors: probe for name, probe in probes.items()}),
        tf.GradientTape() as tape,
    ):
        tape.watch([probe.sources for probe in probes.values()])
        loss = loss_of(layer)
    found = tape.gradient(loss, {name: probe.sources for name, probe in probes.items()})
    for name, one in ours.items():
        G = one.matricization.matrix(gradients[name]).numpy()
        U, _, V = (factor.numpy() for factor in one.factors.read())
        k, s, l = probes[name].tangent(found[name])
        np.testing.assert_allclose(k, G @ V, atol=1e-10)
        np.testing.assert_allclose(s, U.T @ G @ V, atol=1e-10)
        np.testing.assert_allclose(l, G.T @ U, atol=1e-10)
        assert np.abs(G).max() > 1e-3


# Saving, export, conversion.


@pytest.fixture(scope="module")
def model():
    """Both kinds in one model; the projections of keys and values of the second are dense."""
    keras.utils.set_random_seed(0)
    first = LowRankMultiHeadAttention(**MULTI_HEAD, rank=3, name="first")
    second = LowRankGroupedQueryAttention(**GROUPED, rank={"query": 3, "output": 2}, name="second")
    inputs, x = keras.Input((5, 8)), None
    x = inputs + first(inputs, inputs, use_causal_mask=True)
    model = LowRankModel(inputs, layers.Dense(3, name="head")(second(x, x)))
    for variable in model.weights:
        if variable.name == "bias":
            variable.assign(draw(*variable.shape))
    return model


RANKS = {**{f"first/{name}": 3 for name in NAMES}, "second/query": 3, "second/output": 2}


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
        ({"rank": {"attend": 3, "*/query": 2}, "exclude": "output"},
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
    assert found["attend/output"].shape == (8, 8) and found["attend/output"].rank is None
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
    assert flags == {"query": True, "key": False, "value": True, "output": True}


# Errors.


@every
@pytest.mark.parametrize(
    "options, words",
    [
        ({"rank": 0}, "`rank` must be a positive integer.*rank=0"),
        ({"rank": {"key": 2.5}}, "`rank` must be a positive integer.*rank=2.5"),
        (
            {"rank": {"qery": 2}},
            r"dict with some of the keys \['query', 'key', 'value', 'output'\]",
        ),
        ({"rank": {"gate": 2}}, "dict with some of the keys"),
        ({"rank": {}}, "dict with some of the keys"),
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
        low(**arguments, rank=9).build((None, 5, 8), (None, 5, 8))


def test_what_keras_refuses_is_refused_in_its_words():
    for cls in (layers.GroupQueryAttention, LowRankGroupedQueryAttention):
        with pytest.raises(ValueError, match="must be divisible by `num_key_value_heads`"):
            cls(4, 3, 2)
    for cls in (layers.MultiHeadAttention, LowRankMultiHeadAttention):
        with pytest.raises(ValueError, match="All dimensions of `value` and `key`"):
            cls(2, 4).build((2, 5, 8), (2, 5, 8), (2, 6, 8))


def test_a_refused_projection_stays_dense_with_a_warning():
    attend = layers.MultiHeadAttention(**MULTI_HEAD, kernel_constraint="non_neg", name="attend")
    full = keras.Model(*model_of(attend))
    with pytest.warns(UserWarning, match="attend/query: `kernel_constraint` must be None"):
        low = from_keras(full, rank=2)
    assert low.ranks == {"head": 2}
    stack = layers.EinsumDense("abc,bcd->abd", (5, 3), name="stack")
    inputs = keras.Input((5, 8))
    full = keras.Model(inputs, layers.Dense(9, name="dense")(stack(inputs)))
    with pytest.warns(UserWarning, match="stack: The kernel of `equation` must be one matrix"):
        low = from_keras(full, rank=1)
    assert low.ranks == {"dense": 1}
