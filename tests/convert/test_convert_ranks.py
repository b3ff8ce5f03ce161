"""from_keras: which layers, and at which ranks."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from reference.cases import few, seeds

from keras_lowrank import from_keras
from keras_lowrank.convert.forms import MatrixForm
from keras_lowrank.convert.ranks import Rule, spend_budget

SHAPES = {"conv": (27, 16), "block/a": (64, 48), "block/b": (48, 32), "head": (32, 10)}
DENSE = sum(n * m for n, m in SHAPES.values())


@pytest.fixture(scope="module")
def model():
    """Kernels whose singular values fall off, at a different rate in each."""
    keras.utils.set_random_seed(1)
    block = keras.Sequential([layers.Dense(48, name="a"), layers.Dense(32, name="b")], name="block")
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(16, 3, padding="same", name="conv")(inputs)
    x = layers.Flatten()(layers.MaxPooling2D(3)(x))
    model = keras.Model(inputs, layers.Dense(10, name="head")(block(x)))
    for decay, layer in enumerate([model.get_layer("conv"), *block.layers], 1):
        n, m = np.prod(layer.kernel.shape[:-1]), layer.kernel.shape[-1]
        rng = np.random.default_rng(decay)
        left, _ = np.linalg.qr(rng.standard_normal((n, min(n, m))))
        right, _ = np.linalg.qr(rng.standard_normal((m, min(n, m))))
        values = np.arange(1, min(n, m) + 1.0) ** -(decay / 2)
        layer.kernel.assign((left * values @ right.T).reshape(layer.kernel.shape))
    return model


def matrix(model, path):
    for name in path.split("/"):
        model = model.get_layer(name)
    return np.asarray(model.kernel).reshape(-1, model.kernel.shape[-1]).astype("float64")


def spectra(model):
    return {path: np.linalg.svd(matrix(model, path), compute_uv=False) for path in SHAPES}


def low_rank(model, **arguments):
    return from_keras(model, only_smaller=False, **arguments)


def test_a_tolerance_bounds_the_error_of_each_kernel(model):
    low = low_rank(model, tolerance=0.3)
    for path, values in spectra(model).items():
        tails = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]
        assert low.ranks[path] == np.count_nonzero(tails > 0.3 * tails[0])
        error = np.linalg.norm(matrix(low, path) - matrix(model, path))
        rank = low.ranks[path]
        best = tails[rank] if rank < len(tails) else 0.0
        np.testing.assert_allclose(error, best, atol=1e-5)
        assert error <= 0.3 * tails[0]


def test_an_energy_is_kept(model):
    low = low_rank(model, energy=0.9)
    for path, values in spectra(model).items():
        kept = np.cumsum(values**2) / np.sum(values**2)
        assert low.ranks[path] == 1 + np.count_nonzero(kept < 0.9)


def test_ranks_by_number_and_by_name(model):
    assert low_rank(model, rank=12).ranks == {"conv": 12, "block/a": 12, "block/b": 12, "head": 10}
    assert low_rank(model, rank={"a": 7, "conv": 2}).ranks == {"conv": 2, "block/a": 7}
    wanted = {"block/*": 5, "block/b": 3}
    assert low_rank(model, rank=wanted).ranks == {"block/a": 5, "block/b": 3}
    with pytest.raises(ValueError, match=r"`rank` must name layers.*block/b.*Received: 'missing'"):
        low_rank(model, rank={"missing": 3})


def test_a_layer_that_would_not_get_smaller_stays_dense(model):
    low = from_keras(model, rank=9)
    assert low.ranks == {"conv": 9, "block/a": 9, "block/b": 9}  # 9 (32 + 10) > 320
    assert type(low.get_layer("head")) is layers.Dense
    with pytest.warns(UserWarning, match=r"No layer would be smaller.*only_smaller=False"):
        assert from_keras(model, tolerance=0.0, include="head").ranks == {}


@pytest.mark.parametrize(
    "chosen, paths",
    [
        ({"include": "head"}, ["head"]),
        ({"include": ["a", "conv"]}, ["conv", "block/a"]),
        ({"include": "block/*"}, ["block/a", "block/b"]),
        ({"include": layers.Conv2D}, ["conv"]),
        ({"include": lambda layer: layer.kernel.shape[-1] == 32}, ["block/b"]),
        ({"exclude": [layers.Conv2D, "head"]}, ["block/a", "block/b"]),
        ({"include": "block/*", "exclude": "*a"}, ["block/b"]),
    ],
)
def test_layers_are_chosen_by_name_pattern_type_and_predicate(model, chosen, paths):
    assert list(low_rank(model, rank=2, **chosen).ranks) == paths


def test_a_choice_that_means_nothing_raises(model):
    with pytest.raises(ValueError, match=r"`include` must name layers.*conv, .*Received: 'hed'"):
        from_keras(model, rank=2, include=["head", "hed"])
    with pytest.raises(ValueError, match=r"`exclude` must name layers.*Received: 'flatten'"):
        from_keras(model, rank=2, exclude="flatten")
    with pytest.raises(ValueError, match=r"`include` must hold names.*Received: 3"):
        from_keras(model, rank=2, include=3)
    with pytest.raises(ValueError, match="needs a layer to convert"):
        from_keras(model, rank=2, exclude="*")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Exactly one of.*Received: none of them"),
        ({"rank": 2, "budget": 3}, "Exactly one of.*Received: {'rank': 2, 'budget': 3}"),
        ({"rank": 0}, "`rank` must be a positive integer. Received: rank=0"),
        ({"rank": 2.0}, "`rank` must be a positive integer. Received: rank=2.0"),
        ({"rank": {"conv": 0}}, "`conv` must be a positive integer"),
        ({"rank": {}}, "`rank` must name at least one layer. Received: rank={}"),
        ({"tolerance": 1.0}, r"`tolerance` must be a number in \[0, 1\)"),
        ({"tolerance": lambda step: 0.1}, "`tolerance` must be a number"),
        ({"energy": 0.0}, r"`energy` must be a number in \(0, 1\]"),
        ({"energy": "most"}, r"`energy` must be a number in \(0, 1\].*'most'"),
        ({"budget": True}, "`budget` must be a positive integer"),
    ],
)
def test_a_rule_outside_its_range_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rule(**arguments)


# Budgets.


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_a_budget_is_met_from_below(model, share):
    budget = int(share * DENSE)
    low = from_keras(model, budget=budget)
    held = low.compression().factored
    assert held <= budget
    # What is left pays for no singular value of any layer more.
    assert budget - held < max(n + m for n, m in SHAPES.values())


def test_a_budget_too_small_raises(model):
    least = sum(n + m for n, m in SHAPES.values())
    assert from_keras(model, budget=least).ranks == dict.fromkeys(SHAPES, 1)
    with pytest.raises(ValueError, match=f"must be at least {least}, .*budget={least - 1}"):
        from_keras(model, budget=least - 1)


def test_a_budget_that_pays_for_all_leaves_all_dense(model):
    with pytest.warns(UserWarning, match="No layer would be smaller"):
        assert from_keras(model, budget=2 * DENSE).ranks == {}


@few
@given(seeds, st.integers(1, 5), st.floats(0.0, 1.2), st.booleans())
def test_budgets_are_spent_by_shares_and_never_exceeded(seed, count, share, only_smaller):
    rng = np.random.default_rng(seed)
    shapes = {f"{i}": tuple(rng.integers(1, 15, 2).tolist()) for i in range(count)}
    values = {p: np.sort(rng.uniform(0.1, 2, min(s)))[::-1] for p, s in shapes.items()}
    others = 20
    least = others + sum(min(n + m, n * m) if only_smaller else n + m for n, m in shapes.values())
    most = others + sum(n * m for n, m in shapes.values())
    budget = max(least, int(share * most))
    forms = {p: MatrixForm(*shape) for p, shape in shapes.items()}
    ranks = spend_budget(budget, others, forms, {p: [v] for p, v in values.items()}, only_smaller)
    cost = {p: r * sum(shapes[p]) if r else shapes[p][0] * shapes[p][1] for p, r in ranks.items()}
    total = others + sum(cost.values())
    assert total <= budget
    low = {p: r for p, r in ranks.items() if r}
    assert only_smaller or low == ranks
    if only_smaller:
        assert all(cost[p] < shapes[p][0] * shapes[p][1] for p in low)
    # The best value that was left out did not fit; none that was kept beyond the first is worse.
    scores = {p: values[p] ** 2 / np.sum(values[p] ** 2) for p in low}
    left = [(scores[p][r], sum(shapes[p])) for p, r in low.items() if r < len(scores[p])]
    if left:
        score, price = max(left)
        assert total + price > budget
        assert all(scores[p][r - 1] >= score for p, r in low.items() if r > 1)
