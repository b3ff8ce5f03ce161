"""What a Keras layer takes, its low-rank twin takes too, or refuses by name."""

import inspect

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_lowrank
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
    LowRankGRUCell,
    LowRankLSTM,
    LowRankLSTMCell,
    LowRankModel,
    LowRankMultiHeadAttention,
    callbacks,
)

rng = np.random.default_rng(0)
X = rng.standard_normal((4, 8)).astype("float32")
SEQUENCES = rng.standard_normal((2, 5, 8)).astype("float32")
IMAGES = rng.standard_normal((2, 6, 6, 3)).astype("float32")


def functional(layer, shape=(8,), compile=True):
    inputs = keras.Input(shape)
    model = LowRankModel(inputs, layer(inputs))
    if compile:
        model.compile("sgd", "mse", run_eagerly=True)
    return model


# Arguments.

CONVOLUTION = ("valid", None, 1, 1, "relu", False)  # padding to use_bias
RECURRENT = (4, "relu", "relu", False)
POSITIONAL = {
    LowRankDense: (4, "relu", False),
    LowRankEinsumDense: ("ab,bc->ac", 4, "relu", None),
    LowRankEmbedding: (9, 4),
    LowRankConv1D: (4, 2, 1, *CONVOLUTION),
    LowRankConv2D: (4, 2, 1, *CONVOLUTION),
    LowRankConv3D: (4, 2, 1, *CONVOLUTION),
    LowRankConv2DTranspose: (4, 2, 1, "valid", None, None, 1, "relu", False),
    LowRankLSTM: RECURRENT,
    LowRankLSTMCell: RECURRENT,
    LowRankGRU: RECURRENT,
    LowRankGRUCell: RECURRENT,
}


@pytest.mark.parametrize("low", POSITIONAL, ids=lambda cls: cls.__name__)
def test_arguments_by_position(low):
    """The next ones, in Keras's order, are initializers and what follows them."""
    plain = getattr(keras.layers, low.__name__.removeprefix("LowRank"))
    positions = (*POSITIONAL[low], "zeros")
    configs = [cls(*positions, name="one").get_config() for cls in (plain, low)]
    assert {key: configs[1].get(key) for key in configs[0] if key in configs[1]} == {
        key: value for key, value in configs[0].items() if key in configs[1]
    }
    with pytest.raises(TypeError, match="multiple values|positional|duplicate"):
        low(*positions, *[None] * 30)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_integers_of_numpy(kind):
    three, four = kind(3), kind(4)
    made = [
        LowRankDense(four, rank=three, min_rank=kind(1), max_rank=three),
        LowRankEinsumDense("ab,bc->ac", four, rank=three),
        LowRankEmbedding(four, four, rank=three),
        LowRankLSTM(four, rank=three),
        LowRankGRU(four, rank={"recurrent_kernel": three}),
        LowRankMultiHeadAttention(2, 4, rank=three),
    ]
    for layer in made:
        again = type(layer).from_config(layer.get_config())
        assert keras.saving.serialize_keras_object(again)["config"] == layer.get_config()
    assert made[0].units == 4 and type(made[0].units) is int and type(made[0].rank) is int
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8)])
    assert list(keras_lowrank.from_keras(model, rank=three).ranks.values()) == [3]
    for wrong in (0, -1, 2.0, True, "3", np.float32(2)):
        with pytest.raises(ValueError, match=r"positive integer\. Received: "):
            LowRankDense(wrong)
        with pytest.raises(ValueError, match=r"`rank` must be a positive integer"):
            LowRankDense(4, rank=wrong)


def named(function, kinds="POSITIONAL_OR_KEYWORD KEYWORD_ONLY"):
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind.name in kinds.split()]


TWINS = [name for name in dir(layers) if f"LowRank{name}" in keras_lowrank.__all__]


@pytest.mark.parametrize("name", [name for name in TWINS if name != "Layer"])
def test_an_editor_shows_the_arguments_in_the_order_of_keras(name):
    own, plain = getattr(keras_lowrank, f"LowRank{name}"), getattr(layers, name)
    by_position = named(own, "POSITIONAL_OR_KEYWORD")
    known = [one for one in by_position if one in named(plain)]
    assert named(plain)[: len(known)] == known
    assert {"rank", "min_rank", "max_rank", "truncation"} <= set(named(own))
    if "args" not in inspect.signature(own).parameters:
        assert set(named(plain)) <= set(named(own))
    shown = inspect.signature(own).parameters.values()
    assert all(one.annotation is not one.empty for one in shown)


def test_an_editor_shows_the_arguments_of_compile():
    shown = inspect.signature(LowRankModel.compile).parameters
    assert named(keras.Model.compile) == [one for one in shown if one in named(keras.Model.compile)]
    assert {"integrator", "truncation"} <= set(shown)
    assert all(one.annotation is not one.empty for one in list(shown.values())[1:])


def test_jit_compile_and_all_else_of_compile_by_position():
    model = functional(LowRankDense(4), compile=False)
    model.compile("sgd", "mse", None, ["mae"], None, True, 1, False)
    assert model.run_eagerly and model.jit_compile is False
    assert len(model.evaluate(X, X[:, :4], verbose=0)) == 2


def test_one_rank_for_several_kernels_is_at_most_what_each_can_have():
    for layer in (LowRankLSTM(32, rank=8), LowRankGRU(32, rank=8, stacked=False)):
        layer(SEQUENCES[..., :5])
        model = keras_lowrank.find_low_rank_layers(layer).items()
        for path, one in model:
            assert one.rank == (8 if "recurrent" in path else 5)
    attention = LowRankMultiHeadAttention(2, 3, rank=8)
    attention(SEQUENCES, SEQUENCES)
    assert {one.rank for one in attention._flatten_layers(False) if one.weights} == {6}
    with pytest.raises(ValueError, match="at most"):  # one that is asked for by name
        LowRankLSTM(32, rank={"kernel": 8})(SEQUENCES[..., :5])


# What is read and called on a layer.


@pytest.mark.parametrize("make", [lambda: LowRankDense(4, "relu"), lambda: LowRankConv1D(4, 2)])
def test_an_activation_that_is_taken_away(make):
    layer = make()
    layer(SEQUENCES)
    layer.activation = None
    inside = tf.linalg.matmul if isinstance(layer, LowRankDense) else layer.convolution_op
    np.testing.assert_allclose(layer(SEQUENCES), inside(SEQUENCES, layer.kernel), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"strides": 2}, {"dilation_rate": 2, "use_bias": False}]
)
def test_convolution_op(options):
    layer = LowRankConv2D(4, 3, **options)
    outputs = layer(IMAGES)
    np.testing.assert_allclose(layer.convolution_op(IMAGES, layer.kernel), outputs, atol=1e-5)


def test_a_convolution_op_of_ones_own_is_refused():
    class Standardized(LowRankConv2D):
        def convolution_op(self, inputs, kernel):
            return super().convolution_op(inputs, kernel - 1)

    with pytest.raises(ValueError, match="Override `project`.*Received: .*'Standardized'"):
        Standardized(4, 3)


def test_what_an_embedding_is_asked_for():
    layer = LowRankEmbedding(9, 4, "zeros", keras.regularizers.L2(0.1))
    assert isinstance(layer.embeddings_initializer, keras.initializers.Zeros)
    assert float(layer.embeddings_regularizer.l2) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "make, inputs",
    [
        (lambda: LowRankDense(4, rank=3), (X,)),
        (lambda: LowRankConv2D(4, 2, rank=3), (IMAGES,)),
        (lambda: LowRankEmbedding(9, 4, rank=3), (np.array([[1, 2]]),)),
        (lambda: LowRankEinsumDense("abc,cd->abd", (None, 4), rank=3), (SEQUENCES,)),
        (lambda: LowRankLSTM(4, rank=3), (SEQUENCES,)),
        (lambda: LowRankGroupQueryAttention(4, 2, 1, rank=3), (SEQUENCES, SEQUENCES)),
        (lambda: functional(LowRankDense(4, rank=3)), (X,)),
    ],
)
def test_stateless_call(make, inputs):
    layer = make()
    outputs = layer(*inputs)
    variables = layer.trainable_variables
    for given in (variables, [v.numpy() for v in variables]):
        found, _ = layer.stateless_call(given, layer.non_trainable_variables, *inputs)
        np.testing.assert_allclose(found, outputs, atol=1e-6)
    zeros = [np.zeros_like(v) for v in variables]
    found, _ = layer.stateless_call(zeros, layer.non_trainable_variables, *inputs)
    assert not np.any(found) and np.any(variables[0])


@pytest.mark.parametrize(
    "make, method",
    [
        (lambda rank: LowRankLSTM(4, rank=rank), True),
        (lambda rank: LowRankMultiHeadAttention(2, 4, rank=rank), True),
        (lambda rank: layers.RNN(LowRankGRUCell(4, rank=rank)), False),
        (lambda rank: layers.Bidirectional(LowRankLSTM(4, rank=rank)), False),
        (lambda rank: layers.TimeDistributed(LowRankDense(4, rank=rank)), False),
        (lambda rank: keras.Sequential([keras.Sequential([LowRankDense(4, rank=rank)])]), False),
    ],
)
def test_set_weights_across_ranks(make, method):
    one, other = make(2), make(3)
    arguments = [SEQUENCES] * (2 if isinstance(one, LowRankMultiHeadAttention) else 1)
    one(*arguments)
    wanted, weights = other(*arguments), other.get_weights()
    if method:
        one.set_weights(weights)
    else:
        keras_lowrank.set_weights(one, weights)
    np.testing.assert_allclose(one(*arguments), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="needs .* arrays"):
        keras_lowrank.set_weights(one, weights[1:])


# Optimizers.


def test_a_plain_subclass_of_an_optimizer():
    class Renamed(keras.optimizers.Adam):
        def __init__(self, learning_rate=0.01, extra=1):
            super().__init__(learning_rate)
            self.extra = extra

        def get_config(self):
            return {**super().get_config(), "extra": self.extra}

    class Reversed(Renamed):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(-gradient, variable, learning_rate)

    weights = []
    for optimizer in (Renamed(), keras.optimizers.Adam(0.01)):
        keras.utils.set_random_seed(0)
        model = functional(LowRankDense(4, rank=3))
        model.compile(optimizer, "mse", run_eagerly=True)
        model.train_on_batch(X, X[:, :4])
        weights.append(model.get_weights())
    for one, other in zip(*weights):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="Reversed has no rule"):
        model.compile(Reversed(), "mse")


# What cannot be had.


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: LowRankDense(4, **o),
        lambda **o: LowRankLSTM(4, **o),
        lambda **o: LowRankMultiHeadAttention(2, 4, **o)(X[None], X[None]),
        lambda **o: LowRankConv2D(4, 2, **o),
    ],
)
@pytest.mark.parametrize("policy", ["int8_from_float32", "float8_from_mixed_bfloat16"])
def test_a_dtype_of_quantized_kernels_is_refused(make, policy):
    with pytest.raises(ValueError, match=f"policy for floats.*Received: dtype='{policy}'"):
        make(dtype=policy)


def test_lora_on_a_low_rank_layer_is_refused():
    for layer in (LowRankDense(4, name="one"), LowRankEmbedding(9, 4, name="one")):
        with pytest.raises(ValueError, match=r"cannot have LoRA.*rank=4 for layer 'one'"):
            layer.enable_lora(4)


@pytest.mark.parametrize("layer", [layers.Dense(8), layers.EinsumDense("ab,bc->ac", 8)])
def test_what_lora_has_learned_is_converted(layer):
    model = keras.Sequential([keras.Input((8,)), layer])
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(rng.standard_normal((2, 8)))
    low = keras_lowrank.from_keras(model, tolerance=0.0, only_smaller=False)
    np.testing.assert_allclose(low(X), model(X), rtol=1e-4, atol=1e-4)


def test_spectral_normalization_is_refused():
    for layer in (LowRankDense(4, name="inside"), LowRankConv1D(4, 2, name="inside")):
        wrapper = layers.SpectralNormalization(layer, name="out")
        model = functional(wrapper, SEQUENCES.shape[1:], compile=False)
        with pytest.raises(ValueError, match="SpectralNormalization.*'inside' in 'out'"):
            model.compile("sgd", "mse")


def test_metadata_for_a_low_rank_table_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    inputs = keras.Input((3,), dtype="int32")
    model = LowRankModel(inputs, LowRankEmbedding(9, 4, name="table")(inputs))
    for metadata in ("words.tsv", {"table": "words.tsv"}):
        callback = callbacks.TensorBoard("/tmp/unused", embeddings_metadata=metadata)
        with pytest.raises(ValueError, match="projector.*embeddings_metadata=.*'table'"):
            callback.set_model(model)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_a_wrapper_has_the_dtype_that_it_has_around_keras_layers(policy):
    specs = []
    for cls in (layers.Dense, LowRankDense):
        outputs = layers.TimeDistributed(cls(4, dtype=policy), dtype=policy)(keras.Input((5, 8)))
        specs.append((outputs.dtype, outputs.shape))
    assert specs[0] == specs[1]


# Files.


def test_hdf5_is_refused_whoever_saves(tmp_path):
    class Own(LowRankModel):
        def __init__(self):
            super().__init__()
            self.low = LowRankDense(4)

        def call(self, inputs):
            return self.low(inputs)

    own = Own()
    own(X)
    for model in (functional(LowRankDense(4)), own):
        for save in (model.save, lambda path, model=model: keras.saving.save_model(model, path)):
            with pytest.raises(ValueError, match=r"ends in `\.keras`.*Received: "):
                save(tmp_path / "model.h5")
        assert model.get_config()


def test_an_export_archive_is_one_that_keras_loads(tmp_path):
    model = functional(LowRankDense(4, rank=3))
    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = keras.InputSpec(shape=(None, 8), dtype="float32")
    archive.add_endpoint("serve", model.call, [spec])
    archive.write_out(tmp_path / "served", verbose=False)
    loaded = layers.TFSMLayer(tmp_path / "served", call_endpoint="serve")
    np.testing.assert_allclose(loaded(X), model(X), atol=1e-6)


@pytest.mark.parametrize("options", [{"chunks": (1024,)}, {"external": [("other.bin", 0, 2**53)]}])
def test_a_weights_file_that_declares_more_than_it_holds(tmp_path, options):
    path = tmp_path / "crafted.weights.h5"
    model = functional(LowRankDense(4))
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        file["layers"].create_dataset("more", shape=(2**50,), dtype="f8", **options)
    with pytest.raises(ValueError, match=r"must lie in the file.*Received: 'layers/more'"):
        model.load_weights(path)
