"""Builds and calls what a `Combination` describes, with Keras's layer or the low-rank one."""

import contextlib
import operator

import keras
import numpy as np
import tensorflow as tf

import keras_lowrank
from reference.combinations import GRAPHS, RECURRENT

layers, ops = keras.layers, keras.ops
saved = keras.saving.register_keras_serializable("comparison")


@saved
class Holder(layers.Layer):
    """A custom layer around a layer."""

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
    """Calls one layer twice: on the batch, and on the batch in reverse order."""

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


def make_layer(low, combination):
    case, initializer = combination.case, combination.initializer
    arguments = dict(case.arguments)
    if combination.policy.startswith("inner_"):  # unlike the policy of the wrapper
        arguments["dtype"] = combination.policy.removeprefix("inner_")
    arguments.update(of_policy(combination))
    if INITIALIZERS[initializer]() is not None:
        names = ["embeddings_initializer" if case.layer == "Embedding" else "kernel_initializer"]
        names += ["recurrent_initializer"] * (case.layer in RECURRENT)
        arguments.update((name, INITIALIZERS[initializer]()) for name in names)
    if low:
        arguments["rank"] = case.rank
        cls = getattr(keras_lowrank, f"LowRank{case.layer}")
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
    """The shapes of the inputs with an open batch size, and open extents for `"open"` data."""
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
    rng = np.random.default_rng(0)
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
    """The inputs in the structure that the model takes."""
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
    """A functional model of the layer, after a `Masking` for `"masked"` data."""
    dtype = arrays(combination)[0].dtype.name
    inputs = [keras.Input(batch_shape=shape, dtype=dtype) for shape in shapes(combination)]
    x = [layers.Masking()(x) for x in inputs] if combination.data == "masked" else inputs
    outputs = called(thing, combination, x)
    model = keras_lowrank.LowRankModel if low else keras.Model
    return model(structured(combination, inputs), outputs)


def made(low, combination, values):
    """The built layer or model of a combination."""
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


def evaluated(thing, combination, values):
    data = combination.data
    if data == "numpy":
        return called(thing, combination, values)
    tensors = [tf.constant(value) for value in values]
    if data == "open":
        specs = [
            tf.TensorSpec(shape, value.dtype) for shape, value in zip(shapes(combination), values)
        ]
        call = tf.function(input_signature=specs, autograph=False)
        traced = call(lambda *x: called(thing, combination, x))
        return traced(*tensors)
    if data == "dataset":
        batches = tf.data.Dataset.from_tensor_slices(tuple(tensors)).batch(2)
        if isinstance(thing, keras.Model):
            thing.run_eagerly = True  # tracing takes a second
            return thing.predict(batches.map(lambda *x: (x if len(x) > 1 else x[0],)), verbose=0)
        return list(batches.map(lambda *x: called(thing, combination, x)))
    if data == "masked" and combination.way not in GRAPHS:
        tensors = [layers.Masking()(x) for x in tensors]
    elif data == "ragged":
        tensors = [tf.RaggedTensor.from_tensor(x, lengths=[2, 0, 1]) for x in tensors]
    elif data == "sparse":
        tensors = [tf.sparse.from_dense(x) for x in tensors]
    return called(thing, combination, tensors)


@contextlib.contextmanager
def surroundings(combination):
    if combination.policy.startswith("global_"):
        keras.config.set_dtype_policy(combination.policy.removeprefix("global_"))
    with keras.RematScope("full") if combination.wrapper == "remat" else contextlib.nullcontext():
        yield
