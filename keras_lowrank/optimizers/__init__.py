"""Optimizer rules, stage 1 of a step: from a tangent gradient to a direction."""

from keras_lowrank.optimizers import adam, momentum, muon, stiefel_adam  # noqa: F401, register their rules
from keras_lowrank.optimizers.rule import Direction, Rule, register_rule
from keras_lowrank.optimizers.stiefel_adam import StiefelAdam

__all__ = ["Direction", "Rule", "StiefelAdam", "register_rule"]
