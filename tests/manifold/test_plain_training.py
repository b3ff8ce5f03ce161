"""Factors that are trained as ordinary weights: one warning, and none on the manifold."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankLSTM, LowRankModel, PlainTrainingWarning, from_keras

X, Y = np.ones((8, 6), "float32"), np.ones((8, 2), "float32")


def network(make=keras.Model):
    inputs = keras.Input((6,))
    x = LowRankDense(8, rank=2, name="one")(inputs)
    frozen = LowRankDense(8, rank=2, name="frozen", trainable=False)(x)
    return make(inputs, LowRankDense(2, rank=1, name="two")(frozen))


def warned(call):
    """The layers that each `PlainTrainingWarning` of a call names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    texts = [str(one.message) for one in caught if one.category is PlainTrainingWarning]
    assert all("`LowRankModel(model.inputs, model.outputs)`" in text for text in texts)
    return [text.partition("layers ")[2].partition(" are")[0] for text in texts]


@pytest.mark.parametrize("eagerly", [False, True])
def test_fit_of_a_keras_model_says_so_once(eagerly):
    model = network()
    model.compile("adam", "mse", run_eagerly=eagerly)
    fit = lambda: model.fit(X, Y, batch_size=4, epochs=2, verbose=0)  # noqa: E731
    assert warned(fit) == ["['one', 'two']"]
    assert warned(fit) == []
    model.compile("sgd", "mse", run_eagerly=eagerly)
    assert warned(lambda: model.train_on_batch(X, Y)) == []


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(),
        lambda: keras.optimizers.AdamW(gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Lion()),
    ],
)
def test_whatever_the_optimizer(optimizer):
    model = network()
    model.compile(optimizer(), "mse", run_eagerly=True)
    assert warned(lambda: [model.train_on_batch(X, Y) for _ in range(3)]) == ["['one', 'two']"]


def by_gradients(model):
    optimizer, variables = keras.optimizers.SGD(), model.trainable_variables

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(X) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    return step


@pytest.mark.parametrize("wrapped", [lambda step: step, tf.function])
def test_a_loop_of_ones_own(wrapped):
    step = wrapped(by_gradients(network(LowRankModel)))
    assert warned(lambda: [step() for _ in range(3)]) == ["['one', 'two']"]


def test_a_train_step_of_ones_own():
    class Own(LowRankModel):
        def train_step(self, data):
            by_gradients(self)()
            return {}

    model = network(Own)
    model.compile("sgd", "mse", run_eagerly=True)
    assert warned(lambda: model.train_on_batch(X, Y)) == ["['one', 'two']"]


def test_every_way_that_layers_are_held():
    inputs = keras.Input((5, 6))
    x = keras.layers.Bidirectional(LowRankLSTM(4, rank=2, name="lstm"))(inputs)
    model = keras.Sequential([keras.Model(inputs, x), LowRankDense(2, rank=1, name="head")])
    model.compile("sgd", "mse", run_eagerly=True)
    (names,) = warned(lambda: model.train_on_batch(np.ones((8, 5, 6)), Y))
    assert "head" in names and names.count("/kernel") == names.count("/recurrent_kernel") == 2


@pytest.mark.parametrize("eagerly", [False, True])
def test_none_on_the_manifold(eagerly, tmp_path):
    def use():
        model = network(LowRankModel)
        model.compile("adam", "mse", run_eagerly=eagerly)
        model.fit(X, Y, verbose=0, validation_data=(X, Y))
        model.save(tmp_path / "a.keras")
        again = keras.saving.load_model(tmp_path / "a.keras")
        again.set_weights(model.get_weights())
        again.summary(print_fn=lambda text: None)
        assert [variable.constraint for variable in again.variables if variable.constraint] == []
        from_keras(keras.Sequential([keras.Input((6,)), keras.layers.Dense(9)]), rank=2)

    assert warned(use) == []


def test_none_where_it_is_ignored_nor_without_low_rank_layers():
    model = network()
    model.compile("sgd", "mse", run_eagerly=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=PlainTrainingWarning)
        model.train_on_batch(X, Y)
    assert not [one for one in caught if one.category is PlainTrainingWarning]
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    plain.compile("sgd", "mse", run_eagerly=True)
    assert warned(lambda: plain.train_on_batch(X, Y)) == []
