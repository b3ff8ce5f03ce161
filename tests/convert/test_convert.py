"""from_keras: every kind of Keras model, with its names, weights and settings."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference.conversion import check_same, draw, full, functional, nested_and_shared, randomize

from keras_lowrank import (
    LowRankConv2D,
    LowRankDense,
    LowRankModel,
    callbacks,
    convert_layer,
    from_keras,
    to_keras,
)


def test_a_functional_model_keeps_outputs_names_and_statistics():
    model = randomize(functional())
    low = full(model)
    assert isinstance(low, LowRankModel) and not low.compiled and low.name == "mine"
    check_same(model, low, draw(4, 9, 8, 3))
    assert [layer.name for layer in low.layers] == [layer.name for layer in model.layers]
    assert [tensor.name for tensor in low.inputs] == ["image"]
    assert low.ranks == {"stem": 8, "conv": 8, "head": 5}
    assert isinstance(low.get_layer("stem"), LowRankConv2D)
    assert isinstance(low.get_layer("head"), LowRankDense)
    before, after = model.get_layer("norm"), low.get_layer("norm")
    assert before is not after
    for a, b in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    u, s, v = (part.numpy() for part in low.get_layer("stem").factors.read())
    np.testing.assert_allclose(u.T @ u, np.eye(8), atol=1e-6)
    np.testing.assert_allclose(v.T @ v, np.eye(8), atol=1e-6)
    kernel = model.get_layer("stem").kernel.numpy().reshape(27, 8)
    np.testing.assert_allclose(
        np.diag(s), np.linalg.svd(kernel, compute_uv=False), rtol=1e-5, atol=1e-6
    )


def test_a_converted_model_trains_saves_and_leaves_the_original_alone(tmp_path):
    # Keras itself does not load a model that shares a layer with another inside it.
    model = randomize(nested_and_shared(across=False))
    before = model.get_weights()
    low = full(model)
    inputs = {"a": draw(8, 6), "b": draw(8, 6)}
    check_same(model, low, inputs)
    assert set(low.ranks) == {"tower/first", "tower/shared", "inner/inside", "p", "q"}
    low.compile("adam", {"p": "mse", "q": "mse"}, truncation=0.2)
    watch = callbacks.RankHistory()
    targets = {"p": draw(8, 3), "q": draw(8, 2)}
    losses = low.fit(inputs, targets, epochs=3, verbose=0, callbacks=[watch]).history["loss"]
    assert losses[-1] < losses[0] and min(low.ranks.values()) < 6
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    low.save(tmp_path / "model.keras")
    check_same(low, keras.saving.load_model(tmp_path / "model.keras"), inputs)


def test_layers_used_in_several_places_stay_one_layer():
    model = nested_and_shared()
    low = full(model)
    tower, inner = low.get_layer("tower"), low.get_layer("inner")
    assert isinstance(tower, keras.Sequential)
    assert tower.get_layer("shared") is inner.get_layer("shared") is low.get_layer("shared")
    assert len(low.weights) == len(model.weights) + 2 * len(low.ranks)  # U, S, V for a kernel


def test_a_sequential_model():
    model = keras.Sequential([layers.Dense(4, name="a"), layers.Dense(3, name="b")])
    model.build((None, 5))
    randomize(model)
    low = full(model)
    check_same(model, low, draw(2, 5))
    assert low.ranks == {"a": 4, "b": 3}


def test_settings_of_layers_stay():
    inputs = keras.Input((6, 7, 8))
    x = layers.Conv2D(
        9,
        3,
        data_format="channels_last",
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
        bias_constraint="non_neg",
        activity_regularizer=keras.regularizers.L2(0.2),
        kernel_initializer=keras.initializers.HeNormal(seed=7),
        dtype="mixed_bfloat16",
        name="conv",
    )(inputs)
    inner = keras.Sequential([layers.Dense(4, name="frozen"), layers.Dense(4, name="free")])
    x = inner(x)
    inner.layers[0].trainable = False
    x = layers.Dense(3, activation=lambda t: t * 2, name="odd")(x)
    model = keras.Model(inputs, x)
    low = full(model)
    conv, source = low.get_layer("conv"), model.get_layer("conv")
    shared = [
        key
        for key in source.get_config()
        if key in conv.get_config() and key not in ("groups", "quantization_config")
    ]
    assert len(shared) > 15
    assert {k: conv.get_config()[k] for k in shared} == {k: source.get_config()[k] for k in shared}
    twin = low.get_layer(inner.name)
    assert [layer.trainable for layer in twin.layers] == [False, True]
    assert not twin.layers[0].U.trainable and twin.layers[1].U.trainable
    assert low.get_layer("odd").activation is model.get_layer("odd").activation
    np.testing.assert_allclose(sum(low.losses), sum(model.losses), rtol=1e-5)
    model.trainable = False
    assert full(model).trainable_variables == []


def test_layers_with_state_and_layers_inside_layers_are_copied():
    text = keras.Input((1,), dtype="string")
    words = layers.TextVectorization(output_mode="multi_hot", name="words")
    words.adapt(["ab cd", "ab ef"])
    number = keras.Input((3,))
    norm = layers.Normalization(name="scale")
    norm.adapt(draw(20, 3))
    sequence = layers.Bidirectional(layers.GRU(4), name="gru")
    x = layers.Concatenate()([layers.Flatten()(words(text)), norm(number)])
    y = sequence(layers.Reshape((-1, 1))(x))
    y = layers.BatchNormalization()(layers.Concatenate()([x, y]))
    model = keras.Model([text, number], layers.Dense(3, name="head")(y))
    inputs = [tf.constant([["ab zz"], ["ef"]]), tf.constant(draw(2, 3))]
    check_same(model, full(model), inputs)


def test_a_low_rank_model_is_copied_with_its_ranks():
    inputs = keras.Input((6,))
    x = LowRankDense(7, rank=4, name="low")(inputs)
    model = LowRankModel(inputs, layers.Dense(5, name="dense")(x))
    model.get_layer("low").factors.assign([draw(6, 2), draw(2, 2), draw(7, 2)])
    low = full(model)
    assert low.ranks == {"low": 2, "dense": 5}
    check_same(model, low, draw(3, 6))


def test_convert_layer_is_the_way_of_classes_of_ones_own():
    dense = layers.Dense(6, activation="relu", name="mine")
    x = draw(3, 8)
    outputs = dense(x)
    twin = convert_layer(dense, tolerance=0.0)
    np.testing.assert_allclose(twin(x), outputs, rtol=1e-5, atol=1e-5)
    assert twin.name == "mine" and twin.factors.rank == 6
    assert convert_layer(dense, rank=99).factors.rank == 6
    assert convert_layer(dense, energy=0.5).factors.rank < 6
    with pytest.raises(ValueError, match=r"must be one of the Keras layers Dense, Conv1D, Conv2D"):
        convert_layer(layers.Flatten(), rank=2)
    with pytest.raises(ValueError, match="must have weights"):
        convert_layer(layers.Dense(3), rank=2)
    with pytest.raises(ValueError, match=r"Exactly one of.*Received: none of them"):
        convert_layer(dense)


# What stays as it is, and what is refused.


@pytest.mark.parametrize(
    "layer, reason",
    [
        (lambda: layers.Conv2D(4, 3, groups=2, name="odd"), "`groups` must be 1"),
        (lambda: layers.Dense(4, kernel_constraint="non_neg", name="odd"), "`kernel_constraint`"),
        (lambda: layers.Dense(4, kernel_regularizer="l1", name="odd"), "must be L2"),
    ],
)
def test_layers_that_no_factors_can_stand_for_stay_with_a_warning(layer, reason):
    inputs = keras.Input((5, 5, 4))
    model = keras.Model(inputs, layers.Dense(4, name="even")(layer()(inputs)))
    with pytest.warns(UserWarning, match=f"Some layers stay as they are. odd: .*{reason}"):
        low = full(model)
    assert list(low.ranks) == ["even"]
    check_same(model, low, draw(2, 5, 5, 4))


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, name="dense")

    def call(self, inputs):
        return inputs + self.dense(inputs)

    def build(self, input_shape):
        self.dense.build(input_shape)


def test_layers_inside_a_layer_of_ones_own_are_converted_too():
    inputs = keras.Input((4,))
    x = Block(name="block")(inputs)
    model = keras.Model(inputs, layers.Dense(4, name="even")(x), name="mine")
    low = full(randomize(model))
    assert list(low.ranks) == ["block/dense", "even"] and isinstance(low, LowRankModel)
    assert type(model.get_layer("block").dense) is layers.Dense and low.name == "mine"
    check_same(model, low, draw(2, 4))
    for style in ("smaller", "merged"):
        plain = to_keras(low, style)
        assert type(plain) is type(model) and type(plain.get_layer("block").dense) is layers.Dense
        check_same(model, plain, draw(2, 4))
    assert list(full(model, exclude="block").ranks) == ["even"]
    bound = Block(name="block")
    bound.dense.kernel_constraint = keras.constraints.NonNeg()
    with pytest.warns(UserWarning, match="Some layers stay as they are. block/dense: `kernel_con"):
        full(keras.Model(inputs, layers.Dense(4, name="even")(bound(inputs))))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_models_that_cannot_be_converted_raise():
    with pytest.raises(ValueError, match="needs a model with weights.*'subclassed'"):
        from_keras(Subclassed(name="subclassed"), rank=2)
    with pytest.raises(TypeError, match=r"takes a `keras.Model`. Received: Dense"):
        from_keras(layers.Dense(2), rank=2)
    with pytest.raises(ValueError, match="needs a model with weights"):
        from_keras(keras.Sequential([layers.Dense(2)]), rank=2)
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="needs a layer to convert.*: Dense, Conv1D, Conv2D"):
        from_keras(keras.Model(inputs, layers.Activation("relu")(inputs)), rank=2)
    model = keras.Sequential([inputs, layers.Dense(4, name="bad")])
    model.layers[0].kernel.assign(np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match=r"'bad' cannot be decomposed. Every entry.* finite"):
        from_keras(model, rank=2)


class NoConfig(layers.Layer):
    def __init__(self, function):
        super().__init__(name="closed")
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def test_a_layer_without_a_config_is_named():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4)(NoConfig(tf.nn.relu)(inputs)))
    with pytest.raises(ValueError, match=r"'closed' of class NoConfig must be described by its"):
        from_keras(model, rank=2, only_smaller=False)


class Tied(layers.Layer):
    def __init__(self, source):
        super().__init__(name="tied")
        self.source = source

    def call(self, inputs):
        return inputs @ keras.ops.transpose(self.source.kernel)


def test_variables_that_two_layers_share_are_refused():
    inputs = keras.Input((4,))
    dense = layers.Dense(3, name="dense")
    model = keras.Model(inputs, Tied(dense)(dense(inputs)))
    for convert in (full, to_keras):
        with pytest.raises(ValueError, match="one layer twice.*Received: the layers dense, tied"):
            convert(model)


def test_refusals_of_many_layers_come_once_with_a_count():
    norm = keras.constraints.MaxNorm()
    stack = [layers.Dense(8, kernel_constraint=norm, name=f"block_{i}") for i in range(5)]
    model = keras.Sequential([keras.Input((8,)), *stack, layers.Dense(8)])
    with pytest.warns(UserWarning, match=r"block_2, \.\.\. \(5 layers\): `kernel_c") as record:
        from_keras(model, rank=2)
    assert str(record[0].message).count("kernel_constraint") == 1


def test_data_from_a_generator():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8)])
    inputs = draw(4, 8)
    batches = [inputs[:2], inputs[2:]]
    found = [
        from_keras(model, rank=2, data=data)(inputs)
        for data in (inputs, (batch for batch in batches), iter([(b, b) for b in batches]))
    ]
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-4)


def test_a_table_that_two_layers_share_names_the_way_out():
    class Tied(layers.Layer):
        def __init__(self, table):
            super().__init__()
            self.table = table

        def call(self, inputs):
            return keras.ops.matmul(inputs, keras.ops.transpose(self.table.embeddings))

    inputs, table = keras.Input((5,), dtype="int32"), layers.Embedding(20, 16, name="table")
    model = keras.Model(inputs, layers.Dense(20)(Tied(table)(table(inputs))))
    with pytest.raises(ValueError, match=r"`LowRankEmbedding`.*`reverse=True`.*table, tied"):
        from_keras(model, rank=2)
