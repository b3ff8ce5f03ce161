"""What is saved loads again: copies keep classes, and a save that never would load is refused."""

import random

import keras
import numpy as np
import pytest

from keras_lowrank import (
    LowRankDense,
    LowRankLSTM,
    LowRankModel,
    LowRankMultiHeadAttention,
    convert_layer,
    from_keras,
    to_keras,
)

X = np.random.default_rng(0).standard_normal((2, 8)).astype("float32")


@keras.saving.register_keras_serializable("tests")
class Lazy(keras.layers.Layer):
    """Knows its output without a call, so that only a call builds what it holds."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.LayerNormalization()

    def call(self, inputs):
        return self.norm(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("tests")
class Backbone(keras.Model):
    """As KerasHub's: a graph that its class makes, and calls once."""

    def __init__(self, units, **kwargs):
        inputs = keras.Input((8,), name="x")
        lazy = Lazy(name="lazy")
        embedding = keras.layers.Dense(units, name="embedding")
        super().__init__(inputs, embedding(lazy(inputs)), **kwargs)
        lazy(np.zeros((1, 8), "float32"))
        self.embedding, self.units = embedding, units

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable, "units": self.units}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("tests")
class Net(LowRankModel):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, name="hidden")
        self.head = LowRankDense(2, rank=1, name="head")

    def call(self, inputs):
        return self.head(self.hidden(inputs))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(units, name="dense")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def with_backbone(shared=False):
    backbone = Backbone(6, name="backbone")
    inputs = keras.Input((8,))
    x = keras.layers.Dense(8, name="first")(inputs)
    outputs = keras.layers.Dense(4, name="head")(backbone(x))
    if shared:
        outputs = [outputs, backbone.embedding(inputs)]
    return keras.Model(inputs, outputs)


def saved_and_loaded(model, path):
    model.save(path)
    return keras.saving.load_model(path)


def test_a_nested_model_in_which_nothing_is_converted_keeps_its_class(tmp_path):
    model = with_backbone()
    model.get_layer("backbone").get_layer("lazy").trainable = False
    low = from_keras(model, rank=2, include="head", only_smaller=False)
    for copy in (low, to_keras(low), saved_and_loaded(low, tmp_path / "low.keras")):
        assert type(copy.get_layer("backbone")) is Backbone
        assert copy.get_layer("backbone") is not model.get_layer("backbone")
        np.testing.assert_allclose(copy(X), low(X), atol=1e-5)
    assert not low.get_layer("backbone").get_layer("lazy").trainable
    assert low.get_layer("backbone").get_layer("embedding").trainable


@keras.saving.register_keras_serializable("tests")
class Stack(keras.Sequential):
    """A Sequential model of a class of its own."""


@pytest.mark.parametrize("converted", [False, True])
def test_so_does_a_sequential_one(tmp_path, converted):
    stack = Stack([keras.Input((8,)), keras.layers.Dense(6, name="inner")], name="stack")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(stack(inputs)))
    include = "stack/inner" if converted else "head"
    low = from_keras(model, rank=2, include=include, only_smaller=False)
    loaded = saved_and_loaded(low, tmp_path / "low.keras")
    for copy in (low, loaded):
        kind = keras.Sequential if converted else Stack
        assert type(copy.get_layer("stack")) is kind
    np.testing.assert_allclose(loaded(X), low(X), atol=1e-5)


def test_a_layer_that_is_used_outside_of_it_too_is_still_one(tmp_path):
    model = with_backbone(shared=True)
    low = from_keras(model, rank=2, include="head", only_smaller=False)
    np.testing.assert_allclose(model(X)[1], low(X)[1], atol=1e-5)
    low.get_layer("backbone").embedding.bias.assign(np.ones(6))
    np.testing.assert_allclose(low(X)[1], np.array(model(X)[1]) + 1.0, atol=1e-5)


def nested(shared, inputs):
    own = keras.Input((8,))
    return keras.Model(own, shared(own), name="nested")(inputs), shared(inputs)


def two_nested(shared, inputs):
    first, second = keras.Input((8,)), keras.Input((8,))
    models = [keras.Model(one, shared(one)) for one in (first, second)]
    return [one(inputs) for one in models]


def repeated(shared, inputs):
    frames = keras.layers.RepeatVector(2)(inputs)
    repeated = keras.layers.TimeDistributed(shared)(frames)
    return keras.layers.Flatten()(repeated), shared(inputs)


def backbone(shared, inputs):
    model = Backbone(6)
    return model(inputs), model.embedding(inputs)


@pytest.mark.parametrize("use", [nested, two_nested, repeated, backbone])
def test_a_layer_in_two_models_is_one_that_keras_cannot_load(tmp_path, use):
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, use(keras.layers.Dense(8, name="shared"), inputs))
    with pytest.raises(ValueError, match="would load as another one than"):
        model.save(tmp_path / "m.keras")
    keras.Model.save(model, tmp_path / "m.keras")
    with pytest.raises(ValueError, match="could not be loaded"):
        keras.saving.load_model(tmp_path / "m.keras")


def test_where_something_in_it_is_converted_a_save_that_would_not_load_is_refused(tmp_path):
    low = from_keras(with_backbone(), rank=2, include="*/embedding", only_smaller=False)
    assert list(low.ranks) == ["backbone/embedding"]
    with pytest.raises(ValueError, match=r"must load again.*Received: .*lazy of class Lazy, whose"):
        low.save(tmp_path / "low.keras")
    assert not list(tmp_path.iterdir())
    low.save_weights(tmp_path / "low.weights.h5")


def swap(holder, name, layer):
    """As Keras itself does it where it puts another layer in the place of one."""
    holder._tracker.unlock()
    setattr(holder, name, layer)
    holder._tracker.lock()


def swapped_in_model():
    net = Net(6)
    net(X)
    swap(net, "hidden", convert_layer(net.hidden, rank=2))
    return net, "hidden"


def swapped_before_it_is_built():
    net = Net(6)
    net.hidden.build((None, 8))
    net.hidden = convert_layer(net.hidden, rank=2)
    net(X)
    return net, "hidden"


def swapped_in_layer():
    inputs = keras.Input((8,))
    block = Block(6, name="block")
    model = LowRankModel(inputs, LowRankDense(4, rank=2)(block(inputs)))
    swap(block, "dense", convert_layer(block.dense, rank=2))
    return model, "dense"


def swapped_in_keras_layer():
    inputs = keras.Input((3, 8))
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model = LowRankModel(inputs, LowRankDense(4, rank=2)(attention(inputs, inputs)))
    swap(attention, "_query_dense", convert_layer(attention._query_dense, rank=2))
    return model, "query"


def resized():
    net = Net(6)
    net.hidden = keras.layers.Dense(7, name="hidden")
    net(X)
    return net, "hidden"


@keras.saving.register_keras_serializable("tests")
class Stubborn(keras.layers.Layer):
    """Has a config that its `__init__` does not take."""

    def __init__(self, twice, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(2 * twice)

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)

    def get_config(self):
        return {**super().get_config(), "units": self.inner.units}


def test_a_config_that_makes_nothing_is_told_with_its_cause(tmp_path):
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, LowRankDense(4, rank=2)(Stubborn(3)(inputs)))
    with pytest.raises(ValueError, match="class Stubborn, which its config.*argument: .*twice"):
        model.save(tmp_path / "m.keras")


@pytest.mark.parametrize(
    "make",
    [
        swapped_in_model,
        swapped_before_it_is_built,
        swapped_in_layer,
        swapped_in_keras_layer,
        resized,
    ],
)
def test_a_save_after_layers_were_swapped_is_refused(tmp_path, make):
    model, name = make()
    with pytest.raises(ValueError, match=rf"must load again.*holds .*'{name}'"):
        model.save(tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())


def functional():
    inputs = keras.Input((3, 8))
    x = LowRankMultiHeadAttention(2, 4, rank=2)(inputs, inputs, use_causal_mask=True)
    x = keras.layers.Bidirectional(LowRankLSTM(4, rank=2))(x)
    x = Block(5)(keras.layers.Dropout(0.5)(x))
    return LowRankModel(inputs, LowRankDense(4, rank=2)(x)), (2, 3, 8)


class Unknown(keras.layers.Layer):
    """No class that Keras knows by name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = [keras.layers.Dense(8), keras.layers.Dense(8)]

    def build(self, input_shape):
        for layer in self.inner:
            layer.build(input_shape)

    def call(self, inputs):
        first, second = self.inner
        return second(first(inputs))


def unregistered():
    inputs = keras.Input((8,))
    return LowRankModel(inputs, LowRankDense(4, rank=2)(Unknown()(inputs))), (2, 8)


def subclassed():
    return Net(6), (2, 8)


def with_more():
    net = Net(6)
    net.teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    return net, (2, 8)


@pytest.mark.parametrize("make", [functional, unregistered, subclassed, with_more])
def test_a_save_that_loads_passes_and_disturbs_nothing(tmp_path, make):
    model, shape = make()
    x = np.ones(shape, "float32")
    model(x)
    before = int(keras.layers.Dropout(0.1).name.partition("dropout_")[2] or 0)
    states = random.getstate(), np.random.get_state()[1].tolist()
    model.save(tmp_path / "m.keras")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert keras.layers.Dropout(0.1).name == f"dropout_{before + 1}"
    loaded = keras.saving.load_model(tmp_path / "m.keras", custom_objects={"Unknown": Unknown})
    np.testing.assert_allclose(model(x), loaded(x), atol=1e-5)


def test_what_was_found_to_load_is_asked_again_only_where_layers_change(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("keras_lowrank.saving.check_reloads", calls.append)
    net, _ = subclassed()
    net(X)
    for _ in range(3):
        net.save(tmp_path / "m.keras")
    assert len(calls) == 1
    swap(net, "hidden", convert_layer(net.hidden, rank=2))
    net.save(tmp_path / "m.keras")
    assert len(calls) == 2
