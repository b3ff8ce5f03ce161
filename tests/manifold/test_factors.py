"""The variable whose rank may change, and the three of one matrix."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel
from keras_lowrank.manifold.factors import Factors, RankVariable
from keras_lowrank.manifold.point import Point


def basis(rank=2, n=5):
    return RankVariable(lambda shape, dtype: tf.ones(shape, dtype), (n, rank), (1,), "float32", "U")


def make_factors(n=5, m=4, rank=2):
    make = keras.initializers.RandomNormal(seed=0)
    return Factors((make, make, make), n, m, rank, "float32")


def triple(n=5, m=4, rank=2):
    rng = np.random.default_rng(rank)
    arrays = [rng.standard_normal(s).astype("float32") for s in ((n, rank), (rank,) * 2, (m, rank))]
    return Point(*map(tf.constant, arrays))


# RankVariable.


@pytest.mark.parametrize("rank", [1, 2, 5, 40])
def test_assign_changes_the_rank(rank):
    variable = basis(rank=2)
    value = np.random.default_rng(0).standard_normal((5, rank)).astype("float32")
    variable.assign(value)
    assert tuple(variable.shape) == (5, rank)
    assert variable.ndim == 2
    np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_array_equal(variable.value.numpy(), value)


def test_assign_returns_the_new_value():
    returned = basis().assign(tf.zeros((5, 3)))
    np.testing.assert_array_equal(returned.numpy(), np.zeros((5, 3)))


@pytest.mark.parametrize("shape", [(4, 2), (2, 5), (5,), (5, 2, 1), ()])
def test_assign_of_another_n_raises_with_words_and_changes_nothing(shape):
    variable = basis()
    with pytest.raises(ValueError, match=r"'U' must have the shape \(5, None\).*None is the rank"):
        variable.assign(tf.zeros(shape))
    np.testing.assert_array_equal(variable.numpy(), np.ones((5, 2)))


def test_assign_of_another_n_raises_while_tracing():
    variable = basis()

    @tf.function
    def function():
        variable.assign(tf.zeros((4, 2)))

    with pytest.raises(ValueError, match=r"must have the shape \(5, None\)"):
        function()


def test_shape_is_live_in_eager_and_values_are_open_in_a_traced_function():
    variable = basis(rank=2)
    traced = []

    @tf.function
    def columns():
        traced.append(tf.convert_to_tensor(variable).shape.as_list())
        return tf.shape(variable.value)[1]

    for rank in (2, 4, 1):
        variable.assign(tf.zeros((5, rank)))
        assert variable.shape.as_list() == [5, rank]
        assert int(columns()) == rank
    # One trace, in which the rank is not known.
    assert traced == [[5, None]]


def test_a_traced_function_grows_the_variable():
    variable = basis(rank=1)

    @tf.function
    def double():
        variable.assign(tf.concat([variable.value, variable.value], axis=1))

    for rank in (2, 4, 8):
        double()
        assert tuple(variable.shape) == (5, rank)
    assert double.experimental_get_tracing_count() == 1


def test_assign_casts_to_the_type_of_the_variable():
    variable = basis()
    variable.assign(np.full((5, 3), 0.5, "float64"))
    assert variable.dtype == "float32" and variable.value.dtype == tf.float32


def test_autocast_leaves_factors_alone():
    layer = LowRankDense(4, rank=2, dtype="mixed_float16")
    layer.build((None, 5))
    seen = []

    class Spy(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__(dtype="mixed_float16")
            self.inner = inner

        def call(self, inputs):
            seen.append(self.inner.U.value.dtype)
            return self.inner(inputs)

    Spy(layer)(tf.ones((1, 5)))
    assert seen == [tf.float32]


def test_memory_follows_the_rank():
    variable = basis(rank=400, n=1000)
    assert len(variable.value.read_value().numpy().tobytes()) == 4 * 1000 * 400
    variable.assign(tf.zeros((1000, 3)))
    assert variable.value.read_value().numpy().nbytes == 4 * 1000 * 3
    # The buffer behind the handle, not only the view that is read.
    assert tf.raw_ops.VariableShape(input=variable.value.handle).numpy().tolist() == [1000, 3]


def test_deepcopy_is_independent_and_keeps_the_open_extent():
    variable = basis(rank=2)
    variable.assign(tf.zeros((5, 3)))
    variable.trainable = False
    twin = copy.deepcopy(variable)
    assert tuple(twin.shape) == (5, 3) and not twin.trainable
    twin.assign(tf.ones((5, 4)))
    assert tuple(twin.shape) == (5, 4)
    np.testing.assert_array_equal(variable.numpy(), np.zeros((5, 3)))

    @tf.function
    def shrink():
        twin.assign(twin.value[:, :1])

    shrink()
    assert tuple(twin.shape) == (5, 1)


def test_deepcopy_of_a_layer_still_resizes_and_shares_nothing():
    layer = LowRankDense(4, rank=2)
    layer(tf.ones((1, 5)))
    twin = copy.deepcopy(layer)
    np.testing.assert_array_equal(twin.kernel, layer.kernel)
    twin.factors.assign(triple(rank=3))
    assert twin.rank == 3 and layer.rank == 2
    assert twin.U is twin.factors.U
    # The layer's list of weights and its factors must be the same variables after the copy.
    assert [id(v) for v in twin.weights[:3]] == [id(v) for v in twin.factors.variables]
    np.testing.assert_allclose(
        twin(tf.ones((1, 5))), tf.ones((1, 5)) @ twin.kernel + twin.bias, atol=1e-6
    )


# Factors.


def test_factors_assign_and_read_give_the_same_triple():
    factors = make_factors()
    factors.assign(triple(rank=3))
    assert factors.rank == 3
    for got, want in zip(factors.read(), triple(rank=3)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["S", "V"])
def test_an_interrupt_between_two_factors_takes_the_first_back(name, monkeypatch):
    factors = make_factors(rank=2)
    before, real, calls = factors.read(), RankVariable.assign, []

    def assign(variable, value):
        calls.append(variable.name)
        if calls.count(name) == 1 and variable.name == name:
            raise KeyboardInterrupt
        return real(variable, value)

    monkeypatch.setattr(RankVariable, "assign", assign)
    with pytest.raises(KeyboardInterrupt):
        factors.assign(triple(rank=3))
    for one, other in zip(factors.read(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "u, s, v",
    [
        ((4, 2), (2, 2), (4, 2)),
        ((5, 2), (2, 2), (5, 2)),
        ((5, 2), (2, 3), (4, 2)),
        ((5, 2), (3, 3), (4, 3)),
        ((5, 2), (2, 2), (4, 3)),
        ((5, 0), (0, 0), (4, 0)),
        ((5, 5), (5, 5), (4, 5)),
    ],
)
def test_shapes_of_no_common_matrix_raise_and_change_nothing(u, s, v):
    factors = make_factors()
    before = [value.numpy() for value in factors.read()]
    words = r"5 x 4 matrix must have the shapes U \(5, r\), S \(r, r\) and V \(4, r\).*Received: U "
    with pytest.raises(ValueError, match=words):
        factors.check_shapes(u, s, v)
    with pytest.raises(ValueError, match=words):
        factors.assign([tf.zeros(u), tf.zeros(s), tf.zeros(v)])
    for value, old in zip(factors.read(), before):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("rank", [1, 4, None])
def test_shapes_of_one_matrix_pass(rank):
    make_factors().check_shapes((5, rank), (rank, rank), (4, rank))


# What a layer and a model make of them.


def test_count_params_and_summary_follow_the_rank():
    inputs = keras.Input((5,))
    layer = LowRankDense(4, rank=2, name="low")
    model = LowRankModel(inputs, layer(inputs))

    def printed():
        lines = []
        model.summary(print_fn=lambda text, **_: lines.append(text), line_length=100)
        return "\n".join(lines)

    assert layer.count_params() == model.count_params() == 2 * (5 + 4 + 2) + 4 == 26
    assert "Total params: 26" in printed()
    layer.factors.assign(triple(rank=4))
    assert layer.count_params() == model.count_params() == 4 * (5 + 4 + 4) + 4 == 56
    assert "Total params: 56" in printed() and "Trainable params: 56" in printed()


def test_factors_are_weights_of_the_layer():
    layer = LowRankConv2D(4, 3, rank=2, name="conv")
    layer.build((None, 8, 8, 1))
    assert [v.path for v in layer.weights] == ["conv/U", "conv/S", "conv/V", "conv/bias"]
    assert all(v.trainable for v in layer.weights)
    layer.trainable = False
    assert not any(v.trainable for v in layer.factors.variables)


@pytest.mark.parametrize("before_or_after", ["restored on creation", "restored later"])
def test_checkpoint_restores_across_ranks(tmp_path, before_or_after):
    layer = LowRankDense(4, rank=3)
    layer.build((None, 5))
    layer.factors.assign(triple(rank=4))
    path = tf.train.Checkpoint(layer=layer).save(tmp_path / "point")
    other = LowRankDense(4, rank=1)
    if before_or_after == "restored later":
        other.build((None, 5))
        tf.train.Checkpoint(layer=other).restore(path).assert_consumed()
    else:
        status = tf.train.Checkpoint(layer=other).restore(path)
        other.build((None, 5))
        status.assert_consumed()
    assert other.rank == 4
    np.testing.assert_array_equal(other.kernel, layer.kernel)


def test_checkpoint_of_a_compiled_model_restores_ranks_and_training_goes_on(tmp_path):
    def make(rank):
        inputs = keras.Input((5,))
        model = LowRankModel(inputs, LowRankDense(4, rank=rank, name="low")(inputs))
        model.compile("sgd", "mse", truncation=0.3)
        return model

    x, y = np.ones((4, 5), "float32"), np.ones((4, 4), "float32")
    model, other = make(3), make(2)
    model.fit(x, y, verbose=0)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "point")
    other.fit(x, y, verbose=0)
    tf.train.Checkpoint(model=other).restore(path)
    assert other.ranks == model.ranks
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
    assert int(other.optimizer.iterations) == 1
    other.fit(x, y, verbose=0)
