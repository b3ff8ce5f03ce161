"""Stage 1 of a step: what the compiled Keras optimizer means for a tangent vector."""

from keras_lowrank.optimizers.gradient_descent import GradientDescent, rule_for

__all__ = ["GradientDescent", "rule_for"]
