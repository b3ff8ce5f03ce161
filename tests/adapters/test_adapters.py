"""Adapters: what the model computes, what is trained, and how ranks grow."""

import keras
import numpy as np
import pytest
from reference.adapted import X, dense, outputs, train

import keras_lowrank as klr


@pytest.fixture
def base():
    return outputs(dense())


def adapted(**kwargs):
    model = dense()
    return model, klr.add_adapters(model, rank=2, max_rank=4, **kwargs)


def trained(**kwargs):
    model, adapters = adapted(**kwargs)
    train(model, run_eagerly=True)
    return model, adapters


def test_the_change_starts_at_zero(base):
    model, adapters = adapted()
    np.testing.assert_array_equal(outputs(model), base)
    assert all(np.all(delta.kernel == 0) for delta in adapters.deltas.values())


def test_only_the_changes_are_trained(base):
    model, adapters = trained()
    plain = dense().get_weights()
    held = {id(v) for delta in adapters.deltas.values() for v in delta.variables}
    frozen = [v.numpy() for v in model.weights if id(v) not in held]
    assert len(frozen) == len(plain)
    for one, other in zip(frozen, plain):
        np.testing.assert_array_equal(one, other)
    assert np.abs(outputs(model) - base).max() > 1e-3


def test_disabled_is_the_base_bit_for_bit(base):
    model, adapters = trained(trainable="bias")
    before, by_predict = outputs(model), model.predict(X, verbose=0)
    with adapters.disabled():
        np.testing.assert_array_equal(outputs(model), base)
        np.testing.assert_array_equal(model.predict(X, verbose=0), dense().predict(X, verbose=0))
    np.testing.assert_array_equal(outputs(model), before)
    np.testing.assert_array_equal(model.predict(X, verbose=0), by_predict)


def test_merged_is_a_plain_model_that_computes_the_same():
    model, _ = trained(trainable="bias")
    before, plain = outputs(model), dense()
    klr.merge_adapters(model)
    assert type(model) is type(plain)
    assert [type(one) for one in model.layers] == [type(one) for one in plain.layers]
    np.testing.assert_allclose(outputs(model), before, atol=1e-5)
    assert len(model.trainable_variables) == len(plain.trainable_variables)
    model.compile("sgd", "mse", run_eagerly=True)
    assert np.isfinite(model.train_on_batch(X, before))
    model.get_layer("body").quantize("int8")
    assert model.get_layer("body").quantization_mode == "int8"


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1),
        lambda: keras.optimizers.SGD(0.03, momentum=0.9),
        lambda: keras.optimizers.Adam(0.03),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_the_rank_grows_to_that_of_the_change_that_is_learned(optimizer):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(12, name="dense")])
    x = rng.standard_normal((256, 20)).astype("float32")
    change = 0.3 * rng.standard_normal((20, 3)) @ rng.standard_normal((3, 12))
    adapters = klr.add_adapters(model, rank=1, max_rank=8)
    y = outputs(model, x) + x @ change
    model.compile(optimizer(), "mse", truncation=0.05)
    losses = model.fit(x, y, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert adapters.ranks == {"dense/delta": 3}
    assert losses[-1] < 0.1 * losses[0]


def test_a_budget_is_for_what_is_trained():
    keras.utils.set_random_seed(0)
    model = dense(width=40)
    adapters = klr.add_adapters(model, rank=4, include="body")
    size = 6 + 40
    train(model, steps=8, truncation=klr.Budget(weights=2 * size, steps=4), run_eagerly=True)
    assert adapters.ranks == {"body/delta": 2}
    assert adapters.report().trained == 2 * size


def test_norms_and_biases_are_trained_where_asked_for():
    model, _ = adapted(trainable=["norm", "bias"])
    others = {v.path for v in model.trainable_variables if v.name not in "USV"}
    assert others == {"body/bias", "norm/gamma", "norm/beta", "head/bias"}
    before = model.get_layer("norm").get_weights()
    train(model, run_eagerly=True)
    assert np.abs(model.get_layer("norm").get_weights()[0] - before[0]).max() > 0


def test_the_layers_are_those_that_are_named():
    assert list(adapted(include="head")[1].ranks) == ["head/delta"]
    assert list(adapted(exclude=["head"])[1].ranks) == ["body/delta"]
    assert list(adapted(include=keras.layers.Dense)[1].ranks) == ["body/delta", "head/delta"]


def test_layers_that_a_model_names_for_lora_are_the_default():
    class Named(keras.Model):
        def default_lora_layer_names(self):
            return ["nowhere", "body"]

    plain = dense()
    model = Named(plain.inputs, plain.outputs)
    assert list(klr.add_adapters(model).ranks) == ["body/delta"]


def test_a_model_goes_on_with_its_own_compile_and_train_step():
    calls = []

    class Own(keras.Model):
        def compile(self, optimizer="auto", loss="auto", **kwargs):
            super().compile(keras.optimizers.SGD(0.1), "mse", **kwargs)

        def train_step(self, data):
            calls.append(len(data))
            return super().train_step(data)

    plain = dense()
    model = Own(plain.inputs, plain.outputs)
    adapters = klr.add_adapters(model, rank=2)
    assert isinstance(model, Own) and isinstance(model, klr.LowRankModel)
    model.compile(truncation=0.5, run_eagerly=True)
    model.train_on_batch(X, np.ones((64, 5)))
    assert calls and np.abs(adapters.deltas["head/delta"].kernel).max() > 0


def test_sets_are_switched_and_summed():
    model, adapters = trained(name="a", trainable="bias")
    first, base = outputs(model), outputs(dense())
    adapters.add("b")
    np.testing.assert_array_equal(outputs(model), base)
    train(model, steps=5, optimizer=keras.optimizers.SGD(0.5), run_eagerly=True)
    second = outputs(model)
    for _ in range(50):
        adapters.switch("a")
        np.testing.assert_array_equal(outputs(model), first)
        adapters.switch("b")
        np.testing.assert_array_equal(outputs(model), second)
    kernels = {name: _kernels(adapters, name) for name in adapters.names}
    adapters.combine("both", {"a": 0.25, "b": 0.5})
    for one, a, b in zip(_kernels(adapters, "both"), kernels["a"], kernels["b"]):
        np.testing.assert_allclose(one, 0.25 * a + 0.5 * b, atol=1e-6)
    assert sorted(adapters.names) == ["a", "b", "both"]


def _kernels(adapters, name):
    adapters.switch(name)
    biases = [v.numpy() for v in adapters.model.weights if v.name == "bias"]
    return [np.asarray(delta.kernel) for delta in adapters.deltas.values()] + biases


def test_a_report_counts_what_is_trained():
    model, adapters = adapted(trainable="norm")
    report = adapters.report()
    assert report.trained == 2 * (6 + 8) + 2 * (8 + 5) + 16
    assert report.total == dense().count_params()
    assert "head/delta" in str(report) and "70 trained weights" in str(report)
    assert model.compression().full == 6 * 8 + 8 * 5


def test_what_cannot_be_is_refused():
    model, adapters = trained()
    one = dense()
    one.get_layer("body").enable_lora(2)
    cases = [
        (lambda: klr.add_adapters(dense(), rank=None), "`rank` must be a positive integer"),
        (lambda: klr.add_adapters(dense(), rank=8, max_rank=4), "min_rank <= rank <= max_rank"),
        (lambda: klr.add_adapters(dense(), include="nowhere"), "'nowhere'"),
        (lambda: klr.add_adapters(dense(), include="norm"), "'norm'"),
        (lambda: klr.add_adapters(dense(), exclude=["body", "head"]), "needs a layer"),
        (lambda: klr.add_adapters(dense(), trainable="nowhere"), "'nowhere'"),
        (lambda: klr.add_adapters(one), "LoRA or an adapter, not both"),
        (lambda: klr.add_adapters(model), "adapters in 'body' already"),
        (lambda: model.get_layer("body").enable_lora(2), "cannot have LoRA too"),
        (lambda: model.get_layer("body").quantize("int8"), "not quantized"),
        (lambda: model.quantize("int8"), "not quantized"),
        (lambda: klr.merge_adapters(dense()), "without adapters"),
        (lambda: adapters.switch("other"), "'other'"),
        (lambda: adapters.add("default"), "new name"),
        (lambda: adapters.combine("sum", {}), "empty"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert type(one) is type(dense())
