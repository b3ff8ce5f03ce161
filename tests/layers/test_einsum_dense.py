"""LowRankEinsumDense against keras.layers.EinsumDense."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow
from reference.full_rank import compare_step_by_step

from keras_lowrank import (
    LowRankEinsumDense,
    LowRankModel,
    Parallel,
    RankAdaptive,
    Tolerance,
    from_keras,
    to_keras,
)

# (equation, output shape, bias axes, input shape, the kernel's shape as a matrix)
CASES = {
    "dense": ("ab,bc->ac", 6, "c", (4, 8), (8, 6)),
    "sequence": ("abc,cd->abd", (None, 6), "d", (2, 5, 8), (8, 6)),
    "query": ("abc,cde->abde", (None, 3, 4), "de", (2, 5, 8), (8, 12)),
    "output": ("abcd,cde->abe", (None, 6), "e", (2, 5, 3, 4), (12, 6)),
    "kernel of outputs first": ("abc,dc->abd", (None, 6), None, (2, 5, 8), (8, 6)),
    "kernel out of order": ("abcd,edc->abe", (None, 6), "e", (2, 5, 3, 4), (12, 6)),
    "outputs out of order": ("abc,cde->aebd", (4, None, 3), "e", (2, 5, 8), (8, 12)),
    "contracted in the middle": ("abc,bd->acd", (None, 6), "d", (2, 5, 8), (5, 6)),
    "bias over a free axis": ("abc,cd->abd", (5, 6), "bd", (2, 5, 8), (8, 6)),
    "bias of the first axis": ("abc,cde->abde", (5, 3, 4), "b", (2, 5, 8), (8, 12)),
    "summed": ("abcz,cd->abd", (None, 6), "d", (2, 5, 8, 3), (8, 6)),
    "nothing contracted": ("ab,cd->abcd", (3, 4, 2), "d", (2, 3), (1, 8)),
    "nothing put out": ("abc,c->ab", (None,), None, (2, 5, 8), (8, 1)),
    "left ellipsis": ("...x,xy->...y", 6, "y", (2, 5, 8), (8, 6)),
    "left ellipsis of nothing": ("...ax,xy->...ay", 6, "y", (4, 8), (8, 6)),
    "left ellipsis of two": ("...x,xyz->...yz", (3, 4), "yz", (2, 5, 3, 8), (8, 12)),
    "right ellipsis": ("ab...,bc->ac...", 6, "c", (2, 8, 5, 3), (8, 6)),
}
cases = pytest.mark.parametrize("case", CASES)


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def make(case, **kwargs):
    """A layer, and inputs for it."""
    equation, output_shape, bias_axes, input_shape, _ = CASES[case]
    return LowRankEinsumDense(equation, output_shape, bias_axes=bias_axes, **kwargs), draw(
        *input_shape
    )


def same_einsum(layer, shape):
    """A keras.layers.EinsumDense with the kernel and the bias of a low-rank layer."""
    plain = keras.layers.EinsumDense(
        layer.equation,
        layer.partial_output_shape,
        activation=layer.activation,
        bias_axes=layer.bias_axes,
    )
    plain.build(shape)
    assert layer.kernel.shape == plain.kernel.shape
    assert (layer.bias is None) == (plain.bias is None)
    plain.set_weights([w for w in (layer.kernel, layer.bias) if w is not None])
    return plain


def test_einsum_dense_basics():
    layer, x = make("query", rank=3, activation="relu")
    assert layer(x).shape == (2, 5, 3, 4)
    assert [tuple(v.shape) for v in layer.weights] == [(8, 3), (3, 3), (12, 3), (3, 4)]
    assert [v.name for v in layer.weights] == ["U", "S", "V", "bias"]
    assert layer.kernel.shape == layer.kernel_shape == (8, 3, 4)
    assert layer.count_params() == 8 * 3 + 3 * 3 + 12 * 3 + 12
    inputs = keras.Input((5, 8))
    model = LowRankModel(inputs, layer(inputs))
    model.compile("sgd", "mse", truncation=0.0)
    losses = model.fit(draw(8, 5, 8), draw(8, 5, 3, 4), epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]
    # Its bias has two axes and is none of the weights that are counted, nor is its momentum.
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build([layer.bias])
    count, rank = model.compression(), layer.rank
    assert (count.full, count.factored) == (8 * 12, rank * (8 + 12))
    state = [v.shape for v in model.optimizer.variables if len(v.shape) == 2]
    assert state.count((3, 4)) == 2
    held = sum(math.prod(shape) for shape in state if shape != (3, 4))
    assert count.training == rank * (8 + 12 + rank) + held


def test_config_round_trip_keeps_every_argument():
    layer = LowRankEinsumDense(
        "abc,cde->abde",
        (None, 3, 4),
        activation="relu",
        bias_axes="de",
        rank=4,
        min_rank=2,
        max_rank=5,
        truncation=Tolerance(0.2),
        kernel_initializer="he_uniform",
        bias_initializer="ones",
        kernel_regularizer="l2",
        bias_regularizer="l1",
        activity_regularizer="l2",
        bias_constraint="non_neg",
        dtype="mixed_float16",
        name="mine",
    )
    config = layer.get_config()
    again = LowRankEinsumDense.from_config(config)
    assert again.get_config() == config
    assert (again.equation, again.partial_output_shape) == ("abc,cde->abde", (None, 3, 4))
    assert (again.bias_axes, again.rank, again.truncation.tolerance) == ("de", 4, 0.2)
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config
    arguments = keras.layers.EinsumDense("ab,bc->ac", 4).get_config()
    assert LowRankEinsumDense(**arguments).partial_output_shape == (4,)


@cases
def test_forward_equals_einsum_dense_with_the_same_kernel(case):
    rank = min(2, *CASES[case][-1])
    layer, x = make(case, rank=rank, activation="tanh", bias_initializer="normal")
    outputs = layer(x)
    plain = same_einsum(layer, x.shape)
    assert (layer.factors.n, layer.factors.m) == CASES[case][-1]
    assert layer.compute_output_shape(x.shape) == outputs.shape
    # By NumPy: the einsum of Keras 3.8 is wrong for "...x,xyz->...yz".
    expected = np.einsum(layer.equation, x, layer.kernel)
    expected = np.tanh(expected + (0.0 if plain.bias is None else plain.bias.numpy()))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    matrix = layer.matricization.matrix(layer.kernel)
    u, s, v = layer.factors.read()
    np.testing.assert_allclose(matrix, u @ s @ tf.transpose(v), atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "bool", "float64"])
def test_input_of_any_number_type_is_taken_as_in_keras(dtype):
    x = keras.ops.cast([[0, 1, 1], [1, 0, 1]], dtype)
    layer = LowRankEinsumDense("ab,bc->ac", 6, rank=2)
    outputs = layer(x)
    np.testing.assert_allclose(outputs, np.asarray(x, "float32") @ layer.kernel, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_factors_are_never_coarser_than_float32(policy):
    layer, x = make("output", rank=3, dtype=policy)
    outputs = layer(x)
    assert outputs.dtype == layer.compute_dtype
    expected = "float64" if policy == "float64" else "float32"
    assert {v.dtype for v in layer.factors.variables} == {expected}
    np.testing.assert_allclose(
        keras.ops.cast(outputs, "float32"), same_einsum(layer, x.shape)(x), atol=0.05
    )


def test_unknown_batch_and_length_keep_their_place():
    inputs = keras.Input((None, None, 8))
    layer = LowRankEinsumDense("abcx,xyz->abycz", (None, 3, None, 4), rank=2)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, 3, None, 4)
    assert model.predict(draw(2, 5, 7, 8), verbose=0).shape == (2, 5, 3, 7, 4)


def test_l2_regularizer_is_the_norm_of_the_kernel():
    layer, x = make("query", rank=3, kernel_regularizer=keras.regularizers.L2(0.1))
    layer.build(x.shape)
    np.testing.assert_allclose(layer.losses, [0.1 * np.sum(np.square(layer.kernel))], rtol=1e-5)


# Where a layer starts from.


@pytest.mark.parametrize(
    "initializer", ["glorot_uniform", "he_normal", "random_normal", "orthogonal"]
)
@pytest.mark.parametrize("case", ["query", "output", "kernel out of order"])
def test_energy_is_that_of_the_kernel_that_keras_draws(case, initializer):
    layer, x = make(case, rank=3, kernel_initializer=initializer)
    layer.build(x.shape)
    if initializer in ("glorot_uniform", "he_normal"):
        # Older Keras counts the fans of a convolution in place of these.
        (n, m), scale = CASES[case][-1], 2.0
        expected = scale * n * m / (n if initializer == "he_normal" else n + m)
    else:
        draws = [keras.initializers.get(initializer)(layer.kernel_shape) for _ in range(50)]
        expected = np.mean([np.sum(np.square(one)) for one in draws])
    np.testing.assert_allclose(np.sum(np.square(layer.kernel)), expected, rtol=0.1)
    if hasattr(keras.initializers.HeNormal(), "input_axes"):
        theirs = []
        for _ in range(50):
            plain = keras.layers.EinsumDense(
                layer.equation, layer.partial_output_shape, kernel_initializer=initializer
            )
            plain.build(x.shape)
            theirs.append(np.sum(np.square(plain.kernel)))
        np.testing.assert_allclose(np.mean(theirs), expected, rtol=0.1)


def test_fans_that_an_initializer_names_itself_are_kept():
    if not hasattr(keras.initializers.HeNormal(), "input_axes"):
        pytest.skip("this Keras has no such argument")
    named = keras.initializers.VarianceScaling(mode="fan_in", input_axes=[0, 1], output_axes=[2])
    layer, x = make("query", rank=3, kernel_initializer=named)
    layer.build(x.shape)
    expected = 8 * 12 / (8 * 3)
    np.testing.assert_allclose(np.sum(np.square(layer.kernel)), expected, rtol=1e-5)


@pytest.mark.parametrize("case", ["query", "kernel out of order"])
def test_definite_kernel_starts_as_its_best_approximation(case):
    equation, output_shape, _, input_shape, _ = CASES[case]
    plain = keras.layers.EinsumDense(equation, output_shape)
    plain.build(input_shape)
    kernel = draw(*plain.kernel.shape)
    layer, x = make(case, rank=3, kernel_initializer=lambda shape, dtype=None: kernel)
    layer.build(x.shape)
    values = np.linalg.svd(layer.matricization.matrix(kernel), compute_uv=False)
    error = np.linalg.norm(kernel - layer.kernel)
    np.testing.assert_allclose(error, np.linalg.norm(values[3:]), rtol=1e-5)


# At full rank, in training.


def two_layers(make_layer):
    inputs = keras.Input((5, 8))
    x = make_layer("abc,cde->abde", (5, 3, 4), activation="tanh", bias_axes="de")(inputs)
    return inputs, make_layer("abcd,edc->abe", (5, 6), bias_axes="e")(x)


@pytest.mark.parametrize("integrator", partly_slow([RankAdaptive(1)], [Parallel(1)]))
def test_full_rank_trains_as_keras_does_step_by_step(integrator):
    full = keras.Model(*two_layers(keras.layers.EinsumDense))
    low = from_keras(full, tolerance=0.0, only_smaller=False)
    assert list(low.ranks.values()) == [8, 6]
    low.compile(keras.optimizers.SGD(0.2), "mse", integrator=integrator, truncation=0.0)
    full.compile(keras.optimizers.SGD(0.2), "mse")
    compare_step_by_step(low, full, steps=6)


def test_weights_load_across_ranks_and_a_whole_model_comes_back(tmp_path):
    def build(rank):
        def one(equation, output_shape, **options):
            return LowRankEinsumDense(equation, output_shape, rank=rank, **options)

        return LowRankModel(*two_layers(one))

    model, other = build(3), build(2)
    x = draw(2, 5, 8)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert list(other.ranks.values()) == [3, 3]
    np.testing.assert_allclose(other(x), model(x), atol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(x), model(x), atol=1e-6)


# Errors.


@pytest.mark.parametrize(
    "equation, words",
    [
        ("abc,acd->abd", r"one matrix.*'a'.*stack.*use one layer for each.*'abc,acd->abd'"),
        ("abc,bcd->abd", r"one matrix.*'b'"),
        ("ab,bcc->ac", r"must have an axis only once: the kernel are 'bcc'"),
        ("abb,bc->ac", r"must have an axis only once: the inputs are 'abb'"),
        ("ab,bc->acc", r"must have an axis only once: the outputs are 'acc'"),
        ("ab,bc", r"must be of the form '\[X\],\[Y\]->\[Z\]'.*equation='ab,bc'"),
        ("...ab,bc->ac", "must be of the form"),
        ("ab...,bc->...ac", "must be of the form"),
        ("ab,bc->ac...", "must be of the form"),
        ("...ab...,bc->...ac...", "must be of the form"),
    ],
)
def test_equation_that_is_no_matrix_raises(equation, words):
    with pytest.raises(ValueError, match=words):
        LowRankEinsumDense(equation, 6)


@pytest.mark.parametrize(
    "equation, output_shape, bias_axes, words",
    [
        ("abc,cde->abd", (None, 6), None, "axis of the kernel .* in another operand.*'e' is not"),
        (
            "abc,cd->abde",
            (None, 6, 2),
            None,
            "axis of the outputs .* in another operand.*'e' is not",
        ),
        ("abc,cd->abd", (7, 6), None, r"agree with the inputs on axis 'b'.*output_shape=\(7, 6\)"),
        ("abc,cd->abd", (None, 6), "c", "`bias_axes` must name axes of the outputs.*'c'"),
        ("abc,cd->abd", (None, 6), "", "`bias_axes` must name axes of the outputs.*''"),
    ],
)
def test_what_einsum_dense_refuses_is_refused(equation, output_shape, bias_axes, words):
    for cls, text in ((keras.layers.EinsumDense, ""), (LowRankEinsumDense, words)):
        with pytest.raises(ValueError, match=text):
            cls(equation, output_shape, bias_axes=bias_axes).build((2, 5, 8))


@pytest.mark.parametrize(
    "equation, output_shape, input_shape, words",
    [
        ("abc,cd->abd", 6, (2, 5, 8), r"`output_shape` must have an entry for each axis"),
        ("...x,xy->...y", (None, 6), (2, 5, 8), r"`output_shape` must have an entry"),
        ("abc,cd->abd", (None, 6), (2, 8), r"must have the axes that `equation` names"),
        ("abc,cd->abd", (None, 6), (2, 3, 5, 8), r"must have the axes.*\(2, 3, 5, 8\)"),
        ("abc,cd->abd", (None, None), (2, 5, 8), r"must be known when it is built.*\(8, None\)"),
        ("abc,cd->abd", (None, 6), (2, 5, None), r"must be known when it is built.*\(None, 6\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(equation, output_shape, input_shape, words):
    with pytest.raises(ValueError, match=words):
        LowRankEinsumDense(equation, output_shape).build(input_shape)


def test_rank_above_the_size_of_the_kernel_raises_when_built():
    layer, x = make("query", rank=9)
    with pytest.raises(ValueError, match=r"at most min\(n, m\) = 8 for its 8 x 12 kernel"):
        layer.build(x.shape)


@pytest.mark.parametrize(
    "name",
    ["kernel_constraint", "lora_rank", "lora_alpha", "quantization_config",
     "gptq_unpacked_column_size"],
)  # fmt: skip
def test_argument_that_would_be_ignored_raises(name):
    with pytest.raises(ValueError, match=f"`{name}` must be None in a low-rank layer"):
        LowRankEinsumDense("ab,bc->ac", 4, **{name: 2})


def test_use_bias_is_said_by_the_axes_of_the_bias():
    with pytest.raises(TypeError, match="use_bias"):
        LowRankEinsumDense("ab,bc->ac", 4, use_bias=True)


def test_l1_regularizer_raises():
    with pytest.raises(ValueError, match="`kernel_regularizer` must be L2"):
        LowRankEinsumDense("ab,bc->ac", 4, kernel_regularizer="l1")


def test_input_of_another_shape_is_refused():
    layer, x = make("query", rank=2)
    layer.build(x.shape)
    with pytest.raises(ValueError, match="expected axis 2 of input shape to have value 8"):
        layer(draw(2, 5, 9))
    with pytest.raises(ValueError, match="expected ndim=3"):
        layer(draw(5, 8))


# Conversion and export.


@pytest.mark.parametrize("case", ["query", "kernel out of order", "left ellipsis", "right ellipsis",
                                  "outputs out of order", "bias over a free axis"])  # fmt: skip
@pytest.mark.parametrize("style", ["factored", "merged"])
def test_there_and_back_again(case, style):
    equation, output_shape, bias_axes, input_shape, _ = CASES[case]
    inputs = keras.Input(input_shape[1:])
    layer = keras.layers.EinsumDense(equation, output_shape, bias_axes=bias_axes, name="one")
    model = keras.Model(inputs, layer(inputs))
    for variable in model.weights:
        variable.assign(draw(*variable.shape))
    plain = to_keras(from_keras(model, tolerance=0.0, only_smaller=False), style=style)
    x = draw(*input_shape)
    np.testing.assert_allclose(plain(x), model(x), rtol=1e-5, atol=2e-5)
    if style == "factored":
        rank = min(CASES[case][-1])
        first, second = plain.get_layer("one").layers
        assert first.kernel.shape[-1] == second.kernel.shape[0] == rank and first.bias is None
    else:
        assert [w.path for w in plain.weights] == [w.path for w in model.weights]


@pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
def test_exports_agree_with_the_model(tmp_path, format):
    def one(equation, output_shape, **options):
        return LowRankEinsumDense(equation, output_shape, rank=2, **options)

    model = LowRankModel(*two_layers(one))
    path = tmp_path / ("1" if format == "tf_saved_model" else "model.tflite")
    report = model.export(path, format=format, verbose=0, report=True)
    assert report.difference < 1e-4
    # Products only: no einsum is left for a profile to miss.
    assert report.artefact.multiply_adds == 2 * (8 + 12 + 12 + 6) * 5
