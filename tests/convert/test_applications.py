"""The models of keras.applications, converted at full rank and back: the outputs stay."""

import keras
import numpy as np
import pytest
from keras.applications import VGG16, ConvNeXtTiny, EfficientNetB0, MobileNetV2, ResNet50

from keras_lowrank import from_keras, to_keras


# Random weights, small images, no head: its kernels alone would take half a minute.
@pytest.mark.filterwarnings("ignore:Some layers stay as they are")  # depthwise convolutions
@pytest.mark.parametrize(
    "make, count",
    [
        (MobileNetV2, 35),
        *(
            pytest.param(make, count, marks=pytest.mark.slow)
            for make, count in [
                (ResNet50, 53),
                (VGG16, 13),
                (EfficientNetB0, 65),
                (ConvNeXtTiny, 40),
            ]
        ),
    ],
)
def test_full_rank_gives_the_same_outputs(make, count):
    model = make(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    assert len(check_full_rank(model).ranks) == count


# One more of each family.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some layers stay as they are")
@pytest.mark.parametrize(
    "name, size",
    [
        ("DenseNet121", 32),
        ("EfficientNetV2B0", 32),
        ("InceptionResNetV2", 75),
        ("InceptionV3", 75),
        ("MobileNet", 32),
        ("MobileNetV3Small", 32),
        ("NASNetMobile", 32),
        ("ResNet50V2", 32),
        ("Xception", 71),
    ],
)
def test_every_family_gives_the_same_outputs(name, size):
    make = getattr(keras.applications, name)
    check_full_rank(make(weights=None, include_top=False, input_shape=(size, size, 3)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some layers stay as they are")
@pytest.mark.parametrize("make", [ResNet50, MobileNetV2, EfficientNetB0, ConvNeXtTiny])
def test_whole_networks_with_their_heads_give_the_same_outputs(make):
    check_full_rank(make(weights=None, classifier_activation=None))


def check_full_rank(model):
    low = from_keras(model, tolerance=0.0, only_smaller=False)
    images = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    before = np.asarray(model(images, training=False))
    assert np.ptp(before) > 0.1 * np.abs(before).max() > 0  # an answer that depends on the image
    for other in (low, to_keras(low)):
        after = np.asarray(other(images, training=False))
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    return low
