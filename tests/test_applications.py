"""The models of keras.applications, converted at full rank and back: the outputs stay."""

import numpy as np
import pytest
from keras.applications import VGG16, ConvNeXtTiny, EfficientNetB0, MobileNetV2, ResNet50

from keras_lowrank import from_keras, to_keras


# Random weights, small images, no head: its kernels alone would take half a minute.
@pytest.mark.filterwarnings("ignore:Some layers stay as they are")  # depthwise convolutions
@pytest.mark.parametrize(
    "make, count",
    [(ResNet50, 53), (VGG16, 13), (MobileNetV2, 35), (EfficientNetB0, 65), (ConvNeXtTiny, 40)],
)
def test_full_rank_gives_the_same_outputs(make, count):
    model = make(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    low = from_keras(model, tolerance=0.0, only_smaller=False)
    assert len(low.ranks) == count
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    before = np.asarray(model(images, training=False))
    assert np.ptp(before) > 0.1 * np.abs(before).max() > 0  # an answer that depends on the image
    for other in (low, to_keras(low)):
        after = np.asarray(other(images, training=False))
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
