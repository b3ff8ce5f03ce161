"""Products in fewer bits than orthonormal bases need, on hardware that is not here."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel


@pytest.fixture
def gpu(monkeypatch):
    """Has TensorFlow report one GPU, of the compute capability that is set."""
    details = {}
    listed = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: ["one"] if kind == "GPU" else listed(kind),
    )
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    yield details
    tf.config.experimental.enable_tensor_float_32_execution(before)


def compiled():
    inputs = keras.Input((4,))
    model = LowRankModel(inputs, LowRankDense(3, rank=2)(inputs))
    model.compile("sgd", "mse")
    return model


def test_tensor_float_32_is_switched_off_where_a_gpu_has_it(gpu):
    gpu["compute_capability"] = (8, 6)
    with pytest.warns(UserWarning, match="TensorFloat-32 .* was switched off.*mixed_bfloat16"):
        compiled()
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = compiled()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    with pytest.warns(UserWarning, match="TensorFloat-32 .* was switched off"):
        model.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize("details", [{}, {"compute_capability": (7, 5)}])
def test_other_gpus_are_left_as_they_are(gpu, details):
    gpu.update(details)
    compiled()
    assert tf.config.experimental.tensor_float_32_execution_enabled()
