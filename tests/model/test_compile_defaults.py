"""`compile` without an optimizer, or with None: as `keras.Model` has it."""

import inspect

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankModel

X, Y = np.ones((8, 6), "float32"), np.ones((8, 2), "float32")


def model_of(dense):
    inputs = keras.Input((6,))
    return LowRankModel(inputs, keras.layers.Dense(2)(dense(inputs)))


class Subclassed(LowRankModel):
    def __init__(self, dense):
        super().__init__()
        self.hidden, self.head = dense, keras.layers.Dense(2)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def test_arguments_and_defaults_are_those_of_keras():
    ours, its = (inspect.signature(cls.compile).parameters for cls in (LowRankModel, keras.Model))
    for name, parameter in its.items():
        if name in ours:
            assert ours[name].default == parameter.default
    model = model_of(LowRankDense(8, rank=2))
    model.compile(loss="mse", run_eagerly=True)
    assert isinstance(model.optimizer, keras.optimizers.RMSprop)
    before = model.get_layer(index=1).kernel.numpy()
    model.fit(X, Y, verbose=0)
    assert not np.allclose(before, model.get_layer(index=1).kernel)


@pytest.mark.parametrize("make", [model_of, Subclassed])
def test_a_model_without_an_optimizer_is_evaluated_and_not_trained(make, tmp_path):
    model = make(LowRankDense(8, rank=2))
    model.compile(optimizer=None, loss="mse", run_eagerly=True)
    loss = model.evaluate(X, Y, verbose=0)
    assert np.isfinite(loss) and model.test_on_batch(X, Y) == pytest.approx(loss)
    assert model.predict(X, verbose=0).shape == (8, 2)
    assert model.compression().factored == 2 * (6 + 8) + 16
    assert model.get_compile_config()["optimizer"] is None
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match="needs an optimizer.*Received: optimizer=None"):
            train(X, Y)
    if make is model_of:
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert again.optimizer is None and again.evaluate(X, Y, verbose=0) == pytest.approx(loss)
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
