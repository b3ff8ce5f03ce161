"""Exported files: they load elsewhere, agree with the model, and hold no more than they need."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from reference.cases import partly_slow
from reference.exported import operations, path_for, predict_file, run_lite

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankLSTM, LowRankModel

rng = np.random.default_rng(0)
X = rng.standard_normal((5, 8, 8, 2)).astype("float32")

# Of two formats that have most of their code in common, the one with more of its own comes first.
LITERT_FIRST = pytest.mark.parametrize("format", partly_slow(["litert"], ["tf_saved_model"]))
SAVED_MODEL_FIRST = pytest.mark.parametrize("format", partly_slow(["tf_saved_model"], ["litert"]))


def make(rank=2):
    inputs = keras.Input((8, 8, 2), name="image")
    x = LowRankConv2D(6, 3, rank=rank, activation="relu", name="conv")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    x = LowRankDense(32, rank=rank, activation="relu", name="low")(x)
    # Rank 6 of 32 x 6: the pair would be larger than the matrix.
    x = LowRankDense(6, rank=6, name="full")(x)
    return LowRankModel(inputs, keras.layers.Dense(3, name="head")(x))


class Subclassed(LowRankModel):
    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.low = LowRankDense(32, rank=2)

    def call(self, inputs, training=False):
        return self.low(self.flatten(inputs))


def dense_model(n, m, rank):
    inputs = keras.Input((n,))
    return LowRankModel(inputs, LowRankDense(m, rank=rank, use_bias=False)(inputs))


def serve(path, inputs):
    loaded = tf.saved_model.load(str(path))  # held: it owns the variables
    named = {name: tf.constant(value) for name, value in inputs.items()}
    outputs = loaded.signatures["serving_default"](**named)
    return {name: value.numpy() for name, value in outputs.items()}


def stored_shapes(path):
    """The shapes of all arrays that a SavedModel stores, each from small to large, sorted."""
    listed = tf.train.list_variables(str(path / "variables" / "variables"))
    return sorted(tuple(sorted(shape)) for name, shape in listed if shape)


# SavedModel.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model, and the SavedModel of it."""
    model, folder = make(), tmp_path_factory.mktemp("trained") / "1"
    # For an optimizer's state to leave out.
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
    model.fit(X, np.ones((5, 3)), verbose=0)
    model.export(folder, verbose=0)
    return model, folder


def test_saved_model_serves_any_batch(trained):
    model, folder = trained
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert spec.shape.as_list() == [None, 8, 8, 2]
    expected = model.predict(X, verbose=0)
    for batch in (1, 4, 5):
        (outputs,) = signature(**{spec.name: tf.constant(X[:batch])}).values()
        np.testing.assert_allclose(outputs, expected[:batch], atol=1e-4)


def test_saved_model_holds_the_folded_pair_or_one_kernel_and_nothing_else(trained):
    model, folder = trained
    conv, low = (model.get_layer(name).factors.rank for name in ("conv", "low"))
    full_rank = model.get_layer("full").rank
    pair = [(32, full_rank), (full_rank, 6)]
    expected = [
        *((18, conv), (conv, 6), (6,)),
        *[(6,)] * 4,
        *((216, low), (low, 32), (32,)),
        *(pair if full_rank * (32 + 6) < 32 * 6 else [(32, 6)]),
        *((6,), (6, 3), (3,)),
    ]
    assert stored_shapes(folder) == sorted(tuple(sorted(shape)) for shape in expected)


@pytest.mark.parametrize(
    "n, m, rank, kernels",
    partly_slow(
        [(20, 20, 9, [(9, 20), (9, 20)]), (20, 20, 10, [(20, 20)])],
        [
            (20, 20, 20, [(20, 20)]),
            (20, 2, 1, [(1, 2), (1, 20)]),
            (20, 2, 2, [(2, 20)]),
        ],
    ),
)
def test_dense_kernel_where_it_is_no_larger(tmp_path, n, m, rank, kernels):
    model = dense_model(n, m, rank)
    model.export(tmp_path / "1", verbose=0)
    assert stored_shapes(tmp_path / "1") == kernels
    assert sum(np.prod(k) for k in kernels) == model.compression().deployed


def test_saved_model_needs_no_package_of_ours(trained):
    text = (trained[1] / "saved_model.pb").read_bytes()
    for custom in (b"LowRankDense", b"RankVariable", b"CustomGradient"):
        assert custom not in text


# LiteRT.


@pytest.fixture(scope="module", params=partly_slow(["litert"], ["tflite"]))
def file(request, tmp_path_factory):
    """A model, and the LiteRT file of it, under both names of the format."""
    model, path = make(), tmp_path_factory.mktemp("file") / "model.tflite"
    model.export(path, format=request.param, verbose=0)
    return model, str(path)


def test_litert_file_runs_in_both_interpreters_at_any_batch(file):
    model, path = file
    for interpreter in (Interpreter(model_path=path), tf.lite.Interpreter(model_path=path)):
        (detail,) = interpreter.get_input_details()
        assert detail["shape_signature"].tolist() == [-1, 8, 8, 2]
        for batch in (1, 4):
            (outputs,) = run_lite(interpreter, [X[:batch]])
            expected = model.predict(X[:batch], verbose=0)
            np.testing.assert_allclose(outputs, expected, atol=1e-4)


def test_litert_file_has_builtin_operations_only_and_no_variables(file):
    names = operations(file[1])
    assert {"CONV_2D", "FULLY_CONNECTED"} <= names
    assert not [name for name in names if "FLEX" in name.upper() or "CUSTOM" in name.upper()]
    assert not names & {"READ_VARIABLE", "ASSIGN_VARIABLE", "VAR_HANDLE"}


def test_litert_file_computes_no_shapes(tmp_path):
    # They would make every tensor of the file dynamic, and keep delegates away.
    inputs = keras.Input((8, 8, 2))
    x = LowRankConv2D(6, 3, rank=2, padding="same", dilation_rate=2)(inputs)
    x = LowRankDense(5, rank=2)(LowRankConv2D(6, 3, rank=2)(x))
    model = LowRankModel(inputs, LowRankDense(4, rank=2)(keras.layers.GlobalMaxPooling2D()(x)))
    model.export(tmp_path / "model.tflite", format="litert", verbose=0)
    names = operations(tmp_path / "model.tflite")
    assert not names & {"SHAPE", "STRIDED_SLICE", "PACK", "GATHER"}


@pytest.mark.parametrize("shape", partly_slow([(3, 8)], [((8, 8, 8),)]))
def test_litert_takes_dense_layers_on_inputs_of_higher_rank(tmp_path, shape):
    inputs = keras.Input(shape)
    model = LowRankModel(inputs, LowRankDense(8, rank=2)(inputs))
    model.export(tmp_path / "model.tflite", format="litert", verbose=0)
    values = rng.standard_normal((3, *shape)).astype("float32")
    (outputs,) = predict_file(tmp_path / "model.tflite", "litert", [values])
    np.testing.assert_allclose(outputs, model.predict(values, verbose=0), atol=1e-4)


@LITERT_FIRST
def test_file_sizes_follow_the_ranks(tmp_path, format):
    sizes = {}
    for rank in (4, 16):
        path = path_for(tmp_path, format, f"{rank}")
        dense_model(400, 400, rank).export(path, format=format, verbose=0)
        if format == "tf_saved_model":
            path = path / "variables" / "variables.data-00000-of-00001"
        sizes[rank] = path.stat().st_size
    more = 4 * (16 - 4) * (400 + 400)
    assert abs((sizes[16] - sizes[4]) - more) < 0.02 * more
    assert sizes[4] < 4 * 4 * 800 + 10_000


# Models of other shapes.


@LITERT_FIRST
def test_subclassed_model_is_exported(tmp_path, format):
    model = Subclassed()
    expected = model.predict(X, verbose=0)
    model.export(path_for(tmp_path, format), format=format, verbose=0)
    (outputs,) = predict_file(path_for(tmp_path, format), format, [X])
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


@LITERT_FIRST
def test_two_inputs_and_two_outputs_keep_their_order(tmp_path, format):
    # Named against the order of the alphabet, in which files may list them.
    a, b = keras.Input((8,), name="z"), keras.Input((4,), name="a")
    x, y = LowRankDense(6, rank=2)(a), LowRankDense(5, rank=2)(b)
    both = LowRankDense(3, rank=1)(keras.layers.Concatenate()([x, y]))
    model = LowRankModel([a, b], [both, x])
    values = [rng.standard_normal((3, n)).astype("float32") for n in (8, 4)]
    expected = model.predict(values, verbose=0)
    path = path_for(tmp_path, format)
    model.export(path, format=format, verbose=0)
    if format == "tf_saved_model":
        loaded = tf.saved_model.load(str(path))
        outputs = [t.numpy() for t in loaded.serve(values)]
    else:
        named = dict(zip("za", values))
        runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
        outputs = [value for _, value in sorted(runner(**named).items())]
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


@SAVED_MODEL_FIRST
def test_dictionaries_in_and_out(tmp_path, format):
    inputs = {"b": keras.Input((4,), name="b"), "a": keras.Input((8,), name="a")}
    x = LowRankDense(6, rank=2)(inputs["a"])
    y = LowRankDense(5, rank=2)(inputs["b"])
    model = LowRankModel(inputs, {"wide": x, "narrow": y})
    values = {n: rng.standard_normal((3, k)).astype("float32") for n, k in (("a", 8), ("b", 4))}
    expected = model.predict(values, verbose=0)
    path = path_for(tmp_path, format)
    model.export(path, format=format, verbose=0)
    if format == "tf_saved_model":
        outputs = serve(path, values)
        assert outputs.keys() == expected.keys()
        for name, want in expected.items():
            np.testing.assert_allclose(outputs[name], want, atol=1e-4)
    else:
        # An input's name is a signature of the file, whatever the order of its tensors is.
        runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
        outputs = runner(**values)
        assert outputs.keys() == expected.keys()
        for name, want in expected.items():
            np.testing.assert_allclose(outputs[name], want, atol=1e-4)


def test_lookup_tables_are_exported(tmp_path):
    words = keras.Input((1,), dtype="string", name="word")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    model = LowRankModel(words, LowRankDense(4, rank=2)(lookup(words)))
    values = tf.constant([["b"], ["unknown"]])
    expected = model(values)
    model.export(tmp_path / "1", verbose=0)
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    outputs = loaded.serve(values)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


@SAVED_MODEL_FIRST
def test_nested_and_frozen_layers_are_folded_too(tmp_path, format):
    low = LowRankDense(30, rank=2, use_bias=False, name="low")
    low.trainable = False
    inputs = keras.Input((30,))
    model = LowRankModel(inputs, keras.Sequential([keras.Input((30,)), low])(inputs))
    path = path_for(tmp_path, format)
    model.export(path, format=format, verbose=0)
    if format == "tf_saved_model":
        assert stored_shapes(path) == [(2, 30), (2, 30)]
    values = rng.standard_normal((3, 30)).astype("float32")
    (outputs,) = predict_file(path, format, [values])
    np.testing.assert_allclose(outputs, model.predict(values, verbose=0), atol=1e-4)


@pytest.mark.parametrize("policy", partly_slow(["mixed_bfloat16"], ["mixed_float16"]))
def test_mixed_precision_model_is_exported(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, LowRankDense(6, rank=2, dtype=policy)(inputs))
    model.export(tmp_path / "1", verbose=0)
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    outputs = loaded.serve(tf.ones((2, 8)))
    expected = tf.cast(model(tf.ones((2, 8))), tf.float32)
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, atol=0.05)


def test_export_leaves_the_model_as_it_was(tmp_path):
    model = dense_model(8, 6, 2)
    model.compile("sgd", "mse", truncation=0.0)
    before = [w.tobytes() for w in model.get_weights()]
    paths = [v.path for v in model.variables]
    model.export(tmp_path / "1", verbose=0)
    assert [w.tobytes() for w in model.get_weights()] == before
    assert [v.path for v in model.variables] == paths
    model.fit(np.ones((4, 8)), np.ones((4, 6)), verbose=0)
    assert [w.tobytes() for w in model.get_weights()] != before


def test_a_stateful_layer_is_exported_at_its_batch_size_and_put_back(tmp_path):
    inputs = keras.Input((4, 3), batch_size=2)
    lstm = LowRankLSTM(5, rank=2, stateful=True)
    model = LowRankModel(inputs, lstm(inputs))
    x = rng.standard_normal((2, 4, 3)).astype("float32")
    model(x)
    states = [np.array(state) for state in lstm.states]
    model.export(tmp_path / "1", verbose=False)
    for state, before in zip(lstm.states, states):
        np.testing.assert_array_equal(state, before)
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    np.testing.assert_allclose(loaded.serve(tf.constant(x)), model(x), atol=1e-5)
    with pytest.raises(ValueError, match="`check_data` needs .* Received: .* batch size 2"):
        model.export(tmp_path / "2", check_data=(x, np.zeros(2)), verbose=False)


def test_a_file_for_one_input_at_a_time_is_quantised_and_checked_on_data(tmp_path):
    model = dense_model(8, 6, 2)
    x = rng.standard_normal((40, 8)).astype("float32")
    y = np.argmax(model(x), axis=-1)
    report = model.export(
        tmp_path / "one.tflite",
        format="litert",
        input_signature=[tf.TensorSpec((1, 8), "float32")],
        quantization="int8",
        representative_data=x,
        check_data=(x, y),
        accuracy_drop=0.2,
        verbose=False,
        report=True,
    )
    assert report.accuracy >= 0.8
    (detail,) = Interpreter(str(tmp_path / "one.tflite")).get_input_details()
    assert detail["shape_signature"].tolist() == [1, 8]


def test_a_batch_size_that_no_state_depends_on_is_free_in_the_file(tmp_path):
    inputs = keras.Input((8,), batch_size=4)
    model = LowRankModel(inputs, LowRankDense(6, rank=2)(inputs))
    model.export(tmp_path / "1", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    assert loaded.serve(tf.ones((3, 8))).shape == (3, 6)
