"""Conversion to the forms of a convolution's kernel: a matrix, the spatial one, a Tucker tensor."""

import keras
import numpy as np
import pytest
from keras import layers
from reference.conversion import check_same
from reference.convolutions import draw
from reference.tucker import unfolded

from keras_lowrank import (
    LowRankConv2D,
    LowRankModel,
    convert_layer,
    from_keras,
    make_low_rank,
    to_keras,
)
from keras_lowrank.convert import inspection
from keras_lowrank.convert.forms import MatrixForm, TuckerForm
from keras_lowrank.convert.ranks import spend_budget

FORMS = ["matrix", "spatial", "tucker"]
X = draw(4, 9, 8, 6)


def full(model, **arguments):
    return from_keras(model, tolerance=0.0, only_smaller=False, **arguments)


@pytest.fixture(scope="module")
def model():
    """Convolutions whose channels matter in part, and a dense head."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 8, 6))
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="one")(inputs)
    x = layers.Conv2D(10, (2, 3), use_bias=False, name="two")(x)
    x = layers.Conv2D(8, 1, name="three")(x)
    model = keras.Model(inputs, layers.Dense(7, name="head")(layers.GlobalMaxPooling2D()(x)))
    for name in ("one", "two", "three"):
        kernel = model.get_layer(name).kernel
        for axis in (2, 3):
            mix = np.linalg.qr(draw(*[kernel.shape[axis]] * 2))[0]
            scaled = mix * 0.7 ** np.arange(len(mix)) @ mix.T
            kernel.assign(np.moveaxis(np.tensordot(kernel, scaled, (axis, 0)), -1, axis))
    return model


def kernels(model, name):
    """The kernel of a layer, as (K, n, m)."""
    kernel = np.asarray(model.get_layer(name).kernel, "float64")
    return kernel.reshape(-1, *kernel.shape[-2:])


def tails(kernel, axis):
    """The errors of the ranks 0, 1, ... on one side."""
    values = np.linalg.svd(unfolded(kernel, axis), compute_uv=False)
    return np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))


@pytest.mark.parametrize("form", FORMS)
def test_at_full_ranks_the_outputs_are_equal_there_and_back_and_from_files(model, form, tmp_path):
    low = full(model, factorization=form)
    check_same(model, low, X)
    assert [low.get_layer(name).factorization for name in ("one", "two", "three")] == [form] * 3
    check_same(model, to_keras(low, "merged"), X)
    low = from_keras(model, tolerance=0.4, factorization=form)
    assert low.get_layer("one").factorization == form
    low.save(tmp_path / "low.keras")
    again = keras.saving.load_model(tmp_path / "low.keras")
    assert again.ranks == low.ranks
    np.testing.assert_array_equal(again(X), low(X))


def test_the_error_of_a_tucker_kernel_is_within_its_tails_and_the_tolerance(model):
    tolerance = 0.3
    low = full(model, factorization="tucker")
    assert low.get_layer("one").rank == {"input": 6, "output": 12}
    low = from_keras(model, tolerance=tolerance, factorization="tucker", only_smaller=False)
    for name in ("one", "two", "three"):
        before, rank = kernels(model, name), low.get_layer(name).rank
        error = np.linalg.norm(kernels(low, name) - before)
        cut = [tails(before, axis) for axis in (1, 2)]
        bound = np.hypot(cut[0][rank["input"]], cut[1][rank["output"]])
        # No rank may be lower: each cut has half of the squared tolerance.
        theta = tolerance * np.linalg.norm(before)
        for tail, size in zip(cut, rank.values()):
            assert size == np.count_nonzero(tail > theta / np.sqrt(2.0))
        assert 0.5 * bound < error <= bound * (1 + 1e-5) and bound <= theta


def test_ranks_by_number_and_name(model):
    low = from_keras(model, rank=9, factorization="tucker", exclude="head", only_smaller=False)
    assert low.get_layer("one").rank == {"input": 6, "output": 9}
    assert low.get_layer("one").get_config()["rank"] == 9
    # An unfolding of the core has no more independent rows than columns.
    assert low.get_layer("three").rank == {"input": 8, "output": 8}
    assert TuckerForm(1, 10, 8).rank([9, 9]) == {"input": 8, "output": 8}
    assert TuckerForm(2, 10, 8).rank([7, 3]) == {"input": 6, "output": 3}
    assert TuckerForm(2, 10, 8).rank([3, 8]) == {"input": 3, "output": 6}
    low = from_keras(model, rank={"two": 3, "head": 2}, factorization="tucker")
    assert low.ranks == {"two/input": 3, "two/output": 3, "head": 2}
    low = from_keras(model, rank=3, factorization="spatial")
    assert low.get_layer("two").factors.n == 2 * 12 and low.get_layer("two").rank == 3


@pytest.mark.parametrize("form", ["spatial", "tucker"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_budget_is_met_and_spent(model, form, share):
    whole = sum(np.prod(weight.shape) for weight in model.weights if len(weight.shape) > 1)
    budget = int(share * whole)
    low = from_keras(model, budget=budget, factorization=form)
    held = low.compression().factored
    assert held <= budget
    # What is left pays for no further direction of any layer.
    dearest = max(12 + 6 * 12, 10 + 6 * 10) if form == "tucker" else 3 * 6 + 3 * 12 + 24
    assert budget - held < 2 * dearest
    if form == "tucker":
        assert all(type(low.get_layer(name)) is LowRankConv2D for name in ("one", "two"))


def test_a_budget_takes_the_largest_shares_of_both_sides():
    forms = {"a": TuckerForm(4, 5, 5), "b": MatrixForm(6, 6)}
    values = {"a": [np.array([4.0, 3, 0, 0, 0]), np.array([3.0, 2.2, 2, 2, 2])]}
    values["b"] = [np.array([3.0, 2, 2, 2, 2, 0])]
    # The shares: 9 / 25 on the input side, 4.84 / 25.84 on the output side, 4 / 25 in the matrix,
    # and then 4 / 25.84. A rank of the matrix costs 12.
    for p, q, r in ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 5), (2, 3, 5)):
        cost = 5 * p + 5 * q + 4 * p * q + 12 * r
        ranks = spend_budget(cost, 0, forms, values, False)
        assert ranks == {"a": {"input": p, "output": q}, "b": r}
        assert spend_budget(cost + 4, 0, forms, values, False) == ranks


def test_layers_without_the_form_keep_the_matrix():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 5))
    x = layers.Conv2DTranspose(6, 2, name="wider")(inputs)
    x = layers.Reshape((49, 6))(x)
    x = layers.Conv1D(7, 3, name="line")(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    low = full(model, factorization="spatial")
    assert low.ranks == {"wider": 6, "line": 7, "head": 4}
    check_same(model, low, draw(2, 6, 6, 5))


@keras.saving.register_keras_serializable("forms")
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(12, 3, name="conv")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs):
        return self.head(keras.ops.mean(self.conv(inputs), axis=(1, 2)))


@pytest.mark.parametrize("form", ["spatial", "tucker"])
def test_in_place_and_layer_by_layer(form, tmp_path):
    keras.utils.set_random_seed(0)
    net = Net()
    before = net(X)
    copy = from_keras(net, tolerance=0.0, only_smaller=False, factorization=form)
    np.testing.assert_allclose(copy(X), before, atol=1e-5)
    assert copy.conv.factorization == form and type(net.conv) is layers.Conv2D
    one = convert_layer(net.conv, tolerance=0.0, factorization=form)
    np.testing.assert_allclose(one(X), net.conv(X), atol=1e-5)
    assert one.factorization == form
    report = make_low_rank(net, tolerance=0.0, only_smaller=False, factorization=form)
    np.testing.assert_allclose(net(X), before, atol=1e-5)
    assert net.conv.factorization == form and isinstance(net, LowRankModel)
    converted = report.converted["conv"]
    assert converted.rank == net.conv.rank
    assert report.after == net.compression().factored
    assert converted.n * converted.m == 9 * 6 * 12
    if form == "tucker":
        assert "conv: 54 x 12, rank 6 and 12" in str(report)
    net.compile("sgd", "mse", truncation=0.5)
    net.fit(X, draw(4, 3), verbose=0)
    net.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    assert again.conv.factorization == form and again.ranks == net.ranks
    np.testing.assert_array_equal(again(X), net(X))
    assert type(to_keras(net).conv) is layers.Conv2D


def test_errors(model):
    with pytest.raises(
        ValueError, match=r"`factorization` must be 'matrix', 'spatial' or 'tucker'"
    ):
        from_keras(model, rank=2, factorization="cp")
    with pytest.raises(ValueError, match="`data` weighs the errors of kernels in the matrix form"):
        from_keras(model, rank=2, factorization="tucker", data=X)
    broken = keras.Sequential([keras.Input((9, 8, 6)), layers.Conv2D(4, 3, name="conv")])
    broken.layers[0].kernel.assign(np.full((3, 3, 6, 4), np.nan))
    with pytest.raises(ValueError, match="'conv' cannot be decomposed"):
        from_keras(broken, rank=2, factorization="tucker")
    with pytest.raises(ValueError, match="must be at least"):
        from_keras(model, budget=10, factorization="tucker")


def test_inspection_shows_both_sides_of_a_tucker_kernel(model):
    low = from_keras(model, rank={"one": 4}, factorization="tucker")
    found = list(inspection.kernels(low, "tucker"))
    lines = {line.split()[0]: line.split() for line in inspection.report(low, found)}
    assert lines["one/input"][1:6] == ["LowRankConv2D", "6", "x", "108", "4"]
    assert lines["one/output"][2:6] == ["12", "x", "54", "4"]
    assert lines["two/output"][1:6] == ["Conv2D", "10", "x", "72", "full"]
    assert lines["head"][1:6] == ["Dense", "8", "x", "7", "full"]
    kernel = kernels(low, "one")
    for values, axis in zip(found[0].values, (1, 2)):
        expected = np.linalg.svd(unfolded(kernel, axis), compute_uv=False)
        np.testing.assert_allclose(values, expected, atol=1e-5)
    # The last column of the table is what a conversion at that tolerance leaves.
    cut = from_keras(model, tolerance=inspection.TOLERANCES[-1], factorization="tucker")
    before = list(inspection.kernels(model, "tucker"))
    lines = {line.split()[0]: line.split() for line in inspection.report(model, before)}
    assert lines["weights"][-1] == f"{cut.compression().factored:,}"
    for path, rank in cut.ranks.items():
        assert lines[path][-1] == str(rank)
