"""What of Keras this package leans on where a layer changes its class, on Keras alone."""

import keras
import numpy as np

from keras_lowrank import keras_internals


class Doubled(keras.layers.Dense):
    def call(self, inputs):
        return 2.0 * super().call(inputs)


def test_a_layer_becomes_its_twin_for_all_who_hold_it():
    inputs = keras.Input((3,))
    layer = keras.layers.Dense(2, name="one")
    model = keras.Sequential([inputs, layer])
    layer.note, weights, x = "of a user", layer.get_weights(), np.ones((1, 3))
    before = model(x)
    twin = Doubled(2, name="one")
    twin.build((None, 3))
    twin.set_weights(weights)
    keras_internals.become(layer, twin)
    assert type(layer) is Doubled and model.layers == [layer] and layer.note == "of a user"
    np.testing.assert_allclose(model(x), 2.0 * before)
    assert [id(v) for v in model.weights] == [id(v) for v in (layer.kernel, layer.bias)]
    layer.trainable = False
    assert not model.trainable_variables


def test_functions_that_were_traced_are_traced_again():
    class Speaks(keras.Model):
        spoken = None

        def _post_quantize(self, mode):
            super()._post_quantize(mode)
            self.spoken = None

    model = Speaks()
    model.predict_function = model.train_function = model.test_function = model.spoken = print
    keras_internals.forget_traces(model)
    assert model.predict_function is model.train_function is model.test_function is None
    assert model.spoken is None


def test_the_arguments_of_compile_are_known_as_objects():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    assert keras_internals.compile_arguments(model) is None
    model.compile("sgd", "mse", steps_per_execution=3)
    arguments = keras_internals.compile_arguments(model)
    assert isinstance(arguments["optimizer"], keras.optimizers.SGD)
    assert (arguments["loss"], arguments["steps_per_execution"]) == ("mse", 3)
    model.compile(**arguments)
