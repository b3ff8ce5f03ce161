"""XLA: where ranks stay it compiles and changes nothing; else Keras goes without."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankDense, LowRankModel, LowRankMultiHeadAttention


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 10)).astype("float32")
    return x, np.tanh(x @ rng.standard_normal((10, 6))).astype("float32")


def compiled(integrator, jit, optimizer=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10,))
    hidden = LowRankDense(12, rank=4, activation="tanh")(inputs)
    model = LowRankModel(inputs, keras.layers.Dense(6)(hidden))
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.3, jit_compile=jit)
    return model


def losses(model):
    return model.fit(*data(), batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"]


@pytest.mark.slow
def test_fixed_rank_compiles_and_trains_the_same():
    with_jit, without = compiled("fixed_rank", True), compiled("fixed_rank", False)
    assert with_jit.jit_compile and not without.jit_compile
    np.testing.assert_allclose(losses(with_jit), losses(without), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Adam", "Muon"])
def test_fixed_rank_compiles_with_moments(name):
    if not hasattr(keras.optimizers, name):
        pytest.skip("Keras < 3.10 has no Muon")
    make = getattr(keras.optimizers, name)
    with_jit, without = (compiled("fixed_rank", jit, make(0.01)) for jit in (True, False))
    assert with_jit.jit_compile
    np.testing.assert_allclose(losses(with_jit), losses(without), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("integrator", ["parallel", "rank_adaptive"])
def test_frozen_ranks_compile_and_train_the_same(integrator):
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        with_jit = compiled(integrator, True)
    without = compiled(integrator, False)
    assert not with_jit.jit_compile, "ranks may change, and Keras goes without XLA"
    for model in (with_jit, without):
        losses(model)
        model.freeze_ranks()
    assert with_jit.jit_compile and not without.jit_compile
    np.testing.assert_allclose(losses(with_jit), losses(without), rtol=1e-5)
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        with_jit.unfreeze_ranks()
    assert not with_jit.jit_compile
    losses(with_jit)
    assert with_jit.get_compile_config()["jit_compile"] is True


def test_layers_that_are_made_when_the_model_is_built_are_asked_too():
    class Attending(LowRankModel):
        def __init__(self):
            super().__init__()
            self.attention = LowRankMultiHeadAttention(2, 4, rank=3)

        def call(self, inputs):
            return self.attention(inputs, inputs)

    model = Attending()
    model.compile("sgd", "mse", jit_compile=True)
    x = np.ones((4, 5, 8), "float32")
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.fit(x, x, verbose=0)
    assert not model.jit_compile
