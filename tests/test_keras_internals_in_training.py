"""The private names of Keras that training leans on: still there, still meaning the same."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel, keras_internals

MOVED = "Keras moved or changed it: mend keras_lowrank/keras_internals/"


@pytest.mark.parametrize(
    "module, name",
    [("keras.src.backend", "compute_output_spec"), ("keras.src.utils.python_utils", "default")],
)
def test_private_import_is_where_it_was(module, name):
    assert hasattr(importlib.import_module(module), name), f"{module}.{name}: {MOVED}"


def test_a_symbolic_run_makes_variables_and_assigns_none():
    layer, count = keras.layers.Dense(2), keras.Variable(0.0)

    def run(data):
        count.assign_add(1.0)
        return layer(data["x"]), data["none"]

    data = {"x": keras.KerasTensor((None, 3), "float32"), "none": None}
    outputs, none = keras_internals.run_symbolically(run, data)
    assert tuple(outputs.shape) == (None, 2) and none is None, MOVED
    assert layer.built and np.all(np.isfinite(layer.kernel)) and float(count) == 0.0, MOVED


def test_the_batch_of_train_on_batch_is_seen_and_not_taken():
    seen = []

    class Sees(keras.Model):
        def make_train_function(self, force=False):
            super().make_train_function(force)
            run = self.train_function

            def train_function(iterator):
                batch, iterator = keras_internals.first_batch(iterator)
                seen.append(batch)
                return run(iterator)

            self.train_function = train_function

    inputs = keras.Input((4,))
    model = Sees(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((3, 4)), np.ones((3, 2)))
    model.fit(np.ones((3, 4)), np.ones((3, 2)), verbose=0)
    for x, y, *_ in seen:
        assert isinstance(x, keras.KerasTensor), MOVED
        assert (x.shape[-1], y.shape[-1]) == (4, 2), MOVED
    assert int(model.optimizer.iterations) == 2


def test_the_mean_of_the_loss_can_be_spoilt():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((3, 4)), np.ones((3, 2)))
    keras_internals.spoil_loss(model)
    assert np.isnan(model.get_metrics_result()["loss"]), MOVED
    model.reset_metrics()
    assert np.isfinite(model.train_on_batch(np.ones((3, 4)), np.ones((3, 2))))


def test_saving_in_the_older_format_is_recognised(tmp_path):
    seen = []

    class Asks(keras.layers.Layer):
        def get_config(self):
            seen.append(keras_internals.is_saving_hdf5())
            return super().get_config()

    model = keras.Sequential([keras.Input((2,)), Asks()])
    for name, expected in (("model.keras", False), ("model.h5", True)):
        seen.clear()
        keras.saving.save_model(model, tmp_path / name)
        assert set(seen) == {expected}, MOVED


def test_a_default_config_is_still_worked_out_by_keras():
    class Own(LowRankModel):
        def __init__(self, units=3):
            super().__init__()

    assert Own().get_config()["units"] == 3, MOVED


def test_an_exported_variable_has_the_present_shape(tmp_path):
    layer = LowRankDense(4, rank=2)
    layer.build((None, 5))
    holder = tf.Module()
    holder.variable = layer.U.value
    tf.saved_model.save(holder, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    assert loaded.variable.shape.as_list() == [5, 2], MOVED
    assert layer.U.value.shape.as_list() == [5, None]
