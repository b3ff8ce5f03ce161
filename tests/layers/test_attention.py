"""LowRankMultiHeadAttention and LowRankGroupQueryAttention against Keras's layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference.attention import (
    GATED,
    GROUPED,
    MULTI_HEAD,
    NAMES,
    WINDOWED,
    check_calls,
    draw,
    every,
    model_of,
    randomized,
    rng,
    with_twin,
)
from reference.full_rank import compare_step_by_step

from keras_lowrank import (
    LowRankModel,
    LowRankMultiHeadAttention,
    Parallel,
    Tolerance,
    convert_layer,
    from_keras,
)
from keras_lowrank.convert.attention import projections
from keras_lowrank.integrators.chart import Chart


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
        rank={"query": 3, "attention_output": None},
        min_rank={"query": 2},
        max_rank=4,
        truncation={"query": 0.2, "attention_output": Tolerance(0.1, relative=False)},
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
    assert again.rank == {"query": 3, "attention_output": None}
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config
    again.build((None, 5, 8), (None, 5, 8))
    one = projections(again)["query"]
    assert (one.rank, one.policy.min_rank, one.policy.max_rank) == (3, 2, 4)
    assert one.policy.truncation.tolerance == 0.2 and one.dtype_policy.name == "mixed_bfloat16"
    assert one.kernel_regularizer is not None and one.bias is None
    other = projections(again)["attention_output"]
    assert (other.policy.min_rank, other.policy.truncation.relative) == (1, False)
    assert again.rank == {"query": 3, "attention_output": other.rank}
    assert again.get_config()["rank"] == config["rank"]


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
        pytest.param({"sliding_window": 2}, {"use_causal_mask": True}, marks=WINDOWED),
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


@every
def test_full_rank_trains_as_keras_does_step_by_step(low, plain, arguments):
    full = keras.Model(*model_of(plain(**arguments, bias_initializer="normal", name="attend")))
    twin = from_keras(full, tolerance=0.0, only_smaller=False, exclude="head")
    assert type(twin.get_layer("attend")) is low
    optimizer, integrator = keras.optimizers.SGD(0.2), Parallel(adapt_every=1)
    twin.compile(optimizer, "mse", integrator=integrator, truncation=0.0)
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
        one.S.assign(np.diag([2.0, 0.5]))
        theirs[name].kernel.assign(one.kernel)

    def loss_of(attend):
        return tf.reduce_sum(tf.sin(attend(x, x, use_causal_mask=True)))

    with tf.GradientTape() as tape:
        loss = loss_of(full)
    gradients = tape.gradient(loss, {name: one.kernel.value for name, one in theirs.items()})
    with tf.GradientTape() as tape:
        loss = loss_of(layer)
    found = tape.gradient(loss, {name: one.factors.variables for name, one in ours.items()})
    for name, one in ours.items():
        G = one.matricization.matrix(gradients[name]).numpy()
        U, S, V = (factor.numpy() for factor in one.factors.read())
        k, s, l = Chart(one.factors.read(), tf.constant(np.diag(S))).tangent(found[name])
        np.testing.assert_allclose(k, G @ V, atol=1e-10)
        np.testing.assert_allclose(s, U.T @ G @ V, atol=1e-10)
        np.testing.assert_allclose(l, G.T @ U, atol=1e-10)
        assert np.abs(G).max() > 1e-3
