"""The plain gradient step on the manifold."""

import keras

from keras_lowrank.keras_internals import LossScaleOptimizer

# Options of every Keras optimizer that would act on the other variables and not on the factors.
_OPTIONS = (
    "weight_decay",
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "use_ema",
    "gradient_accumulation_steps",
    "loss_scale_factor",
)


class GradientDescent:
    """The direction of plain gradient descent: the gradient itself."""

    def direction(self, gradient):
        """Returns the `TangentVector` D of the step `W - h D`, h the learning rate.

        Args:
            gradient: `TangentVector`, the tangent gradient.
        """
        return gradient


def rule_for(optimizer):
    """Returns the rule that moves the factors as `optimizer` moves ordinary variables.

    Args:
        optimizer: a Keras optimizer: `keras.optimizers.SGD` with any learning rate or schedule,
            alone or inside a `LossScaleOptimizer`.

    Raises:
        ValueError: an optimizer whose momentum, moments or options would be ignored for the
            factors. Nothing is ignored in silence.
    """
    inner = optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer
    alternatives = (
        "Use keras.optimizers.SGD(learning_rate) with a number or a schedule, or freeze the "
        "low-rank layers (`trainable=False`)."
    )
    if type(inner) is not keras.optimizers.SGD:
        raise ValueError(
            "The factors of low-rank layers move by plain gradient steps, and the moments of "
            f"{type(inner).__name__} would be ignored for them. {alternatives} "
            f"Received: optimizer={type(inner).__name__}"
        )
    ignored = [name for name in _OPTIONS if getattr(inner, name, None)]
    if inner.momentum:
        ignored.insert(0, "momentum")
    if ignored:
        name = ignored[0]
        raise ValueError(
            f"The factors of low-rank layers move by plain gradient steps, and `{name}` would be "
            f"ignored for them. {alternatives} Received: {name}={getattr(inner, name)}"
        )
    return GradientDescent()
