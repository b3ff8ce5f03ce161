"""Warnings about ranks that do not reach their target."""

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.ranks.budget import Budget
from keras_lowrank.ranks.truncation import Truncation
from keras_lowrank.reporting.compression import count_weights
from keras_lowrank.user_warnings import warn_user


def warn_before_training(model: keras.Model) -> None:
    """Warns of a `Budget` that cannot be met: ranks never change, or `min_rank` is too high."""
    if not model.integrator.adapts_rank:
        for _, paths in _budgets(model):
            warn_user(
                "A `Budget` needs ranks that change, and "
                f"{type(model.integrator).__name__} keeps those of the layers {paths}. Use "
                "integrator='parallel' or 'rank_adaptive'."
            )
        return
    budgets, layers = _budgets(model), find_built_layers(model)
    if not budgets:
        return
    total = count_weights(model)
    ranked = [one for one in layers.values() if isinstance(one.factors.rank, int)]
    spare = sum(
        max(one.factors.rank - one.min_rank, 0) * (one.factors.n + one.factors.m) for one in ranked
    )
    for budget, paths in budgets:
        raised = [path for path in paths if layers[path].min_rank > 1]
        if raised and total.factored - spare > budget.target(total.full):
            warn_user(
                f"A `Budget` of {budget.target(total.full):,.0f} weights cannot be met: `min_rank` "
                f"keeps the model at {total.factored - spare:,}. Lower that of the layers {raised}."
            )


def warn_after_training(model: keras.Model) -> None:
    """Warns of a truncation that training ended too early for, and of a `Budget` not met."""
    # Under a strategy the counter has a copy for each replica; this reads one number.
    steps = int(tf.convert_to_tensor(keras_internals.completed_steps(model.optimizer)))
    groups = _by_truncation(model)
    for truncation, paths in groups:
        unmet = truncation.unmet(steps)
        if unmet is not None:
            warn_user(f"The ranks of {len(paths)} layers are not what was asked for: {unmet}.")
    for budget, _ in _budgets(model):
        total = count_weights(model)
        others = [path for other, paths in groups if other is not budget for path in paths]
        if others and not budget.unmet(steps) and total.factored > budget.target(total.full):
            warn_user(
                f"The model has {total.factored:,} weights, more than its `Budget` of "
                f"{budget.target(total.full):,.0f}: layers with their own truncation come first, "
                f"and leave too little. Give them a stricter one, or none: {others}."
            )


def _budgets(model):
    return [group for group in _by_truncation(model) if isinstance(group[0], Budget)]


def _by_truncation(model):
    """The trained layers grouped by truncation: list of `(truncation, paths)`."""
    groups: list[tuple[Truncation, list[str]]] = []
    for path, layer in find_built_layers(model).items():
        truncation = layer.truncation or model.truncation
        same = [paths for one, paths in groups if one.together_with(truncation)]
        if layer.trainable and same:
            same[0].append(path)
        elif layer.trainable:
            groups.append((truncation, [path]))
    return groups
