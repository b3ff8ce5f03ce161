"""Conversion, there and back, makes copies: what is done to one is not done to the other."""

import keras
import numpy as np
import pytest

from keras_lowrank import convert_layer, from_keras, to_keras

X = np.random.default_rng(0).standard_normal((5, 4, 6)).astype("float32")


class Held(keras.layers.Layer):
    """A layer whose config has the layer that it holds, and no description of it."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        if not self.inner.built:
            self.inner.build(shape)

    def call(self, inputs):
        return self.inner(inputs)

    def compute_output_shape(self, shape):
        return self.inner.compute_output_shape(shape)

    def get_config(self):
        return {**super().get_config(), "inner": self.inner}


class Sine(keras.Operation):
    def call(self, x):
        return keras.ops.sin(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def twice(x):
    operation = Sine()
    return operation(operation(x))


def nested(x):
    inputs = keras.Input((4, 6))
    outputs = keras.layers.Lambda(lambda t: 2 * t)(keras.ops.tanh(inputs))
    inner = keras.Model(inputs, keras.layers.Dense(6, activation=keras.layers.PReLU())(outputs))
    return keras.Sequential([inner, keras.layers.Lambda(lambda t: t + 1)])(x)


KINDS = {
    "activation with weights": keras.layers.Dense(6, activation=keras.layers.PReLU()),
    "activation layer": keras.layers.Dense(6, activation=keras.layers.LeakyReLU(0.3)),
    "activation of a graph": keras.layers.Dense(
        6, activation=keras.Sequential([keras.Input((4, 6)), keras.layers.Dense(6)])
    ),
    "function": keras.layers.Dense(6, activation=lambda t: t**2),
    "lambda": keras.layers.Lambda(lambda t, by: by * t, arguments={"by": 3.0}),
    "lambda in time": keras.layers.TimeDistributed(keras.layers.Lambda(lambda t: 2 * t)),
    "activation in time": keras.layers.TimeDistributed(
        keras.layers.Dense(6, activation=keras.layers.PReLU())
    ),
    "operation": lambda x: keras.ops.sin(x) + 1.0,
    "operation used twice": twice,
    "nested": nested,
    "held": Held(keras.layers.Dense(6)),
}


def built(kind):
    inputs = keras.Input((4, 6))
    x = KINDS[kind](keras.layers.Dense(6, name="before")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    model(X)  # what holds weights of its own has them now
    scramble(model)
    return model


def scramble(model):
    rng = np.random.default_rng(1)
    for variable in model.variables:
        variable.assign(variable + 0.3 * rng.standard_normal(variable.shape))


def parts(model):
    found = {id(variable) for variable in model.variables}
    for one in [model, *model._flatten_layers(include_self=False)]:
        found |= {id(one), *map(id, getattr(one, "operations", []))}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_shares_nothing_with_its_original(kind):
    model = built(kind)
    low = from_keras(model, tolerance=0.0, only_smaller=False)
    copies = [model, low, to_keras(low, "factored"), to_keras(low, "merged")]
    expected = model(X)
    for one in copies:
        np.testing.assert_allclose(one(X), expected, rtol=1e-4, atol=1e-4)
    for index, one in enumerate(copies):
        assert not any(parts(one) & parts(other) for other in copies[:index])
        for operation in one.operations:  # called once, so it has one output
            if len(operation._inbound_nodes) == 1:
                keras.Model(one.inputs, operation.output)(X)
        assert len(one.get_layer("head")._inbound_nodes) == 1
    for one in copies[1:]:
        scramble(one)
    np.testing.assert_array_equal(model(X), expected)


def test_a_twin_written_by_hand_has_an_activation_of_its_own():
    layer = keras.layers.Dense(6, activation=keras.layers.PReLU())
    expected = layer(X)
    twin = convert_layer(layer, tolerance=0.0)
    np.testing.assert_allclose(twin(X), expected, atol=1e-5)
    assert type(twin.activation) is keras.layers.PReLU and twin.activation is not layer.activation
    assert [v.path.split("/")[1:] for v in twin.activation.weights] == [
        v.path.split("/")[1:] for v in layer.activation.weights
    ]


def test_what_a_copy_would_share_is_refused():
    inputs = keras.Input((6,))
    embedding = keras.layers.Dense(6, name="table")
    x = embedding(inputs)
    tied = keras.Model(inputs, keras.ops.matmul(x, embedding.kernel))
    with pytest.raises(ValueError, match=r"called on a variable.*Received: the variable 'table/k"):
        from_keras(tied, rank=2)

    class Common(Held):
        @classmethod
        def from_config(cls, config):
            return cls(common)

        def get_config(self):
            return {}

    common = keras.layers.Dense(6, name="common")
    model = keras.Model(inputs, keras.layers.Dense(3)(Common(common)(inputs)))
    with pytest.raises(ValueError, match="must share no layer.*Received: common"):
        from_keras(model, rank=2)
