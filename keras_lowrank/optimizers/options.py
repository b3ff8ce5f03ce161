"""Options that every Keras optimizer has: their meaning for a low-rank matrix, or an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.keras_internals import built_on, decays, inner_optimizer
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.factors import RankVariable
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.rule import Rule, known_optimizers, rule_class

if TYPE_CHECKING:
    from keras_lowrank.layers.low_rank_layer import LowRankLayer

_WHY_NONE = {
    "Lion": "the signs of the entries of a low-rank matrix are not a low-rank matrix",
}


def make_rule(optimizer: keras.optimizers.Optimizer, integrator: Integrator) -> Rule:
    """Returns the `Rule` of an optimizer, after a check of its options.

    Args:
        optimizer: Keras optimizer, alone or inside a `LossScaleOptimizer`.
        integrator: `Integrator` that takes the steps.

    Raises:
        ValueError: an optimizer or an option that has no meaning for a low-rank matrix.
    """
    inner = inner_optimizer(optimizer)
    found = rule_class(inner)
    name = type(inner).__name__
    if found is None:
        reason = f": {_WHY_NONE[name]}" if name in _WHY_NONE else ""
        raise ValueError(
            f"{name} has no rule for low-rank layers{reason}. Use one of "
            f"{', '.join(known_optimizers())}, register your own `keras_lowrank.optimizers.Rule` "
            "with `keras_lowrank.optimizers.register_rule`, or freeze the low-rank layers "
            f"(`trainable=False`). Received: optimizer={name}"
        )
    for variable in built_on(inner):
        if isinstance(variable, RankVariable):
            raise ValueError(
                "`compile` builds the optimizer of a low-rank model, on the variables that are not "
                "factors. Give it an optimizer that is not built. "
                f"Received: an optimizer that was built on {variable.path!r}"
            )
    rule = found(inner)
    if inner.clipvalue:
        _refuse(inner, "clipvalue", "it depends on the basis. Use `clipnorm` or `global_clipnorm`")
    if inner.use_ema:
        _refuse(
            inner,
            "use_ema",
            "an average of low-rank matrices is not low-rank. Use a learning rate that falls to "
            "zero",
        )
    if inner.gradient_accumulation_steps:
        if integrator.needs_second_pass:
            _refuse(
                inner,
                "gradient_accumulation_steps",
                f"{type(integrator).__name__} needs the gradient at bases that only the last batch "
                "determines. Use integrator='parallel', or a larger `adapt_every`",
            )
        if inner.global_clipnorm:
            _refuse(
                inner,
                "global_clipnorm",
                "Keras accumulates some gradients, and the norm over all of them is not known. Use "
                "`clipnorm`",
            )
    rule.check()
    return rule


def rules_by_layer(rule: Rule, layers: dict[str, LowRankLayer]) -> dict[str, Rule]:
    """The rule of every layer, by path; an optimizer may exclude some by the names of weights."""
    return {path: rule.of_layer(layer.weight_path) for path, layer in layers.items()}


def _refuse(optimizer, option, reason):
    raise ValueError(
        f"`{option}` of an optimizer has no meaning for the low-rank layers: {reason}, or freeze "
        f"the low-rank layers (`trainable=False`). Received: {option}={getattr(optimizer, option)}"
    )


def clip_factors(
    optimizer: keras.optimizers.Optimizer,
    tangents: list[TangentVector],
    others: list[row_sparse.Block | None],
) -> tuple[list[tf.Tensor | None], tf.Tensor | None]:
    """The factors that `clipnorm` or `global_clipnorm` multiplies gradients with.

    Args:
        optimizer: the Keras optimizer, not a loss-scaling one.
        tangents: list of `TangentVector`, one a matrix; its norm is `||P(G)||_F`.
        others: list of the gradients of all other variables, None where there is none.

    Returns:
        `(factors, common)`: list of scalar tensors for the matrices, or of None for no clipping;
        and the factor of a global norm for the other gradients, or None.
    """
    if optimizer.clipnorm:
        limit = optimizer.clipnorm
        return [_at_most(limit, tf.sqrt(t.squared_norm())) for t in tangents], None
    if optimizer.global_clipnorm:
        squares = [t.squared_norm() for t in tangents]
        squares += [tf.reduce_sum(tf.square(row_sparse.values(g))) for g in others if g is not None]
        wide = any(square.dtype == tf.float64 for square in squares)
        dtype = tf.float64 if wide else tf.float32
        total = tf.sqrt(tf.add_n([tf.cast(square, dtype) for square in squares]))
        common = _at_most(optimizer.global_clipnorm, total)
        return [common] * len(tangents), common
    return [None] * len(tangents), None


def _at_most(limit, norm):
    limit = tf.constant(limit, norm.dtype)  # `tf.cast` would round it to float32 first
    return limit / tf.maximum(norm, limit)


def weight_decay(rule: Rule, layer: LowRankLayer) -> float:
    """The weight decay of the matrix of a low-rank layer, 0 if the optimizer excludes it.

    It may exclude a layer by any of its factors, or by the name of its weight in Keras.
    """
    decay = rule.weight_decay
    name = layer.weight_path.rpartition("/")[2]
    if not decay or not decays(rule.optimizer, layer.factors.variables, name):
        return 0.0
    return float(decay)


def fresh(optimizer: Any) -> Any:
    """Returns an optimizer of the same arguments, which moves no variables yet; or None."""
    return optimizer and type(optimizer).from_config(optimizer.get_config())
