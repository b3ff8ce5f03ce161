"""Files that were cut or altered: an error, or the model that was saved; nothing else.

A `.keras` file is a zip archive, which has a CRC32 for every member. HDF5 has no checksum over
numbers: `LowRankModel.save_weights` adds one, and without it a changed bit is a changed weight.
"""

import functools
import warnings

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankModel

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 6)).astype("float32")
Y = rng.standard_normal((16, 3)).astype("float32")

SUFFIXES = (".keras", ".weights.h5")


def make(rank=3):
    inputs = keras.Input((6,))
    x = LowRankDense(6, rank=rank, name="low")(inputs)
    return LowRankModel(inputs, keras.layers.Dense(3, name="head")(x), name="net")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`(folder, bytes by suffix, weights)` of a trained model."""
    model, folder = make(), tmp_path_factory.mktemp("fuzz")
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X, Y, verbose=0)
    model.save(folder / "good.keras")
    model.save_weights(folder / "good.weights.h5")
    return folder, {s: (folder / f"good{s}").read_bytes() for s in SUFFIXES}, model.get_weights()


def load(path):
    """The weights that a file gives, or None where loading raises an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if path.suffix == ".keras":
                return keras.saving.load_model(path, safe_mode=True, compile=False).get_weights()
            target().load_weights(path)
        except Exception as error:  # which one depends on the byte that was hit; any will do
            assert not isinstance(error, (MemoryError, SystemError)), error
            return None
    return target().get_weights()


@functools.cache
def target():
    """The model that weights are loaded into; made once, and of another rank."""
    return make(rank=1)


@st.composite
def damages(draw):
    """A function from the bytes of a file to other bytes."""
    if draw(st.booleans()):
        share = draw(st.floats(0, 1, exclude_max=True))
        return lambda data: data[: int(share * len(data))]
    flip_of_a_bit = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    flips = draw(st.lists(flip_of_a_bit, min_size=1, max_size=4))

    def flip(data):
        data = bytearray(data)
        for share, bit in flips:
            data[int(share * len(data))] ^= 1 << bit
        return bytes(data)

    return flip


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True)


def check(saved, suffix, damage):
    folder, files, expected = saved
    data = damage(files[suffix])
    path = folder / f"damaged{suffix}"
    path.write_bytes(data)
    target().set_weights([np.full_like(w, 7) for w in make(rank=1).get_weights()])
    weights = load(path)
    if weights is None or data == files[suffix]:
        return
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "suffix, examples",
    partly_slow(
        [(".keras", 8), (".weights.h5", 20)],
        [(".keras", 60), (".weights.h5", 300)],
    ),
)
def test_a_damaged_file_is_refused_or_gives_the_model(saved, suffix, examples):
    fuzz(examples)(given(damages())(lambda damage: check(saved, suffix, damage)))()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_undamaged_file_loads(saved, suffix):
    folder, _, expected = saved
    for one, other in zip(load(folder / f"good{suffix}"), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_changed_weight_is_noticed_by_its_checksum(saved):
    folder, files, _ = saved
    path = folder / "changed.weights.h5"
    path.write_bytes(files[".weights.h5"])
    with h5py.File(path, "r+") as file:
        file["layers/low_rank_dense/vars/1"][0, 0] += 1e-3
    with pytest.raises(ValueError, match="must have the checksum .* the file is damaged"):
        make().load_weights(path)


def test_a_weights_file_without_a_checksum_loads(saved):
    # As Keras, or an earlier version, has written it.
    folder, _, expected = saved
    keras.Model.save_weights(make(), folder / "plain.weights.h5")
    model = make()
    keras.Model.load_weights(model, folder / "good.weights.h5")  # and Keras reads ours
    for one, other in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    model.load_weights(folder / "plain.weights.h5")


def test_a_config_with_code_in_it_is_refused_under_safe_mode(tmp_path):
    inputs = keras.Input((6,))
    model = LowRankModel(inputs, keras.layers.Lambda(lambda x: x + 1)(LowRankDense(3)(inputs)))
    model.save(tmp_path / "code.keras")
    with pytest.raises(ValueError, match="[Uu]nsafe|safe_mode|lambda"):
        keras.saving.load_model(tmp_path / "code.keras")
