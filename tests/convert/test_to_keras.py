"""to_keras: the way back to plain Keras layers."""

import keras
import numpy as np
import pytest
from keras import layers
from reference.conversion import check_same, draw, full, functional, nested_and_shared, randomize

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankLayer, LowRankModel, to_keras
from keras_lowrank.keras_internals import all_layers

FORMS = ["smaller", "factored", "merged"]


def check_plain(model):
    for layer in [model, *all_layers(model)]:
        assert not type(layer).__module__.startswith("keras_lowrank")


@pytest.mark.parametrize("style", FORMS)
@pytest.mark.parametrize(
    "make, inputs",
    [(functional, draw(3, 9, 8, 3)), (nested_and_shared, {"a": draw(3, 6), "b": draw(3, 6)})],
)
def test_there_and_back_again(make, inputs, style):
    model = randomize(make())
    low = full(model)
    plain = to_keras(low, style=style)
    check_plain(plain)
    check_same(model, plain, inputs)
    assert plain.name == model.name
    if style != "factored":
        # At full rank two kernels are never smaller than one.
        assert [w.path for w in plain.weights] == [w.path for w in model.weights]
        for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def mixed(**arguments):
    inputs = keras.Input((12, 12, 2))
    x = LowRankConv2D(
        30, 4, rank=5, strides=2, padding="same", activation="relu", name="thin", **arguments
    )(inputs)
    x = LowRankConv2D(6, (2, 1), dilation_rate=2, rank=6, use_bias=False, name="full")(x)
    x = LowRankDense(40, rank=3, activity_regularizer="l2", name="dense")(x)
    return randomize_bias(LowRankModel(inputs, x))


def randomize_bias(model):
    for variable in model.weights:
        if variable.name == "bias":
            variable.assign(draw(*variable.shape))
    return model


def test_each_layer_takes_the_smaller_form():
    model = mixed()
    plain = to_keras(model)
    check_plain(plain)
    inputs = draw(2, 12, 12, 2)
    check_same(model, plain, inputs)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    shapes = [tuple(w.shape) for w in plain.weights]
    assert shapes == [(4, 4, 2, 5), (1, 1, 5, 30), (30,), (2, 1, 30, 6), (6, 3), (3, 40), (40,)]
    first, second = plain.get_layer("thin").layers
    assert (first.name, second.name) == ("thin_left", "thin_right")
    assert first.strides == (2, 2) and second.strides == (1, 1)
    assert np.linalg.norm(first.kernel) == pytest.approx(np.linalg.norm(second.kernel), rel=1e-5)
    np.testing.assert_allclose(sum(plain.losses), sum(model.losses), rtol=1e-5)
    kernels = sum(np.prod(s) for s in shapes if len(s) > 1)
    assert kernels == model.compression().deployed
    counts = [sum(w.shape.num_elements() for w in to_keras(model, f).weights) for f in FORMS]
    assert counts[0] < min(counts[1:])


def test_the_result_is_an_ordinary_model(tmp_path):
    model = mixed()
    model.get_layer("dense").trainable = False
    plain = to_keras(model)
    assert not plain.compiled and not plain.get_layer("dense").trainable_variables
    plain.compile(keras.optimizers.SGD(1e-4), "mse")  # short for any start
    x = draw(4, 12, 12, 2)
    y = draw(*plain(x).shape)
    losses = plain.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    plain.save(tmp_path / "plain.keras")
    check_same(plain, keras.saving.load_model(tmp_path / "plain.keras"), x)


def test_channels_first():
    inputs = keras.Input((2, 9, 8))
    conv = LowRankConv2D(20, 3, rank=2, data_format="channels_first", strides=2, name="conv")
    model = LowRankModel(inputs, conv(inputs))
    # Convolutions of Keras with the channels first do not run on a CPU: the kernels must do.
    first, second = to_keras(model).get_layer("conv").layers
    product = np.asarray(first.kernel).reshape(18, 2) @ np.asarray(second.kernel).reshape(2, 20)
    np.testing.assert_allclose(product.reshape(3, 3, 2, 20), conv.kernel, rtol=1e-4, atol=1e-6)
    assert second.data_format == "channels_first" and second.output.shape == (None, 20, 4, 3)


def test_a_core_of_any_form_is_split_evenly():
    inputs = keras.Input((8,))
    layer = LowRankDense(9, rank=3, name="low")
    model = LowRankModel(inputs, layer(inputs))
    layer.S.assign(draw(3, 3))  # as the fixed-rank integrator leaves it
    plain = to_keras(model, style="factored")
    check_same(model, plain, draw(4, 8))
    spectra = [np.linalg.svd(w, compute_uv=False) for w in plain.get_weights() if w.ndim == 2]
    np.testing.assert_allclose(*spectra, rtol=1e-5)


def test_a_kernel_regularizer_stays_with_a_merged_kernel_only():
    model = mixed(kernel_regularizer=keras.regularizers.L2(0.1))
    merged = to_keras(model, "merged")
    np.testing.assert_allclose(sum(merged.losses), sum(model.losses), rtol=1e-4)
    with pytest.warns(UserWarning, match="lose their kernel regularizer: thin"):
        to_keras(model)


class Odd(LowRankLayer):
    def build(self, input_shape):
        self.build_factors((input_shape[-1], 3))

    def project(self, inputs, basis):
        return keras.ops.matmul(inputs, basis)


def test_errors():
    model = mixed()
    with pytest.raises(ValueError, match=r"`style` must be one of .*Received: style='small'"):
        to_keras(model, "small")
    with pytest.raises(TypeError, match="`to_keras` takes a `keras.Model`"):
        to_keras(model.layers[1])
    inputs = keras.Input((4,))
    model = LowRankModel(inputs, Odd(rank=2, name="odd")(inputs))
    with pytest.raises(ValueError, match=r"no Keras layer for the class Odd. Received.*'odd'"):
        to_keras(model)

    class Repeated(keras.layers.TimeDistributed):  # may do anything with its layer
        pass

    inputs = keras.Input((5, 4))
    model = LowRankModel(inputs, Repeated(LowRankDense(3, rank=2))(inputs))
    with pytest.raises(ValueError, match="inside a Repeated: only its code says"):
        to_keras(model)


def test_plain_models_pass():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    check_same(model, to_keras(model), draw(2, 4))
