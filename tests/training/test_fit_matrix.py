"""Every kind of model, trained by every method, in every way: the product of the three.

`make test` takes every way once, but for XLA (`test_jit.py`), and every kind and every method;
`make test-slow` takes all the rest.
"""

import dataclasses
import itertools
import warnings

import keras
import numpy as np
import pytest
from reference.cases import OLD_KERAS

from keras_lowrank import LowRankDense, LowRankModel, Parallel, RankAdaptive
from keras_lowrank.keras_internals import inner_optimizer
from keras_lowrank.layers import find_low_rank_layers

rng = np.random.default_rng(0)
SEQUENCES = rng.standard_normal((80, 4, 6)).astype("float32")
SEQUENCES[:40, 2:] = 0.0  # half of them end after two steps
VECTORS = SEQUENCES[:, 0]
LABELS = np.argmax(VECTORS @ rng.standard_normal((6, 3)), axis=1)
VALUES = keras.activations.softmax(3 * VECTORS[:, :2]).numpy()

# Kinds of models. Each is made for vectors, or for sequences of vectors with a mask.


def vectors(masked, name=None):
    return keras.Input((None, 6) if masked else (6,), name=name)


def start(inputs, masked):
    return keras.layers.Masking()(inputs) if masked else inputs


def low(name="low"):
    return LowRankDense(8, rank=6, activation="tanh", name=name)


def pooled(x, masked):
    return keras.layers.GlobalAveragePooling1D()(x) if masked else x


def head(x, units=3, activation="softmax", name="head"):
    return keras.layers.Dense(units, activation, dtype="float32", name=name)(x)


def functional(masked):
    inputs = vectors(masked)
    x = low("second")(low("first")(start(inputs, masked)))
    return LowRankModel(inputs, head(pooled(x, masked)))


def nested(masked):
    # The mask is made and used inside: Keras lets none through a model that is a layer.
    inside, inputs = vectors(masked), vectors(masked)
    body = keras.Model(inside, pooled(low()(start(inside, masked)), masked), name="body")
    return LowRankModel(inputs, head(low()(body(inputs))))


@keras.saving.register_keras_serializable("keras_lowrank_tests_fit_matrix")
class Subclassed(LowRankModel):
    def __init__(self, masked, **kwargs):
        super().__init__(**kwargs)
        self.masked = masked
        self.start = keras.layers.Masking() if masked else keras.layers.Identity()
        self.low = low()
        self.pool = keras.layers.GlobalAveragePooling1D() if masked else keras.layers.Identity()
        self.head = keras.layers.Dense(3, "softmax", dtype="float32")

    def call(self, inputs):
        return self.head(self.pool(self.low(self.start(inputs))))

    def get_config(self):
        return {**super().get_config(), "masked": self.masked}


def several(masked):
    inputs = {name: vectors(masked, name) for name in ("one", "other")}
    x = keras.layers.Concatenate()([low(f"low_{n}")(start(x, masked)) for n, x in inputs.items()])
    x = pooled(x, masked)
    return LowRankModel(inputs, {"label": head(x, name="label"), "value": head(x, 2, name="value")})


def shared(masked):
    inputs = vectors(masked)
    x = keras.layers.Dense(8, "tanh")(start(inputs, masked))
    layer = low()
    return LowRankModel(inputs, head(pooled(layer(layer(x)), masked)))


MODELS = {
    "functional": functional,
    "nested": nested,
    "subclassed": Subclassed,
    "several inputs and outputs": several,
    "shared layer": shared,
}

# Methods: integrators, some that adapt ranks every few steps and one that does so in every step,
# and ranks that are frozen from the start.

METHODS = {
    "fixed_rank": "fixed_rank",
    "frozen": "parallel",
    "rank_adaptive": RankAdaptive(adapt_every=4),
    "parallel": Parallel(adapt_every=4),
    "step by step": RankAdaptive(adapt_every=1),
}
ADAPTIVE = ["rank_adaptive", "parallel", "step by step"]

# Ways to train.


@dataclasses.dataclass(frozen=True)
class Way:
    compile: dict = dataclasses.field(default_factory=dict)
    optimizer: dict = dataclasses.field(default_factory=dict)
    fit: str | None = None
    policy: str = "float32"
    masked: bool = False


WAYS = {
    "plain": Way(),
    "run_eagerly": Way(compile={"run_eagerly": True}),
    "steps_per_execution": Way(compile={"steps_per_execution": 8}),
    "gradient accumulation": Way(optimizer={"gradient_accumulation_steps": 2}),
    "mixed_float16": Way(policy="mixed_float16"),
    "mixed_bfloat16": Way(policy="mixed_bfloat16"),
    "sample weights": Way(fit="sample_weight"),
    "class weights": Way(fit="class_weight"),
    "masking": Way(masked=True),
    "jit": Way(compile={"jit_compile": True}),
}


def refusal(kind, method, way):
    """What a combination without a meaning is answered with; None for all others."""
    if way == "gradient accumulation" and method == "step by step":
        words = "`gradient_accumulation_steps` .* has no meaning"
        return pytest.raises(ValueError, match=words)
    if way == "class weights" and kind == "several inputs and outputs":
        return pytest.raises(ValueError, match="`class_weight` is only supported for Models with")
    if way == "jit" and method in ADAPTIVE:
        return pytest.warns(UserWarning, match="doesn't support `jit_compile=True`")
    return None


def is_quick(i, j, k):
    """Every way once, by kinds and methods in turns."""
    return (i, j) == (k % len(MODELS), (k + k // 5) % len(METHODS))


PRODUCT = [
    pytest.param(
        *(kind, method, way),
        marks=() if is_quick(i, j, k) and way != "jit" else pytest.mark.slow,
    )
    for (i, kind), (j, method), (k, way) in itertools.product(
        *map(enumerate, (MODELS, METHODS, WAYS))
    )
]


def compiled(kind, method, way):
    if way.masked and kind == "several inputs and outputs" and OLD_KERAS:
        pytest.skip("Keras 3.8 cannot concatenate masks of sequences of any length")
    model = MODELS[kind](way.masked)
    loss = "sparse_categorical_crossentropy"
    if kind == "several inputs and outputs":
        loss = {"label": loss, "value": "mse"}
    if method == "frozen":
        model.freeze_ranks()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, **way.optimizer),
        loss,
        integrator=METHODS[method],
        truncation=0.5,
        **way.compile,
    )
    return model


def data(kind, way):
    """The arguments of `fit`, by name."""
    x, y = SEQUENCES if way.masked else VECTORS, LABELS
    weights = np.linspace(0.5, 1.5, len(x))
    if kind == "several inputs and outputs":
        x = {"one": x, "other": x[..., ::-1]}
        y = {"label": y, "value": VALUES}
        weights = {"label": weights, "value": weights[::-1]}
    extra = {"sample_weight": weights, "class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}
    return {"x": x, "y": y, **({way.fit: extra[way.fit]} if way.fit else {})}


def layers(model):
    return find_low_rank_layers(model).values()


def assert_equal(ones, others, **tolerances):
    keras.tree.map_structure(
        lambda one, other: np.testing.assert_allclose(one, other, **tolerances), ones, others
    )


def assert_trained(model, method, way, losses):
    assert losses[1] < losses[0]
    steps = int(inner_optimizer(model.optimizer).iterations)
    if way.policy == "mixed_float16":  # steps whose scaled loss overflows are skipped
        assert 10 < steps <= 20
    else:
        assert steps == 20 // way.optimizer.get("gradient_accumulation_steps", 1)
    assert model.jit_compile or not way.compile.get("jit_compile")
    for layer in layers(model):
        for basis in (layer.U.numpy(), layer.V.numpy()):
            assert np.abs(basis.T @ basis - np.eye(basis.shape[1])).max() < 1e-5
    if method in ADAPTIVE:
        assert all(layer.rank < 6 for layer in layers(model))
    else:
        assert all(layer.rank == 6 for layer in layers(model))


@pytest.mark.parametrize("kind, method, way", PRODUCT)
def test_trains_and_comes_back_from_a_file(kind, method, way, tmp_path):
    refused, way = refusal(kind, method, way), WAYS[way]
    keras.config.set_dtype_policy(way.policy)
    arguments = data(kind, way)
    if refused is not None:
        with refused:
            model = compiled(kind, method, way)
            assert not model.jit_compile
            model.fit(**arguments, batch_size=40, verbose=0)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = compiled(kind, method, way)
        losses = model.fit(**arguments, batch_size=8, epochs=2, verbose=0).history["loss"]
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
    assert_trained(model, method, way, losses)
    assert again.ranks == model.ranks and again.jit_compile == model.jit_compile
    x = keras.tree.map_structure(lambda array: array[:16], arguments["x"])
    outputs = model.predict_on_batch(x)
    assert_equal(again.predict_on_batch(x), outputs, rtol=0, atol=0)
    if way.masked:  # and what is masked takes no part
        cut = keras.tree.map_structure(lambda array: array[:, :2], x)
        assert_equal(model(cut), outputs, rtol=0, atol=1e-6)
