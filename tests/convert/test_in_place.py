"""make_low_rank: a model of any make becomes low-rank in place, and stays what it is."""

import pickle

import keras
import numpy as np
import pytest
from keras import layers
from reference.conversion import check_same, draw, functional, randomize

from keras_lowrank import (
    LowRankDense,
    LowRankEinsumDense,
    LowRankEmbedding,
    LowRankLSTM,
    LowRankModel,
    add_adapters,
    find_low_rank_layers,
    from_keras,
    make_low_rank,
    merge_adapters,
    to_keras,
)


@keras.saving.register_keras_serializable("in_place")
class Block(layers.Layer):
    """Attention and a gated feed-forward, made when it is built, as people write them."""

    def build(self, input_shape):
        width = input_shape[-1]
        self.attention = layers.MultiHeadAttention(2, 8, name="attention")
        self.attention.build(input_shape, input_shape)
        self.gate = layers.Dense(24, name="gate")
        self.up = layers.EinsumDense("abc,cd->abd", (None, 24), name="up")
        self.down = layers.Dense(width, name="down")
        for layer, size in ((self.gate, width), (self.up, width), (self.down, 24)):
            layer.build((None, None, size))
        self.scale = self.add_weight(shape=(3, 5), name="scale")

    def call(self, inputs):
        x = inputs + self.attention(inputs, inputs)
        return self.scale[0, 0] * x + self.down(keras.ops.sigmoid(self.gate(x)) * self.up(x))


@keras.saving.register_keras_serializable("in_place")
class Text(keras.Model):
    """A table of its own, two blocks, and logits by the same table."""

    def __init__(self, tied=True, **kwargs):
        super().__init__(**kwargs)
        self.table = Table(40, 16, tie_weights=tied, name="table")
        self.blocks = [Block(name="block"), Block(name="block")]  # names need not be unique

    def call(self, inputs):
        x = self.table(inputs)
        for block in self.blocks:
            x = block(x)
        return self.table(x, reverse=True)

    def get_config(self):
        return {**super().get_config(), "tied": self.table.tie_weights}


class Table(layers.ReversibleEmbedding):
    """Another name for Keras's class, as KerasHub has one."""


TOKENS = np.random.default_rng(0).integers(0, 40, (4, 6))


def text(**arguments):
    model = Text(**arguments)
    model(TOKENS)
    return randomize(model)


def full(model, **arguments):
    return make_low_rank(model, tolerance=0.0, only_smaller=False, **arguments)


def loaded(model, path, **arguments):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras", **arguments)


@pytest.fixture
def model():
    return text()


def test_layers_of_a_functional_model_keep_their_places_and_outputs():
    model, images = randomize(functional()), draw(4, 9, 8, 3)
    before, inside = model(images), list(model.layers)
    report = full(model)
    assert all(a is b for a, b in zip(model.layers, inside, strict=True))
    assert model.name == "mine" and isinstance(model, LowRankModel)
    assert set(model.ranks) == set(report.converted) == {"stem", "conv", "head"}
    np.testing.assert_allclose(before, model(images), rtol=1e-5, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("tied", [True, False])
def test_a_subclassed_model_is_converted_at_every_depth(tied):
    model = text(tied=tied)
    before, table, query = model(TOKENS), model.table, model.blocks[1].attention.query_dense
    report = full(model)
    assert type(table) is LowRankEmbedding and model.table is table
    assert type(query) is LowRankEinsumDense and model.blocks[1].attention.query_dense is query
    assert len(find_low_rank_layers(model)) == len(report.converted) == 15 + (not tied)
    np.testing.assert_allclose(before, model(TOKENS), rtol=1e-5, atol=1e-5 * np.abs(before).max())
    assert isinstance(model, Text) and isinstance(model, LowRankModel)


def test_a_converted_model_trains_and_loads_with_all_that_it_has(tmp_path):
    model = text(tied=False)
    full(model, include=["table", "block_1"])
    model.compile("adam", "mse", truncation=0.3, run_eagerly=True, integrator="parallel")
    losses = model.fit(TOKENS, draw(4, 6, 40), epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    again = loaded(model, tmp_path, custom_objects={"Table": Table})
    assert type(again) is type(model) and again.ranks == model.ranks
    np.testing.assert_array_equal(model(TOKENS), again(TOKENS))
    assert again.truncation.get_config() == model.truncation.get_config()
    for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_report_says_what_was_converted_and_what_was_not(model):
    report = make_low_rank(model, rank=4, exclude="block_1")
    kept = {path: one.reason for path, one in report.skipped.items()}
    assert report.converted["table"] == (40, 16, 4)
    assert report.converted["block/gate"].rank == 4
    assert "Left out" in kept["block_1/attention/query"]
    assert "no low-rank layer for the class Block" in kept["block/scale"]
    assert report.skipped["block/scale"].weights == 15
    assert report.before - report.after == sum(
        one.n * one.m - one.rank * (one.n + one.m) for one in report.converted.values()
    )
    whole = sum(one.n * one.m for one in report.converted.values())
    assert report.share == whole / report.before
    assert whole + sum(one.weights for one in report.skipped.values()) == report.before
    assert "table: 40 x 16, rank 4" in str(report) and "block/scale: 15 as they are" in str(report)


def test_layers_are_meant_by_name_path_pattern_class_or_function():
    inside = [f"block_1/attention/{one}" for one in ("query", "key", "value", "attention_output")]
    for include, exclude, expected in [
        ("gate", None, ["block/gate", "block_1/gate"]),
        ("block_1/attention", None, inside),
        (layers.Embedding, None, ["table"]),
        (["*own", lambda layer: layer.name == "up"], "block_1", ["block/up", "block/down"]),
    ]:
        report = make_low_rank(text(), rank=2, include=include, exclude=exclude)
        assert report.converted.keys() == set(expected), include
    report = make_low_rank(text(), rank={"block/*": 3, "block/gate": 5})
    assert {one.rank for path, one in report.converted.items()} == {3, 5}
    assert report.converted["block/gate"].rank == 5 and "table" in report.skipped


def test_ranks_follow_a_budget_over_the_whole_model(model):
    report = make_low_rank(model, budget=1500)
    assert report.after <= 1500 < report.before
    assert model.compression().factored == report.after


def test_a_compiled_model_goes_on_training_with_the_arguments_that_it_had(model):
    model.compile(keras.optimizers.SGD(0.25), "mse", run_eagerly=True, metrics=["mae"])
    predictions = model.predict(TOKENS, verbose=0)
    make_low_rank(model, rank=1)
    assert model.optimizer.learning_rate == 0.25 and model.run_eagerly
    # Not by the function that was traced with the weights from before.
    assert np.abs(model.predict(TOKENS, verbose=0) - predictions).max() > 1e-3
    history = model.fit(TOKENS, draw(4, 6, 40), verbose=0).history
    assert set(history) == {"loss", "mae"} and len(model.ranks) == 15


def test_an_optimizer_that_cannot_move_a_matrix_is_refused_before_anything_changes(model):
    model.compile(keras.optimizers.Ftrl(), "mse")
    before = model(TOKENS)
    with pytest.raises(ValueError, match="Ftrl"):
        make_low_rank(model, rank=2)
    assert type(model) is Text
    np.testing.assert_array_equal(before, model(TOKENS))


def test_frozen_layers_stay_frozen_and_can_be_trained_later(model):
    model.blocks[0].trainable = False
    make_low_rank(model, rank=2)
    down = model.blocks[0].down
    assert not down.trainable_variables and len(down.non_trainable_variables) == 4
    model.blocks[0].trainable = True
    assert [v.name for v in down.trainable_variables] == ["U", "S", "V", "bias"]


def test_recurrent_layers_and_one_layer_in_two_places(tmp_path):
    shared = layers.Dense(8, name="shared")
    inner = keras.Sequential([keras.Input((8,)), shared, layers.Dense(8, name="inside")])
    inputs = keras.Input((5, 8))
    x = layers.Bidirectional(layers.LSTM(6, name="lstm"), name="both")(inputs)
    outputs = shared(layers.Dense(8, name="first")(x)) + inner(layers.Dense(8, name="second")(x))
    model = keras.Model(inputs, outputs)
    x = draw(3, 5, 8)
    before = model(x)
    report = full(model)
    assert type(model.get_layer("both").forward_layer) is LowRankLSTM
    assert type(shared) is LowRankDense and sum("shared" in path for path in report.converted) == 1
    np.testing.assert_allclose(before, model(x), rtol=1e-5, atol=1e-6)
    assert isinstance(inner, LowRankModel) and "inside" in inner.ranks
    again = pickle.loads(pickle.dumps(inner))
    np.testing.assert_array_equal(inner(x[:, 0]), again(x[:, 0]))


def test_a_model_converted_twice_has_both_in_its_file(model, tmp_path):
    make_low_rank(model, rank=3, include="table")
    make_low_rank(model, rank=2, include="gate")
    assert model.ranks == {"table": 3, "block/gate": 2, "block_1/gate": 2}
    again = loaded(model, tmp_path, custom_objects={"Table": Table})
    np.testing.assert_array_equal(model(TOKENS), again(TOKENS))
    assert again.ranks == model.ranks


def test_the_plain_model_has_the_class_and_the_outputs(model):
    model.blocks[0].trainable = False
    make_low_rank(model, rank=3)
    plain = to_keras(model)
    assert type(plain) is Text and not find_low_rank_layers(plain)
    assert not plain.blocks[0].trainable_variables and plain.blocks[1].trainable_variables
    check_same(model, plain, TOKENS)
    with pytest.raises(ValueError, match="use style='merged'.*of class"):
        to_keras(model, "factored")


def test_a_copy_keeps_the_class_and_leaves_the_model_alone(model):
    before = model.get_weights()
    low = from_keras(model, tolerance=0.0, only_smaller=False)
    assert isinstance(low, Text) and isinstance(low, LowRankModel) and len(low.ranks) == 15
    assert type(model) is Text and not find_low_rank_layers(model)
    check_same(model, low, TOKENS)
    for one in low.trainable_variables:
        one.assign(0.0 * one)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_converted_model_is_copied_with_its_ranks(model):
    make_low_rank(model, rank=3, include="gate")
    low = from_keras(model, rank=2, include="up")
    assert set(low.ranks.values()) == {2, 3} and len(low.ranks) == 4
    clone = keras.models.clone_model(low)
    assert type(clone) is type(low) and clone.ranks == low.ranks


def test_a_weight_that_another_layer_holds_stays_whole():
    inputs = keras.Input((8,))
    normalized = layers.SpectralNormalization(layers.Dense(16, name="inside"), name="around")
    model = keras.Model(inputs, layers.Dense(16, name="last")(normalized(inputs)))
    report = make_low_rank(model, rank=2)
    assert set(report.converted) == {"last"}
    assert "Another layer holds a weight" in report.skipped["around/inside"].reason


class Late(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(16, name="first")

    def call(self, inputs):
        return self.second(self.first(inputs))


def test_the_approximation_is_the_best_on_data():
    tokens = np.random.default_rng(1).integers(0, 3, (4, 6))  # three vectors of the table
    errors = {}
    for name, data in (("data", tokens), ("none", None)):
        model = text()
        before = model.table(tokens)
        make_low_rank(model, rank=3, include="table", data=data)
        errors[name] = np.abs(model.table(tokens) - before).max() / np.abs(before).max()
    assert errors["data"] < 1e-5 < 1e-2 < errors["none"]
    one = keras.Sequential([keras.Input((12,)), layers.Dense(16, "relu"), layers.Dense(9)])
    x = draw(40, 12)
    low = from_keras(one, rank=3, data=x)
    make_low_rank(one, rank=3, data=x)
    check_same(one, low, x)


def test_data_needs_a_model_that_its_config_makes():
    model = Late()
    model.second = layers.Dense(16)
    model(draw(2, 16))
    for convert in (make_low_rank, from_keras):
        with pytest.raises(ValueError, match="must be made again, and built.*class Late"):
            convert(model, rank=2, data=draw(2, 16))
    assert type(model) is Late and type(model.first) is layers.Dense


def test_adapters_go_on_a_converted_model_and_not_the_other_way(model, tmp_path):
    make_low_rank(model, rank=3, include="gate")
    adapters = add_adapters(model, rank=2, include="up")
    for delta in adapters.deltas.values():
        delta.S.assign(draw(2, 2))
    with pytest.raises(ValueError, match="after `merge_adapters`"):
        make_low_rank(model, rank=2)
    again = loaded(model, tmp_path, custom_objects={"Table": Table})
    assert set(again.ranks) == {"block/gate", "block_1/gate"}
    check_same(model, again, TOKENS)
    plain = to_keras(model)
    assert type(plain) is Text and not find_low_rank_layers(plain)
    check_same(model, plain, TOKENS)
    merge_adapters(model)
    assert isinstance(model, LowRankModel) and set(model.ranks) == set(again.ranks)
    check_same(model, again, TOKENS)


def test_what_would_not_load_again_is_not_saved(tmp_path):
    model = Late()
    model.second = layers.Dense(16)  # which its config does not make
    model(draw(2, 16))
    make_low_rank(model, rank=2)
    with pytest.raises(ValueError, match="A saved model must load again"):
        model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    assert not (tmp_path / "model.keras").exists()


@pytest.mark.parametrize("convert", [make_low_rank, from_keras])
def test_what_is_wrong_is_said_in_one_line(convert):
    model = text()
    for arguments, message in [
        ({"rank": 2, "include": "nowhere"}, "`include` must name layers.*block/gate.*'nowhere'"),
        ({"rank": {"nowhere": 2}}, "`rank` must name layers.*'nowhere'"),
        ({"rank": 2, "exclude": "*"}, "needs a layer to convert.*Left out by"),
        ({"rank": 40, "include": "gate"}, "No layer would be smaller.*block/gate"),
        ({"rank": {"gate": 40}}, "No layer would be smaller.*block/gate"),
        ({"budget": 3}, "`budget` must be at least"),
        ({}, "Exactly one of"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            convert(model, **arguments)
        assert len(str(error.value).splitlines()) == 1
    assert type(model) is Text and not find_low_rank_layers(model)
    with pytest.raises(ValueError, match="needs a model with weights"):
        convert(Text(), rank=2)
    with pytest.raises(TypeError, match="takes a `keras.Model`"):
        convert(layers.Dense(2), rank=2)
