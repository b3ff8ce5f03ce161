"""Adapters in training go with what layers go with: callbacks, precisions, accumulation, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from killed_training import everything
from reference.adapted import X, dense, outputs, train

import keras_lowrank as klr

Y = np.sin(7 * np.arange(64 * 5)).reshape(64, 5).astype("float32")


class Stop(keras.callbacks.Callback):
    """Interrupts training in the midst of its second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 6:
            raise KeyboardInterrupt


def test_training_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path):
    def fitted(folder, *others):
        keras.utils.clear_session(free_memory=False)
        model = dense()
        adapters = klr.add_adapters(model, rank=2, max_rank=4, trainable="bias")
        adam, integrator = keras.optimizers.Adam(0.02), klr.RankAdaptive(adapt_every=2)
        model.compile(adam, "mse", integrator=integrator, truncation=0.02, run_eagerly=True)
        backup = klr.callbacks.BackupAndRestore(tmp_path / folder, save_freq=3)
        callbacks = [*others, backup]
        model.fit(X, Y, batch_size=16, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
        return everything(model), adapters.ranks

    whole, ranks = fitted("whole")
    with pytest.raises(KeyboardInterrupt):
        fitted("broken", Stop())
    resumed, resumed_ranks = fitted("broken")
    assert ranks == resumed_ranks and set(ranks.values()) != {2}
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("trainable", [None, "bias"])
def test_gradients_are_accumulated_to_those_of_a_larger_batch(trainable):
    def trained(batch_size, **options):
        model = dense()
        adapters = klr.add_adapters(model, rank=2, trainable=trainable)
        optimizer = keras.optimizers.SGD(0.3, momentum=0.5, **options)
        integrator = klr.Parallel(adapt_every=1)
        model.compile(optimizer, "mse", integrator=integrator, truncation=0.0, run_eagerly=True)
        model.fit(X, Y, batch_size=batch_size, epochs=3, shuffle=False, verbose=0)
        return outputs(model), adapters.ranks

    (whole, ranks), (parts, ranks_of_parts) = (
        trained(64),
        trained(32, gradient_accumulation_steps=2),
    )
    assert ranks == ranks_of_parts
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert np.abs(whole - outputs(dense())).max() > 1e-2


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_the_changes_and_leaves_the_base(policy):
    keras.config.set_dtype_policy(policy)
    model = dense()
    base = outputs(model)
    adapters = klr.add_adapters(model, rank=2, max_rank=4)
    model.compile(keras.optimizers.Adam(0.02), "mse", truncation=0.05, run_eagerly=True)
    losses = model.fit(X, Y, batch_size=64, epochs=5, verbose=0).history["loss"]
    scales = type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert losses[-1] < losses[0] and scales == (policy == "mixed_float16")
    assert {delta.S.dtype for delta in adapters.deltas.values()} == {"float32"}
    with adapters.disabled():
        np.testing.assert_array_equal(outputs(model), base)


def test_callbacks_see_the_ranks_and_may_freeze_them(tmp_path):
    model = dense()
    adapters = klr.add_adapters(model, rank=2, max_rank=4)
    model.compile("adam", "mse", truncation=0.3, run_eagerly=True)
    history = klr.callbacks.RankHistory()
    watching = [
        history,
        klr.callbacks.FreezeRanks(epoch=2),
        klr.callbacks.TensorBoard(str(tmp_path / "logs")),
        klr.callbacks.CompressionLogger(),
    ]
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0, callbacks=watching)
    assert model.ranks_frozen
    assert list(history.ranks) == list(adapters.ranks)
    assert [ranks[-1] for ranks in history.ranks.values()] == list(adapters.ranks.values())
    (events,) = (tmp_path / "logs" / "train").glob("events*")
    tags = {
        value.tag
        for record in tf.data.TFRecordDataset(str(events))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    }
    assert any("body/delta" in tag for tag in tags), tags


def test_what_the_optimizer_keeps_follows_the_ranks():
    model = dense(width=40)
    adapters = klr.add_adapters(model, rank=8, include="body")
    sizes = []
    for truncation in (0.0, klr.KeepRank(), 0.9):
        train(model, steps=4, truncation=truncation, run_eagerly=True)
        (rank,) = adapters.ranks.values()
        (n, m) = 6, 40
        held = sum(np.prod(v.shape) for v in model._training.state.variables)
        # A tangent vector, one number a row and a column, and the scale of the chart.
        assert held == (n + m) * rank + rank**2 + n + m + rank
        sizes.append(rank)
    assert sizes[-1] < sizes[0]


def test_statistics_of_a_frozen_base_stay_where_they_are():
    def normalized(**kwargs):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = keras.layers.Dense(8, name="body")(inputs)
        x = keras.layers.BatchNormalization(momentum=0.5, name="norm")(x)
        model = keras.Model(inputs, keras.layers.Dense(5, name="head")(x))
        base = outputs(model)
        adapters = klr.add_adapters(model, rank=2, name="first", **kwargs)
        train(model, run_eagerly=True)
        with adapters.disabled():
            np.testing.assert_array_equal(outputs(model), base)
        return model, adapters

    model, _ = normalized()
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, np.zeros(8))
    klr.merge_adapters(model)
    assert model.get_layer("norm").trainable and len(model.trainable_variables) == 6
    # Where the layer is trained, they are of the set of adapters.
    model, adapters = normalized(trainable="norm")
    moved, learned = model.get_layer("norm").moving_mean.numpy(), outputs(model)
    assert np.abs(moved).max() > 0 and adapters.report().others == 16
    adapters.add("second")
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, np.zeros(8))
    adapters.switch("first")
    np.testing.assert_array_equal(outputs(model), learned)
