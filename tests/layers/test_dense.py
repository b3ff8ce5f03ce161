"""LowRankDense against keras.layers.Dense."""

import keras
import numpy as np
import pytest
from reference.cases import partly_slow

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, RankAdaptive, Tolerance


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def same_dense(layer):
    """A keras.layers.Dense with the kernel and the bias of a low-rank layer."""
    n, m = layer.kernel_shape
    dense = keras.layers.Dense(m, activation=layer.activation, use_bias=layer.use_bias)
    dense.build((None, n))
    dense.set_weights([w for w in (layer.kernel, layer.bias) if w is not None])
    return dense


def test_dense_basics():
    layer = LowRankDense(6, rank=3, activation="relu")
    outputs = layer(draw(4, 8))
    assert outputs.shape == (4, 6)
    assert [tuple(v.shape) for v in layer.weights] == [(8, 3), (3, 3), (6, 3), (6,)]
    assert [v.name for v in layer.weights] == ["U", "S", "V", "bias"]
    assert len(layer.trainable_weights) == 4 and not layer.non_trainable_weights
    assert len({v.path for v in layer.weights}) == 4
    assert layer.count_params() == 8 * 3 + 3 * 3 + 6 * 3 + 6
    assert layer.losses == []
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, layer(inputs))
    model.compile("sgd", "mse", truncation=0.0)
    losses = model.fit(draw(16, 8), draw(16, 6), epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]


def test_without_bias_there_are_three_variables():
    layer = LowRankDense(6, rank=3, use_bias=False)
    layer.build((None, 8))
    assert len(layer.weights) == 3 and layer.bias is None


def test_layer_that_is_frozen_before_it_is_built_has_no_trainable_weights():
    # As a loaded model with frozen layers is built.
    layer = LowRankDense(6, rank=3, trainable=False)
    layer.build((None, 8))
    assert not layer.trainable_weights and len(layer.non_trainable_weights) == 4
    assert not any(v.trainable for v in layer.weights)
    layer.trainable = True
    assert len(layer.trainable_weights) == 4 and all(v.trainable for v in layer.weights)


def test_config_round_trip_keeps_every_argument():
    layer = LowRankDense(
        6,
        activation="tanh",
        use_bias=True,
        rank=3,
        min_rank=2,
        max_rank=4,
        truncation=Tolerance(0.2, relative=False),
        kernel_initializer=keras.initializers.HeNormal(seed=3),
        bias_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.25),
        bias_regularizer="l1",
        activity_regularizer=keras.regularizers.L2(0.5),
        bias_constraint="non_neg",
        dtype="mixed_bfloat16",
        name="mine",
        trainable=False,
    )
    config = layer.get_config()
    again = LowRankDense.from_config(config)
    assert again.get_config() == config
    assert (again.units, again.rank, again.min_rank, again.max_rank) == (6, 3, 2, 4)
    assert (again.truncation.tolerance, again.truncation.relative) == (0.2, False)
    assert (again.name, again.trainable, again.dtype_policy.name) == (
        "mine",
        False,
        "mixed_bfloat16",
    )
    assert again.kernel_initializer.seed == 3
    assert again.kernel_regularizer.l2 == 0.25 and again.activity_regularizer.l2 == 0.5
    assert isinstance(again.bias_constraint, keras.constraints.NonNeg)
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config


@pytest.mark.parametrize("asked", [None, 4])
def test_rank_is_the_present_one_and_the_config_keeps_the_one_asked_for(asked):
    layer = LowRankDense(6, rank=asked)
    assert layer.rank == asked
    layer.build((None, 8))
    assert layer.rank == layer.S.shape[0] and type(layer.rank) is int
    u, s, v = layer.factors.read()
    layer.factors.assign((u[:, :1], s[:1, :1], v[:, :1]))
    assert layer.rank == 1
    assert layer.get_config()["rank"] == asked


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
def test_factors_are_never_coarser_than_float32(policy):
    layer = LowRankDense(6, rank=3, dtype=policy)
    outputs = layer(draw(4, 8))
    assert outputs.dtype == layer.compute_dtype
    expected = "float64" if policy == "float64" else "float32"
    assert {v.dtype for v in layer.factors.variables} == {expected}
    np.testing.assert_allclose(
        keras.ops.cast(outputs, "float32"),
        draw(4, 8) @ np.asarray(layer.kernel, "float32"),
        atol=1e-5 if policy == "float64" else 0.05,
    )


@pytest.mark.parametrize("shape", [(4, 8), (4, 5, 8), (4, 2, 3, 8)])
@pytest.mark.parametrize("rank", [2, 6])
def test_forward_equals_dense_with_the_same_kernel(shape, rank):
    layer = LowRankDense(6, rank=rank, activation="tanh", bias_initializer="ones")
    outputs = layer(draw(*shape))
    assert layer.compute_output_shape(shape) == outputs.shape
    np.testing.assert_allclose(outputs, same_dense(layer)(draw(*shape)), atol=1e-5)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool", "float64", "float16"])
def test_input_of_any_number_type_is_taken_as_in_keras(dtype):
    # A one-hot layer of strings, for one, gives integers.
    inputs = keras.ops.cast(np.array([[0, 1, 1], [1, 0, 1]]), dtype)
    layer = LowRankDense(6, rank=2)
    outputs = layer(inputs)
    expected = same_dense(layer)(inputs)
    assert outputs.dtype == expected.dtype
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_unknown_batch_and_length_keep_their_place():
    inputs = keras.Input((None, 3, 8))
    model = keras.Model(inputs, LowRankDense(6, rank=2)(inputs))
    assert model.output_shape == (None, None, 3, 6)
    assert model.predict(draw(2, 5, 3, 8), verbose=0).shape == (2, 5, 3, 6)


def test_mask_passes_through():
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    embedded = keras.layers.Embedding(5, 8, mask_zero=True)(tokens)
    outputs = LowRankDense(6, rank=2)(embedded)
    # Masked pooling is the mean over the kept positions only, if the mask has come that far.
    pooled = keras.layers.GlobalAveragePooling1D()(outputs)
    outputs = np.asarray(outputs)
    expected = [outputs[0, :2].mean(axis=0), outputs[1, 0]]
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_input_of_another_width_is_refused_as_in_keras():
    layer = LowRankDense(6, rank=2)
    layer.build((None, 8))
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 8"):
        layer(draw(4, 9))


def test_input_without_a_batch_axis_is_refused_as_in_keras():
    with pytest.raises(ValueError, match="min_ndim=2"):
        LowRankDense(6, rank=2)(draw(8))


def test_unknown_width_is_refused_with_words():
    with pytest.raises(ValueError, match="None"):
        LowRankDense(6).build((None, None))


# The kernel regularizer.


def test_l2_regularizer_is_the_norm_of_the_kernel():
    layer = LowRankDense(6, rank=3, kernel_regularizer=keras.regularizers.L2(0.1))
    layer.build((None, 8))
    expected = 0.1 * np.sum(np.square(layer.kernel))
    np.testing.assert_allclose(layer.losses, [expected], rtol=1e-5)
    # A plain keras.Model may take the bases anywhere; the penalty stays that of W.
    layer.U.assign(draw(8, 3))
    expected = 0.1 * np.sum(np.square(layer.kernel))
    np.testing.assert_allclose(layer.losses, [expected], rtol=1e-5)


@pytest.mark.parametrize("integrator", [RankAdaptive(adapt_every=1), FixedRank(adapt_every=1)])
def test_l2_regularizer_trains_as_in_keras_at_full_rank(integrator):
    inputs = keras.Input((5,))
    layer = LowRankDense(5, rank=5, kernel_regularizer=keras.regularizers.L2(0.1))
    model = LowRankModel(inputs, layer(inputs))
    dense = same_dense(layer)
    dense.kernel_regularizer = keras.regularizers.L2(0.1)
    dense.kernel.regularizer = dense.kernel_regularizer
    keras_model = keras.Sequential([dense])
    model.compile(
        keras.optimizers.SGD(0.1), "mse", integrator=integrator, truncation=0.0, run_eagerly=True
    )
    keras_model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    ours = model.fit(draw(8, 5), draw(8, 5), batch_size=2, shuffle=False, verbose=0)
    theirs = keras_model.fit(draw(8, 5), draw(8, 5), batch_size=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], rtol=1e-5)
    np.testing.assert_allclose(layer.kernel, dense.kernel, atol=1e-5)


@pytest.mark.parametrize(
    "regularizer",
    [
        keras.regularizers.L1(0.1),
        keras.regularizers.L1L2(0.1, 0.1),
        keras.regularizers.OrthogonalRegularizer(),
    ],
)
def test_other_kernel_regularizers_raise(regularizer):
    with pytest.raises(ValueError, match=r"`kernel_regularizer` must be L2.*never formed"):
        LowRankDense(6, kernel_regularizer=regularizer)


def test_l1l2_without_l1_is_l2():
    layer = LowRankDense(6, rank=3, kernel_regularizer=keras.regularizers.L1L2(l2=0.1))
    layer.build((None, 8))
    np.testing.assert_allclose(layer.losses, [0.1 * np.sum(np.square(layer.kernel))], rtol=1e-5)


# Ranks.


@pytest.mark.parametrize("n, m", [(256, 256), (784, 512), (800, 500), (2000, 64)])
def test_rank_none_leaves_two_fifths_of_the_weights(n, m):
    layer = LowRankDense(m)
    layer.build((None, n))
    rank = layer.rank
    assert rank * (n + m) <= 0.4 * n * m < (rank + 1) * (n + m) or rank == 16


@pytest.mark.parametrize("n, m", [(8, 6), (1, 7), (7, 1), (500, 10), (25, 20)])
def test_rank_none_leaves_of_a_small_kernel_as_many_numbers_as_it_has(n, m):
    layer = LowRankDense(m)
    layer.build((None, n))
    rank = layer.rank
    # At n = 1 or m = 1 no rank saves anything, and there is no rank below 1.
    assert rank == 1 or rank * (n + m + rank) <= n * m < (rank + 1) * (n + m + rank + 1)


@pytest.mark.parametrize(
    "bounds, expected", [({"max_rank": 50}, 50), ({"min_rank": 150}, 150), ({}, 51)]
)
def test_rank_none_respects_the_bounds(bounds, expected):
    layer = LowRankDense(256, **bounds)
    layer.build((None, 256))
    assert layer.rank == expected


@pytest.mark.parametrize("rank", [0, -1, 2.0, "3", True])
@pytest.mark.parametrize("name", ["rank", "min_rank", "max_rank"])
def test_rank_that_is_no_positive_integer_raises(name, rank):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*{name}={rank!r}"):
        LowRankDense(6, **{name: rank})


@pytest.mark.parametrize(
    "ranks",
    [
        {"rank": 5, "max_rank": 4},
        {"rank": 2, "min_rank": 3},
        {"min_rank": 3, "max_rank": 2},
    ],
)
def test_ranks_out_of_order_raise(ranks):
    with pytest.raises(ValueError, match="min_rank <= rank <= max_rank"):
        LowRankDense(6, **ranks)


@pytest.mark.parametrize("ranks", [{"rank": 7}, {"min_rank": 7}])
def test_rank_above_the_size_of_the_kernel_raises_when_built(ranks):
    layer = LowRankDense(6, name="small", **ranks)
    with pytest.raises(ValueError, match=r"'small' must be at most min\(n, m\) = 6.*8 x 6"):
        layer.build((None, 8))


# Arguments that mean nothing for a kernel that is never formed.


@pytest.mark.parametrize(
    "argument, reason",
    [
        ({"kernel_constraint": "non_neg"}, "a constraint acts on the entries"),
        ({"lora_rank": 4}, "the layer is low-rank already"),
        ({"lora_alpha": 4}, "the layer is low-rank already"),
        ({"quantization_config": "int8"}, "quantize the exported file"),
    ],
)
def test_argument_that_would_be_ignored_raises(argument, reason):
    (name,) = argument
    with pytest.raises(ValueError, match=f"`{name}` must be None in a low-rank layer: {reason}"):
        LowRankDense(6, **argument)


def test_unknown_argument_raises():
    with pytest.raises((TypeError, ValueError), match="rnk"):
        LowRankDense(6, rnk=4)


@pytest.mark.parametrize("units", [0, -1, 2.5])
def test_units_that_are_no_positive_integer_raise(units):
    with pytest.raises(ValueError, match=f"`units`.*{units}"):
        LowRankDense(units)


@pytest.mark.parametrize("tau", [-0.1, 1.0, 1.5, float("nan")])
def test_tolerance_of_a_layer_outside_its_range_raises(tau):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        LowRankDense(6, truncation=tau)


# Where a layer starts from.


def variance_ratio(rank, depth, seed, width=256):
    """Var(out) / var(in) of a linear stack with the default initializer."""
    keras.utils.set_random_seed(seed)
    inputs = outputs = np.random.default_rng(seed).standard_normal((64, width)).astype("float32")
    for _ in range(depth):
        outputs = LowRankDense(width, rank=rank)(outputs)
    return np.var(outputs) / np.var(inputs)


# Single draws scatter, the more the smaller the rank: a product of r x r Gaussian blocks has a
# log-normal size. The claim is about the typical stack, so the median over seeds is bounded.
@pytest.mark.parametrize(
    "rank, depth, seeds", partly_slow([(32, 20, 9), (256, 20, 2)], [(4, 5, 25)])
)
def test_activations_keep_their_variance_through_a_deep_stack(rank, depth, seeds):
    ratios = [variance_ratio(rank, depth, seed) for seed in range(seeds)]
    assert 0.25 <= np.median(ratios) <= 4.0


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize(
    "initializer",
    ["glorot_uniform", "he_normal", "lecun_uniform", "random_normal", "truncated_normal",
     "random_uniform", "orthogonal"],
)  # fmt: skip
def test_energy_is_that_of_a_kernel_that_the_initializer_draws(initializer, rank):
    layer = LowRankDense(6, rank=rank, kernel_initializer=initializer)
    layer.build((None, 9))
    draws = [keras.initializers.get(initializer)((9, 6)) for _ in range(200)]
    expected = np.mean([np.sum(np.square(one)) for one in draws])
    np.testing.assert_allclose(np.sum(np.square(layer.kernel)), expected, rtol=0.1)
    for basis in (layer.U, layer.V):
        np.testing.assert_allclose(np.transpose(basis) @ basis, np.eye(rank), atol=1e-5)


def test_zeros_start_at_zero_with_orthonormal_bases():
    layer = LowRankDense(6, rank=2, kernel_initializer="zeros")
    layer.build((None, 9))
    assert not np.any(layer.kernel)
    np.testing.assert_allclose(np.transpose(layer.U) @ layer.U, np.eye(2), atol=1e-5)


def drawn(shape, dtype=None):
    return keras.ops.cast(np.random.default_rng(5).standard_normal(shape), dtype)


@pytest.mark.parametrize(
    "initializer",
    [
        drawn,
        keras.initializers.Constant(0.5),
        keras.initializers.Identity(),
        keras.initializers.Ones(),
        keras.initializers.RandomNormal(mean=1.0, seed=7),
        keras.initializers.RandomUniform(0.0, 1.0, seed=7),
    ],
)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_definite_kernel_starts_as_its_best_approximation(initializer, rank):
    layer = LowRankDense(6, rank=rank, kernel_initializer=initializer)
    layer.build((None, 9))
    kernel = np.asarray(initializer((9, 6), dtype="float32"))
    error = np.linalg.norm(kernel - layer.kernel)
    tail = np.linalg.norm(np.linalg.svd(kernel, compute_uv=False)[rank:])
    np.testing.assert_allclose(error, tail, atol=1e-5)
    for basis in (layer.U, layer.V):
        np.testing.assert_allclose(np.transpose(basis) @ basis, np.eye(rank), atol=1e-5)


def test_seeded_initializer_starts_equal_layers_equal_and_not_symmetric():
    layers = [
        LowRankDense(9, rank=4, kernel_initializer=keras.initializers.GlorotUniform(seed=3))
        for _ in range(2)
    ]
    for layer in layers:
        layer.build((None, 9))
    np.testing.assert_array_equal(layers[0].kernel, layers[1].kernel)
    # U = V would make the kernel symmetric: rank r of a square kernel, and special.
    assert np.linalg.norm(layers[0].kernel - np.transpose(layers[0].kernel)) > 0.1
