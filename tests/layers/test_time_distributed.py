"""A layer, or a network, that `TimeDistributed` repeats: trained, converted, exported."""

import keras
import numpy as np
import pytest
from reference.cases import partly_slow
from reference.recurrent import draw

from keras_lowrank import FixedRank, LowRankDense, LowRankModel, RankAdaptive, from_keras, to_keras
from keras_lowrank.layers import LowRankConv2D

layers = keras.layers
STEPS = 3
X = draw(4, STEPS, 6, 6, 2)


@pytest.fixture(scope="module")
def full_model():
    """A convolutional network for each picture of a film, and a recurrent one for the film."""
    keras.utils.set_random_seed(3)
    picture = keras.Sequential(
        [
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(),
            layers.Dense(10, name="dense"),
        ],
        name="picture",
    )
    inputs = keras.Input(X.shape[1:])
    x = layers.TimeDistributed(picture, name="film")(inputs)
    x = layers.TimeDistributed(layers.Dense(7, activation="relu", name="wide"), name="time")(x)
    x = layers.TimeDistributed(layers.Reshape((7, 1)))(x)
    x = layers.GRU(6, unroll=True, name="gru")(layers.Reshape((STEPS, 7))(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    for variable in model.non_trainable_variables:  # statistics
        if "float" in variable.dtype:
            variable.assign(variable + 0.5)
    model.get_layer("time").layer.trainable = False
    return model


def test_at_full_rank_the_outputs_are_the_same_and_again_on_the_way_back(full_model):
    low = from_keras(full_model, tolerance=0.0, only_smaller=False)
    assert low.ranks == {
        "film/picture/conv": 8,
        "film/picture/dense": 10,
        "time/wide": 7,
        "gru/gru_cell/kernel": 7,
        "gru/gru_cell/recurrent_kernel": 6,
        "head": 2,
    }
    assert type(low.get_layer("film").layer.get_layer("conv")) is LowRankConv2D
    np.testing.assert_allclose(low(X), full_model(X), atol=1e-5)
    for style in ("merged", "factored"):
        plain = to_keras(low, style)
        np.testing.assert_allclose(plain(X), full_model(X), atol=1e-5)
        assert plain.get_layer("film").layer.name == "picture"
    merged = to_keras(low, "merged")
    assert [one.path for one in merged.weights][:4] == [one.path for one in full_model.weights][:4]


def test_what_is_not_converted_is_copied_with_paths_statistics_and_trainable(full_model):
    low = from_keras(full_model, rank=2, include=["film/picture/conv", "time"])
    assert low.ranks == {"film/picture/conv": 2, "time/wide": 2}
    norm, copied = (model.get_layer("film").layer.get_layer("norm") for model in (full_model, low))
    assert copied is not norm
    assert [one.path for one in copied.weights] == [one.path for one in norm.weights]
    for one, other in zip(copied.weights, norm.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert low.get_layer("time").layer.trainable is False
    assert low.get_layer("film").layer.trainable is True
    only = {"gru/gru_cell/kernel", "gru/gru_cell/recurrent_kernel"}
    for repeated in (layers.TimeDistributed, lambda one: isinstance(one, layers.TimeDistributed)):
        low = from_keras(full_model, rank=2, exclude=repeated)
        assert set(low.ranks) == only
        low = from_keras(full_model, rank=2, include=repeated)
        assert set(low.ranks) == {"film/picture/conv", "film/picture/dense", "time/wide"}
    aware = from_keras(full_model, rank=2, data=X)
    assert aware.ranks["film/picture/conv"] == aware.ranks["time/wide"] == 2


def test_a_layer_used_inside_and_outside_of_one_stays_one_layer():
    dense = layers.Dense(6, name="shared")
    sequences, vectors = keras.Input((STEPS, 6)), keras.Input((6,))
    inside = layers.TimeDistributed(dense, name="time")(sequences)
    model = keras.Model([sequences, vectors], [inside, dense(vectors)])
    low = from_keras(model, rank=2)
    assert list(low.ranks) == ["time/shared"]
    assert low.get_layer("time").layer is low.get_layer("shared")
    assert len(low.trainable_weights) == 4


@pytest.mark.parametrize("integrator", partly_slow([RankAdaptive(4)], [FixedRank(1)]))
def test_it_trains_as_the_layer_does_on_all_vectors_at_once(integrator):
    """`Dense` acts on the last axis, however many there are; so repeating it changes nothing."""
    y = draw(32, 2)
    outputs, ranks = [], []
    for wrap in (layers.TimeDistributed, lambda layer: layer):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((STEPS, 5))
        x = wrap(LowRankDense(8, rank=4, activation="tanh", name="low"))(inputs)
        model = LowRankModel(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
        optimizer = keras.optimizers.SGD(0.2, momentum=0.9)
        model.compile(optimizer, "mse", integrator=integrator, truncation=0.1)
        model.fit(draw(32, STEPS, 5), y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        outputs.append(model.predict(draw(32, STEPS, 5), verbose=0))
        ranks.append(list(model.ranks.values()))
    np.testing.assert_allclose(*outputs, atol=1e-5)
    assert ranks[0] == ranks[1]


@pytest.mark.slow
def test_files_and_exports_hold_it(full_model, tmp_path):
    low = from_keras(full_model, rank=3)
    low.save(tmp_path / "film.keras")
    loaded = keras.models.load_model(tmp_path / "film.keras")
    assert loaded.ranks == low.ranks
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), low.predict(X, verbose=0))
    for name, kind in (("film", "tf_saved_model"), ("film.tflite", "litert")):  # checked by itself
        report = low.export(tmp_path / name, format=kind, verbose=False, report=True)
        assert report.artefact.multiply_adds < report.full_rank.multiply_adds
