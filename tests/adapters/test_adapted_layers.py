"""Every kind of layer with an adapter, over bases in every precision."""

import keras
import numpy as np
import pytest
from reference.adapted import outputs, train

import keras_lowrank as klr

layers = keras.layers
rng = np.random.default_rng(0)


def sequence(shape, *held):
    return lambda: keras.Sequential([keras.Input(shape), *(make() for make in held)])


def attention(cls, *args):
    def make():
        inputs = keras.Input((4, 6))
        return keras.Model(inputs, cls(*args, name="attention")(inputs, inputs))

    return make


def language_model():
    table = layers.ReversibleEmbedding(12, 6, mask_zero=True, logit_soft_cap=3.0, name="table")
    inputs = keras.Input((4,), dtype="int32")
    x = layers.LSTM(6, return_sequences=True, name="lstm")(table(inputs))
    return keras.Model(inputs, table(x, reverse=True))


def floats(*shape):
    return rng.standard_normal((8, *shape)).astype("float32")


CASES = {
    "dense": (sequence((6,), lambda: layers.Dense(5, activation="relu")), floats(6), None),
    "einsum": (
        sequence((4, 6), lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")),
        floats(4, 6),
        None,
    ),
    "attention": (attention(layers.MultiHeadAttention, 2, 3), floats(4, 6), None),
    "grouped": (attention(layers.GroupQueryAttention, 3, 4, 2), floats(4, 6), None),
    "conv1d": (
        sequence((8, 3), lambda: layers.Conv1D(5, 3, padding="causal", activation="relu")),
        floats(8, 3),
        None,
    ),
    "conv2d": (
        sequence((6, 6, 3), lambda: layers.Conv2D(5, 3, strides=2, padding="same")),
        floats(6, 6, 3),
        None,
    ),
    "conv3d": (sequence((4, 4, 4, 2), lambda: layers.Conv3D(5, 2)), floats(4, 4, 4, 2), None),
    "embedding": (
        sequence((4,), lambda: layers.Embedding(12, 6)),
        rng.integers(0, 12, (8, 4)),
        layers.Embedding,
    ),
    "gru": (sequence((4, 3), lambda: layers.Bidirectional(layers.GRU(5))), floats(4, 3), None),
    "lstm": (sequence((4, 3), lambda: layers.LSTM(5)), floats(4, 3), None),
    "rnn": (sequence((4, 3), lambda: layers.SimpleRNN(5)), floats(4, 3), None),
}
if hasattr(layers, "ReversibleEmbedding"):
    CASES["tied"] = (language_model, rng.integers(0, 12, (8, 4)), "table")
QUANTIZED = [
    name for name in ("dense", "einsum", "attention", "embedding", "tied") if name in CASES
]


def adapted(case, quantized=None):
    make, x, include = CASES[case]
    keras.utils.set_random_seed(0)
    model = make()
    model(x)
    if quantized:
        model.quantize(quantized)
    base = outputs(model, x)
    adapters = klr.add_adapters(model, rank=2, max_rank=4, include=include)
    np.testing.assert_array_equal(outputs(model, x), base)
    losses = train(model, x, run_eagerly=True)
    assert losses[-1] < losses[0]
    assert all(np.abs(delta.kernel).max() > 0 for delta in adapters.deltas.values())
    with adapters.disabled():
        np.testing.assert_array_equal(outputs(model, x), base)
    return model, x


@pytest.mark.parametrize("case", CASES)
def test_merged_computes_what_adapted_does(case, tmp_path):
    model, x = adapted(case)
    before = outputs(model, x)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not isinstance(loaded, klr.LowRankModel)
    np.testing.assert_allclose(outputs(loaded, x), before, atol=1e-5)
    klr.merge_adapters(model)
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("case", QUANTIZED)
def test_a_quantized_base_is_trained_and_not_merged(case, mode, tmp_path):
    model, x = adapted(case, mode)
    before = outputs(model, x)
    with pytest.raises(ValueError, match="kernel of floats"):
        klr.merge_adapters(model)
    np.testing.assert_array_equal(outputs(model, x), before)
    if case == "attention":  # Keras loads no quantized attention, with adapters or without
        return
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    # Rounded to as many bits, as Keras does with its LoRA.
    tolerance = {"int8": 0.05, "int4": 0.6}[mode] * np.abs(before).max()
    np.testing.assert_allclose(outputs(loaded, x), before, atol=tolerance)


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16", "float64"])
def test_factors_are_held_in_a_precision_that_they_bear(policy):
    keras.config.set_dtype_policy(policy)
    model, _ = adapted("dense")
    expected = "float64" if policy == "float64" else "float32"
    deltas = klr.find_low_rank_layers(model).values()
    assert {delta.S.dtype for delta in deltas} == {expected}


def test_a_model_that_reads_a_kernel_reads_the_sum():
    keras.utils.set_random_seed(0)
    table, inputs = layers.Embedding(12, 6, name="table"), keras.Input((4,), dtype="int32")

    class Reader(layers.Layer):
        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(table.embeddings))

    model = keras.Model(inputs, Reader()(table(inputs)))
    x = rng.integers(0, 12, (8, 4))
    adapters = klr.add_adapters(model, include="table")
    train(model, x, run_eagerly=True)
    whole = np.asarray(table.embeddings)
    np.testing.assert_allclose(outputs(model, x), whole[x] @ whole.T, atol=1e-5)
    with adapters.disabled():
        assert np.abs(np.asarray(table.embeddings) - whole).max() > 1e-3
