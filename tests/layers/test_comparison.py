"""Every low-rank layer at full rank beside its Keras layer, however it is wrapped, made and fed."""

import random
from typing import NamedTuple

import keras
import numpy as np
import pytest
from reference import covering
from reference.combinations import GRAPHS
from reference.comparison import arrays, called, evaluated, in_graph, made, shapes, surroundings

import keras_lowrank
from keras_lowrank.layers import LowRankLayer, find_low_rank_layers

ops = keras.ops
DEFINITE = ("ones", "Constant", "Identity", "function")
IN_GRAPHS = ("open", "dataset")  # outside of which nothing is left of a loss
KERNELS = ("kernel", "recurrent_kernel", "embeddings")
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}


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


def found(thing, model, combination, values):
    outputs = keras.tree.flatten(evaluated(thing, combination, values))
    losses = [] if combination.data in IN_GRAPHS else [*map(float, thing.losses)]
    masks = [getattr(one, "_keras_mask", None) for one in outputs]
    symbolic = [(one.shape, one.dtype) for one in model.outputs]
    shape = None
    if combination.case.inputs == 1 and combination.data != "dict":
        shape = thing.compute_output_shape(shapes(combination)[0])
    return Found(outputs, masks, symbolic, shape, losses)


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
    # Keras takes the factor of a penalty in float32.
    rtol = 10 * max(tolerance, TOLERANCES["float32"])
    np.testing.assert_allclose(sorted(mine.losses), sorted(its.losses), rtol=rtol)
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


def compare(combination, folder):
    with surroundings(combination):
        values = arrays(combination)
        plain = made(False, combination, values)
        if combination.way == "from_keras":
            low = keras_lowrank.from_keras(plain, tolerance=0.0, only_smaller=False)
        else:
            low = made(True, combination, values)
            give_weights(plain, low, combination)
        both = []
        for kind, thing in ((True, low), (False, plain)):
            whole = combination.way in GRAPHS
            model = thing if whole else in_graph(kind, thing, combination)
            both.append(found(thing, model, combination, values))
            if kind and combination.file is not None:
                assert_saved(model, combination, values, folder)
        assert_same(*both, combination)


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


COMBINATIONS = covering.covering(5)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_at_full_rank_it_is_the_layer_of_keras(combination, tmp_path):
    compare(combination, tmp_path)


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "Embedding", "Dense", "EinsumDense", "Conv2D"])
def test_inside_of_a_wrapper_with_another_policy(layer, tmp_path):
    """A `TimeDistributed` calls what is in its layer, past the policy of that."""
    where = {"wrapper": "TimeDistributed", "policy": "inner_mixed_float16"}
    compare(covering.drawn(random.Random(0), 1, is_of(layer), **where)[0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", covering.drawn(random.Random(1), 1000), ids=str)
def test_and_of_many_more(combination, tmp_path):
    compare(combination, tmp_path)


def is_of(layer):
    return lambda one: one.case.layer == layer and covering.is_meaningful(one)


def test_every_pair_of_values_is_among_them():
    assert len(COMBINATIONS) >= 200
    occurring = set().union(*map(covering.pairs, COMBINATIONS))
    for combination in covering.drawn(random.Random(2), 20000):
        assert covering.pairs(combination) <= occurring


def some(table, count):
    """That many combinations for every entry of a table."""
    return [
        pytest.param(one, said, id=f"{name}-{one}")
        for name, (_, said) in table.items()
        for one in covering.drawn(random.Random(0), count, covering.is_only(name))
    ]


def tried(low, combination):
    values = arrays(combination)
    with surroundings(combination):
        return evaluated(made(low, combination, values), combination, values)


def raises(low, combination):
    try:
        tried(low, combination)
    except Exception:  # whatever class TensorFlow has for it
        return True
    return False


@pytest.mark.parametrize("combination, too", some(covering.KERAS_RAISES, 2))
def test_where_keras_raises_a_low_rank_layer_does_too_or_works(combination, too):
    assert raises(True, combination) == (too and raises(False, combination))


@pytest.mark.parametrize("combination, said", some(covering.REFUSED, 5))
def test_what_is_refused_is_refused_by_name(combination, said):
    with pytest.raises(ValueError, match=said):
        tried(True, combination)
