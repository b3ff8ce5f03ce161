"""The options that every Keras optimizer has: refused, or what they mean for a low-rank matrix."""

import tensorflow as tf

from keras_lowrank.keras_internals import built_on, decays, inner_optimizer
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.factors import RankVariable
from keras_lowrank.optimizers.rule import known_optimizers, rule_class

_WHY_NONE = {
    "Lion": "the sign of every entry of a kernel that is never formed is no low-rank matrix",
}


def make_rule(optimizer, integrator):
    """Returns the `Rule` that moves the factors as `optimizer` moves ordinary variables.

    Args:
        optimizer: a Keras optimizer, alone or inside a `LossScaleOptimizer`.
        integrator: the `Integrator` that takes the steps.

    Raises:
        ValueError: an optimizer or an option that has no meaning for a low-rank matrix. Nothing
            is ignored in silence.
    """
    inner = inner_optimizer(optimizer)
    found = rule_class(inner)
    name = type(inner).__name__
    if found is None:
        reason = f": {_WHY_NONE[name]}" if name in _WHY_NONE else ""
        raise ValueError(
            f"{name} has no rule for low-rank layers{reason}. Use one of "
            f"{', '.join(known_optimizers())}, announce a `keras_lowrank.optimizers.Rule` of your "
            "own by `keras_lowrank.optimizers.register_rule`, or freeze the low-rank layers "
            f"(`trainable=False`). Received: optimizer={name}"
        )
    for variable in built_on(inner):
        if isinstance(variable, RankVariable):
            raise ValueError(
                "The optimizer of a low-rank model is built by `compile`, on the variables that "
                "are no factors. Give `compile` one that was not built. "
                f"Received: an optimizer that was built on {variable.path!r}"
            )
    rule = found(inner)
    if inner.clipvalue:
        _refuse(inner, "clipvalue", "it depends on the basis. Use `clipnorm` or `global_clipnorm`")
    if inner.use_ema:
        _refuse(
            inner,
            "use_ema",
            "an average of low-rank matrices is not one. Use a learning rate that falls to zero",
        )
    if inner.gradient_accumulation_steps:
        if integrator.needs_second_pass:
            _refuse(
                inner,
                "gradient_accumulation_steps",
                f"{type(integrator).__name__} needs the gradient at bases that are known at the "
                "end only. Use integrator='parallel', or a larger `adapt_every`",
            )
        if inner.global_clipnorm:
            _refuse(
                inner,
                "global_clipnorm",
                "the norm over all variables is not known where Keras accumulates some of them. "
                "Use `clipnorm`",
            )
    rule.check()
    return rule


def rules_by_layer(rule, layers):
    """The rule of every layer, by path: what `rule` has for the weight that Keras has there."""
    return {path: rule.of_layer(layer.weight_path) for path, layer in layers.items()}


def _refuse(optimizer, option, reason):
    raise ValueError(
        f"`{option}` of an optimizer has no meaning for the low-rank layers: {reason}, or freeze "
        f"the low-rank layers (`trainable=False`). Received: {option}={getattr(optimizer, option)}"
    )


def clip_factors(optimizer, tangents, others):
    """What `clipnorm` and `global_clipnorm` multiply gradients with.

    Args:
        optimizer: the Keras optimizer, not a scaling one.
        tangents: list of `TangentVector`, one a matrix; its norm is `||P(G)||_F`.
        others: list of the gradients of all other variables (None where there is none).

    Returns:
        `(factors, common)`: list of scalar tensors for the matrices, or of None for no clipping,
        and one for the others, by which a global norm takes them before Keras clips them itself.
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
    limit = tf.constant(limit, norm.dtype)  # by `tf.cast` it would be rounded to float32 first
    return limit / tf.maximum(norm, limit)


def weight_decay(rule, layer):
    """The decay of the matrix of a low-rank layer: a float, 0 where it is excluded.

    Excluded is a layer by each of its factors, and by the name that its weight has in Keras.
    """
    decay = rule.weight_decay
    name = layer.weight_path.rpartition("/")[2]
    if not decay or not decays(rule.optimizer, layer.factors.variables, name):
        return 0.0
    return float(decay)
