"""Whole models, from files and from memory: ranks, compile arguments, the state of training."""

import copy
import pathlib
import pickle
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from reference.cases import partly_slow
from reference.small_models import (
    MAKERS,
    Subclassed,
    X,
    Y,
    assert_same,
    functional,
    nested,
    predict,
    trained,
)

from keras_lowrank import FixedRank, LowRankConv2D, LowRankDense, LowRankModel, Parallel, Tolerance


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The bytes of a trained model's file."""
    path = tmp_path_factory.mktemp("files") / "model.keras"
    trained().save(path)
    return path.read_bytes()


# .keras files.


@pytest.mark.parametrize("make", partly_slow([Subclassed], [functional, nested]))
def test_keras_file_in_mid_training_goes_on_as_if_nothing_had_been(make, tmp_path):
    model = trained(make, integrator=Parallel(adapt_every=2), run_eagerly=False)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again, LowRankModel)
    assert again.ranks == model.ranks and list(again.ranks.values()) != [3] * len(again.ranks)
    assert_same(again, model)
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations) == 4
    histories = [
        m.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]
        for m in (model, again)
    ]
    np.testing.assert_allclose(*histories, rtol=1e-5)
    assert again.ranks == model.ranks


def test_compile_arguments_come_back(tmp_path):
    model = functional()
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)),
        "mse",
        metrics=["mae"],
        integrator="fixed_rank",
        truncation=Tolerance(0.3, relative=False),
        run_eagerly=True,
    )
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.integrator) is FixedRank
    assert (again.truncation.tolerance, again.truncation.relative) == (0.3, False)
    assert float(again.optimizer.learning_rate) == float(model.optimizer.learning_rate)
    results = [m.evaluate(X, Y, verbose=0, return_dict=True) for m in (model, again)]
    assert results[0].keys() == {"loss", "mae"}
    assert results[0] == results[1]


def test_frozen_ranks_stay_frozen(tmp_path):
    model = trained(truncation=0.0, integrator=Parallel(adapt_every=2))
    model.freeze_ranks()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    again.truncation = Tolerance(0.9)
    again.fit(X, Y, epochs=2, verbose=0)
    assert again.ranks == model.ranks
    again.unfreeze_ranks()
    again.fit(X, Y, epochs=2, verbose=0)
    assert again.ranks != model.ranks


def test_frozen_layers_stay_frozen(tmp_path):
    model = trained()
    model.get_layer("low").trainable = False
    model.compile("sgd", "mse", run_eagerly=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    before = again.get_layer("low").get_weights()
    again.fit(X, Y, verbose=0)
    for new, old in zip(again.get_layer("low").get_weights(), before):
        np.testing.assert_array_equal(new, old)


def test_the_optimizer_of_a_model_with_frozen_layers_comes_back(tmp_path):
    inputs = keras.Input((8,))
    frozen = LowRankDense(8, rank=3)
    frozen.trainable = False
    model = LowRankModel(inputs, keras.layers.Dense(8)(frozen(inputs)))
    model.compile("adam", "mse", run_eagerly=True)
    with pytest.warns(UserWarning, match="no trainable low-rank layer"):
        model.fit(np.ones((8, 8)), np.ones((8, 8)), epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").optimizer
    for one, two in zip(model.optimizer.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    assert int(again.iterations) == 3


def test_own_truncation_and_bounds_of_a_layer_come_back(tmp_path):
    inputs = keras.Input((6, 6, 1))
    layer = LowRankConv2D(4, 3, rank=3, min_rank=2, max_rank=3, truncation=0.9, name="low")
    LowRankModel(inputs, layer(inputs)).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").get_layer("low")
    assert (again.min_rank, again.max_rank, again.truncation.tolerance) == (2, 3, 0.9)


def test_model_that_was_never_compiled_comes_back(tmp_path):
    model = functional(rank=2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(again, model)
    again.compile("sgd", "mse", run_eagerly=True)
    again.fit(X, Y, verbose=0)


def test_fresh_process_loads_and_goes_on(tmp_path):
    model = trained()
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.save(tmp_path / "expected.npy", predict(model))
    script = (
        "import keras, numpy as np, keras_lowrank\n"
        "m = keras.saving.load_model('model.keras')\n"
        "x, y, want = (np.load(f'{n}.npy') for n in ('x', 'y', 'expected'))\n"
        "np.testing.assert_allclose(m.predict(x, verbose=0), want, atol=1e-6)\n"
        "m.fit(x, y, verbose=0)\n"
        "print(type(m).__name__, m.ranks)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == "LowRankModel"


@MAKERS
def test_config_alone_rebuilds_the_architecture(make):
    model = make(rank=2)
    model(X)
    again = type(model).from_config(model.get_config())
    again(X)
    assert isinstance(again, LowRankModel) and again.ranks == model.ranks


def test_compile_from_config_restores_what_get_compile_config_gave():
    model = trained(integrator="fixed_rank", truncation=0.25)
    model.freeze_ranks()
    other = functional()
    other.compile_from_config(model.get_compile_config())
    assert type(other.integrator) is FixedRank and other.truncation.tolerance == 0.25
    assert other.get_compile_config() == model.get_compile_config()


# Files that are no good.


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_keras_file_raises(tmp_path, data, keep):
    path = tmp_path / "model.keras"
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
        keras.saving.load_model(path)


def test_keras_file_with_flipped_bytes_raises(tmp_path, data):
    path, data = tmp_path / "model.keras", bytearray(data)
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - byte for byte in data[middle : middle + 64])
    path.write_bytes(data)
    with pytest.raises((ValueError, OSError, KeyError, zipfile.BadZipFile)):
        keras.saving.load_model(path)


def test_missing_file_raises(tmp_path):
    with pytest.raises((ValueError, OSError), match="nowhere"):
        keras.saving.load_model(tmp_path / "nowhere.keras")
    with pytest.raises((ValueError, OSError)):
        functional().load_weights(tmp_path / "nowhere.weights.h5")


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5"])
def test_the_older_format_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"ends in `.keras`.*{name}"):
        functional().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


# What Keras's own callbacks write.


def test_model_checkpoint_and_restore_best_weights(tmp_path):
    model = functional()
    arguments = {"integrator": Parallel(adapt_every=4), "truncation": 0.75, "run_eagerly": True}
    model.compile(keras.optimizers.SGD(0.1), "mse", **arguments)
    path = str(tmp_path / "best.keras")
    save = keras.callbacks.ModelCheckpoint(path, monitor="loss", mode="max", save_best_only=True)
    best = keras.callbacks.EarlyStopping(
        monitor="loss", mode="max", patience=2, restore_best_weights=True
    )
    model.fit(X, Y, batch_size=4, epochs=5, verbose=0, callbacks=[save, best])
    # mode="max" makes the first epoch the best, with ranks of its own.
    again = keras.saving.load_model(path)
    assert again.ranks == model.ranks
    np.testing.assert_allclose(predict(again), predict(model), atol=1e-5)
    assert pathlib.Path(path).exists()


def test_backup_and_restore_goes_on_at_the_saved_ranks(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                seen.append(self.model.ranks)
                raise KeyboardInterrupt

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(self.model.ranks)

    seen = []
    for callback in (Stop(), Watch()):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        model = functional()
        arguments = {"integrator": Parallel(adapt_every=4), "truncation": 0.75}
        model.compile(keras.optimizers.SGD(0.1), "mse", **arguments, run_eagerly=True)
        try:
            model.fit(X, Y, batch_size=4, epochs=3, verbose=0, callbacks=[backup, callback])
        except KeyboardInterrupt:
            continue
    assert len(seen) == 2 and seen[0] == seen[1] != {"low": 3}


# Copies in memory.


def test_pickled_model_has_ranks_predictions_and_compile_arguments():
    model = functional()
    model.compile("sgd", "mse", integrator="fixed_rank", truncation=0.3, run_eagerly=True)
    model.fit(X, Y, verbose=0)
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(again, LowRankModel) and again.ranks == model.ranks
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))
    assert type(again.integrator) is FixedRank and again.truncation.tolerance == 0.3
    again.fit(X, Y, verbose=0)


@pytest.mark.parametrize("make", partly_slow([Subclassed], [functional]))
def test_deepcopy_is_independent(make):
    model = make()
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X, Y, verbose=0)
    twin = copy.deepcopy(model)
    before = model.predict(X, verbose=0)
    np.testing.assert_array_equal(twin.predict(X, verbose=0), before)
    twin.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)
    assert np.any(twin.predict(X, verbose=0) != before)


def test_clone_model_is_a_fresh_model_of_the_same_kind():
    model = functional()
    twin = keras.models.clone_model(model)
    assert isinstance(twin, LowRankModel) and twin.ranks == model.ranks
    twin.compile("sgd", "mse", run_eagerly=True)
    before = model.get_weights()
    twin.fit(X, Y, verbose=0)
    for new, old in zip(model.get_weights(), before):
        np.testing.assert_array_equal(new, old)


# Subclasses that are written as Keras's guides write them.


@keras.saving.register_keras_serializable("tests")
class OwnCompile(Subclassed):
    def compile(self, optimizer, distance):
        super().compile(optimizer, loss=distance)
        self.distance = distance


@keras.saving.register_keras_serializable("tests")
class WithoutInit(LowRankModel):
    def build(self, input_shape):
        self.low = LowRankDense(3)
        self.low.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.low(inputs)


def test_a_compile_of_ones_own_is_not_called_by_loading(tmp_path):
    model = OwnCompile()
    model.compile("adam", distance="mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=r"`compile\(\)` was not called"):
        again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.ranks == model.ranks
    with pytest.raises(ValueError, match="must be compiled before"):
        again.fit(X, Y, verbose=0)
    np.testing.assert_allclose(predict(again), predict(model), rtol=1e-5)
    again.compile("adam", distance="mse")
    again.fit(X, Y, verbose=0)


def test_a_subclass_without_an_init(tmp_path):
    model = WithoutInit(name="mine")
    model.compile("sgd", "mse", integrator="fixed_rank", run_eagerly=True)
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is WithoutInit and again.name == "mine"
    assert type(again.integrator) is FixedRank
    np.testing.assert_allclose(predict(again), predict(model), rtol=1e-5)
    assert WithoutInit(**model.get_config()).name == "mine"
