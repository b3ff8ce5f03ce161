"""Every low-rank layer at full rank beside its Keras layer, however it is wrapped, made and fed."""

import contextlib
import operator
import random
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import combinations
from reference.combinations import GRAPHS, KERAS_RAISES, RECURRENT, REFUSED

import keras_lowrank
from keras_lowrank.layers.low_rank_layer import LowRankLayer, find_low_rank_layers

layers, ops = keras.layers, keras.ops
rng = np.random.default_rng(0)
saved = keras.saving.register_keras_serializable("comparison")


@saved
class Holder(layers.Layer):
    """A class of one's own around a layer."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner
        self.supports_masking = True

    def build(self, input_shape):
        if not self.inner.built:
            several = isinstance(input_shape[0], list | tuple)
            self.inner.build(*input_shape) if several else self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(*inputs) if isinstance(inputs, list | tuple) else self.inner(inputs)

    def compute_output_shape(self, input_shape):
        several = isinstance(input_shape[0], list | tuple)
        return self.inner.compute_output_shape(*(input_shape if several else [input_shape]))

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}

    @classmethod
    def from_config(cls, config):
        inner = keras.saving.deserialize_keras_object(config["inner"])
        return cls(**{**config, "inner": inner})


@saved
class Twice(Holder):
    """One layer that is called on the batch, and on the batch in another order."""

    def call(self, inputs):
        flipped = keras.tree.map_structure(lambda x: ops.flip(x, axis=0), inputs)
        return keras.tree.map_structure(operator.add, super().call(inputs), super().call(flipped))


@saved
def slope(shape, dtype=None):
    count = int(np.prod(shape))
    return ops.cast(np.sin(np.arange(count)).reshape(shape), dtype or "float32")


INITIALIZERS = {
    "default": lambda: None,
    "he_normal": lambda: "he_normal",
    "ones": lambda: "ones",
    "Constant": lambda: keras.initializers.Constant(0.1),
    "RandomUniform": lambda: keras.initializers.RandomUniform(-0.1, 0.1, seed=3),
    "Identity": lambda: keras.initializers.Identity(0.5),
    "function": lambda: slope,
}
DEFINITE = ("ones", "Constant", "Identity", "function")
IN_GRAPHS = ("open", "dataset")  # outside of which nothing is left of a loss
KERNELS = ("kernel", "recurrent_kernel", "embeddings")
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}


# One combination: a layer, what is around it, how it is made, and on what.


def make_layer(low, combination):
    case, initializer = combination.case, combination.initializer
    arguments = dict(case.arguments)
    if combination.policy.startswith("inner_"):  # another one than all around it
        arguments["dtype"] = combination.policy.removeprefix("inner_")
    arguments.update(of_policy(combination))
    if INITIALIZERS[initializer]() is not None:
        names = ["embeddings_initializer" if case.layer == "Embedding" else "kernel_initializer"]
        names += ["recurrent_initializer"] * (case.layer in RECURRENT)
        arguments.update((name, INITIALIZERS[initializer]()) for name in names)
    if low:
        arguments["rank"] = case.rank
        name = case.layer.replace("GroupQuery", "GroupedQuery")
        cls = getattr(keras_lowrank, f"LowRank{name}")
    else:
        cls = getattr(layers, case.layer)
    if not case.layer.endswith("Cell"):
        return cls(**arguments)
    around = ("return_sequences", "go_backwards", "return_state", "unroll")
    around = {name: arguments.pop(name) for name in around if name in arguments}
    return layers.RNN(cls(**arguments), **around, **of_policy(combination))


def of_policy(combination):
    policy = combination.policy
    return {} if policy.startswith(("global_", "inner_")) else {"dtype": policy}


def wrapped(low, combination):
    layer = make_layer(low, combination)
    if combination.wrapper in ("alone", "remat"):
        return layer
    if combination.wrapper == "Sequential":
        return keras.Sequential([layer])
    own = {"Holder": Holder, "Twice": Twice}
    wrapper = own.get(combination.wrapper) or getattr(layers, combination.wrapper)
    return wrapper(layer, **of_policy(combination))


def shapes(combination):
    """The shapes of the inputs, without the batch; open where the combination says so."""
    shape = list(combination.case.shape)
    if combination.data == "open":
        fixed = range(len(shape))[combination.case.fixed]
        fixed = [fixed] if isinstance(fixed, int) else fixed
        shape = [one if axis in fixed else None for axis, one in enumerate(shape)]
    if combination.wrapper == "TimeDistributed":
        shape = [2, *shape]
    return [(None, *shape)] * combination.case.inputs


def arrays(combination):
    """A batch of inputs."""
    whole = shapes(combination._replace(data="tensor"))
    if combination.case.layer == "Embedding":
        values = [rng.integers(0, 9, (3, *shape[1:])).astype("int32") for shape in whole]
    elif combination.data == "integers":
        values = [rng.integers(-3, 4, (3, *shape[1:])).astype("int32") for shape in whole]
    else:
        values = [rng.standard_normal((3, *shape[1:])).astype("float32") for shape in whole]
    if combination.data == "masked":
        for value in values:
            value[0, -1] = 0
            value[2, :] = 0
    if combination.data == "float64":
        values = [value.astype("float64") for value in values]
    sizes = {"empty": 0, "one": 1}
    return [value[: sizes.get(combination.data, 3)] for value in values]


def structured(combination, values):
    """The inputs as a model takes them."""
    if combination.data == "dict":
        return dict(zip("za", values))
    if combination.data == "list" or len(values) > 1:
        return list(values)
    return values[0]


def called(thing, combination, values):
    if isinstance(thing, layers.MultiHeadAttention | layers.GroupQueryAttention):
        return thing(*values)
    if isinstance(thing, keras.Model) and not isinstance(thing, keras.Sequential):
        return thing(structured(combination, values))
    return thing(values[0] if len(values) == 1 else list(values))


def in_graph(low, thing, combination):
    """A model of inputs and one layer, or of a mask between them."""
    dtype = arrays(combination)[0].dtype.name
    inputs = [keras.Input(batch_shape=shape, dtype=dtype) for shape in shapes(combination)]
    x = [layers.Masking()(x) for x in inputs] if combination.data == "masked" else inputs
    outputs = called(thing, combination._replace(data="tensor"), x)
    model = keras_lowrank.LowRankModel if low else keras.Model
    return model(structured(combination, inputs), outputs)


def made(low, combination, values):
    """The layer or model of a combination, built; from Keras's one, in the last way."""
    way, shape = combination.way, shapes(combination)
    if way == "from_keras" and low:
        plain = made(False, combination, values)
        return keras_lowrank.from_keras(plain, tolerance=0.0, only_smaller=False)
    thing = wrapped(low, combination)
    if way in GRAPHS:
        model = in_graph(low, thing, combination)
        return keras.models.clone_model(model) if way == "clone" else model
    if way == "sequential":
        thing = keras.Sequential([thing])
    elif way == "sequential_with_input":
        dtype = values[0].dtype.name
        thing = keras.Sequential([keras.Input(batch_shape=shape[0], dtype=dtype), thing])
    elif way == "build":
        built(thing, shape)
    elif way == "build_from_config":
        first = built(thing, shape)
        thing = type(first).from_config(first.get_config())
        thing.build_from_config(first.get_build_config())
    elif way == "from_config":
        thing = type(thing).from_config(thing.get_config())
    called(thing, combination, values)
    return thing


def built(thing, shape):
    attention = isinstance(thing, layers.MultiHeadAttention | layers.GroupQueryAttention)
    thing.build(*shape) if attention or len(shape) == 1 else thing.build(shape)
    return thing


# What is compared.


class Found(NamedTuple):
    """What a layer gives.

    Attributes:
        outputs: list of tensors.
        masks: list, one for each.
        symbolic: list of (shape, dtype), those of a call on tensors of Keras.
        shape: what `compute_output_shape` says.
        losses: list, those of regularizers.
    """

    outputs: list
    masks: list
    symbolic: list
    shape: object
    losses: list


def found(thing, combination, values):
    outputs = keras.tree.flatten(evaluated(thing, combination, values))
    losses = [] if combination.data in IN_GRAPHS else [*map(float, thing.losses)]
    masks = [getattr(one, "_keras_mask", None) for one in outputs]
    symbolic = [
        keras.KerasTensor(one, dtype=value.dtype.name)
        for one, value in zip(shapes(combination), values)
    ]
    symbolic = keras.tree.flatten(called(thing, combination, symbolic))
    shape = None
    if combination.case.inputs == 1 and combination.data != "dict":
        shape = thing.compute_output_shape(shapes(combination)[0])
    symbolic = [(one.shape, one.dtype) for one in symbolic]
    return Found(outputs, masks, symbolic, shape, losses)


def evaluated(thing, combination, values):
    data = combination.data
    if data == "numpy":
        return called(thing, combination, values)
    tensors = [tf.constant(value) for value in values]
    if data == "open":
        specs = [
            tf.TensorSpec(shape, value.dtype) for shape, value in zip(shapes(combination), values)
        ]
        traced = tf.function(lambda *x: called(thing, combination, x), input_signature=specs)
        return traced(*tensors)
    if data == "dataset":
        batches = tf.data.Dataset.from_tensor_slices(tuple(tensors)).batch(2)
        if isinstance(thing, keras.Model):
            return thing.predict(batches.map(lambda *x: (x if len(x) > 1 else x[0],)), verbose=0)
        return list(batches.map(lambda *x: called(thing, combination, x)))
    if data == "masked" and combination.way not in GRAPHS:
        tensors = [layers.Masking()(x) for x in tensors]
    elif data == "ragged":
        tensors = [tf.RaggedTensor.from_tensor(x, lengths=[2, 0, 1]) for x in tensors]
    elif data == "sparse":
        tensors = [tf.sparse.from_dense(x) for x in tensors]
    return called(thing, combination, tensors)


def low_rank_layers(thing):
    return [thing] if isinstance(thing, LowRankLayer) else [*find_low_rank_layers(thing).values()]


def give_weights(plain, low, combination):
    """Sets the weights of `plain`, and sees that kernels that are no chance were those before."""
    others = [one for one in plain.trainable_weights if one.name not in KERNELS]
    kernels = [one for one in plain.trainable_weights if one.name in KERNELS]
    for kernel, layer in zip(kernels, low_rank_layers(low), strict=True):
        assert layer.factors.rank == min(layer.matricization.shape)
        kernel = ops.cast(kernel, layer.factors.U.dtype)
        if combination.initializer in DEFINITE:
            tolerance = 1e-2 if combination.policy == "bfloat16" else 1e-5
            np.testing.assert_allclose(layer.kernel, kernel, atol=tolerance)
        U, values, V = np.linalg.svd(layer.matricization.matrix(kernel), full_matrices=False)
        layer.factors.assign((U, np.diag(values), V.T))
    factors = {id(one) for layer in low_rank_layers(low) for one in layer.factors.variables}
    mine = [one for one in low.trainable_weights if id(one) not in factors]
    for one, other in zip(mine, others, strict=True):
        one.assign(other)


def is_as_exact(shape, other):
    """Whether a shape says what another one does, or more: Keras leaves open what it might know."""
    if other is None or isinstance(other, int):
        return other is None or shape == other
    return len(shape) == len(other) and all(map(is_as_exact, shape, other))


def assert_same(mine, its, combination):
    policy = combination.policy.removeprefix("global_").removeprefix("inner_")
    tolerance = TOLERANCES[keras.dtype_policies.get(policy).compute_dtype]
    # There Keras's layer computes in the type of the wrapper, and a low-rank one in its own.
    mixed = (combination.wrapper, combination.policy) == ("TimeDistributed", "inner_mixed_float16")
    np.testing.assert_allclose(sorted(mine.losses), sorted(its.losses), rtol=10 * tolerance)

    for one, other in zip(mine.symbolic, its.symbolic, strict=True):
        assert one[1] == other[1] and is_as_exact(one[0], other[0])
    assert is_as_exact(mine.shape, its.shape)
    assert len(mine.outputs) == len(its.outputs)
    for one, other in zip(mine.outputs, its.outputs):
        assert type(one) is type(other) and (one.dtype == other.dtype or mixed)
        assert one.shape == other.shape
        one, other = (getattr(x, "flat_values", x) for x in (one, other))
        one, other = (np.asarray(x).astype("float64") for x in (one, other))
        scale = max(1, np.max(np.abs(other), initial=0))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)
    for one, other in zip(mine.masks, its.masks, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            one, other = (getattr(x, "flat_values", x) for x in (one, other))
            np.testing.assert_array_equal(one, other)


@contextlib.contextmanager
def surroundings(combination):
    if combination.policy.startswith("global_"):
        keras.config.set_dtype_policy(combination.policy.removeprefix("global_"))
    with keras.RematScope("full") if combination.wrapper == "remat" else contextlib.nullcontext():
        yield


def compare(combination, folder):
    with surroundings(combination):
        values = arrays(combination)
        plain, low = (made(kind, combination, values) for kind in (False, True))
        if combination.way == "from_keras":
            low = keras_lowrank.from_keras(plain, tolerance=0.0, only_smaller=False)
        else:
            give_weights(plain, low, combination)
        both = [found(thing, combination, values) for thing in (low, plain)]
        assert_same(*both, combination)
        plainly = combination._replace(data="tensor")
        model = low if isinstance(low, keras.Model) else in_graph(True, low, plainly)
        assert_saved(model, combination, values, folder)


def assert_saved(model, combination, values, folder):
    """Saves a model or its weights, and sees that what was saved computes the same."""
    before = keras.tree.flatten(called(model, combination, values))
    path = folder / f"model.{combination.file}"
    if combination.file == "keras":
        model.save(path)
        model = keras.models.load_model(path)
    else:
        model.save_weights(path)
        for variable in model.trainable_weights:
            variable.assign(ops.zeros_like(variable))
        model.load_weights(path)
    after = keras.tree.flatten(called(model, combination, values))
    for one, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(one, other)


COMBINATIONS = combinations.covering(0)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_at_full_rank_it_is_the_layer_of_keras(combination, tmp_path):
    compare(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", combinations.drawn(random.Random(1), 1000), ids=str)
def test_and_of_many_more(combination, tmp_path):
    compare(combination, tmp_path)


def test_every_pair_of_values_is_among_them():
    assert len(COMBINATIONS) >= 200
    occurring = set().union(*map(combinations.pairs, COMBINATIONS))
    for combination in combinations.drawn(random.Random(2), 20000):
        assert combinations.pairs(combination) <= occurring


def some(table, count):
    """That many combinations for every entry of a table."""
    return [
        pytest.param(one, said, id=f"{name}-{one}")
        for name, (_, said) in table.items()
        for one in combinations.drawn(random.Random(0), count, combinations.is_only(name))
    ]


def tried(low, combination):
    values = arrays(combination)
    with surroundings(combination):
        return found(made(low, combination, values), combination, values)


@pytest.mark.parametrize("combination, raises", some(KERAS_RAISES, 2))
def test_where_keras_raises(combination, raises):
    with pytest.raises(Exception):  # noqa: B017 - whatever class TensorFlow has for it
        tried(False, combination)
    if raises:
        with pytest.raises(Exception):  # noqa: B017
            tried(True, combination)
    else:
        outputs = tried(True, combination).outputs
        assert all(np.all(np.isfinite(ops.cast(one, "float32"))) for one in outputs)


@pytest.mark.parametrize("combination, said", some(REFUSED, 5))
def test_what_is_refused_is_refused_by_name(combination, said):
    with pytest.raises(ValueError, match=said):
        tried(True, combination)
