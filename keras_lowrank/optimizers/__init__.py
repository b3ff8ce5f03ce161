"""Optimizer rules, stage 1 of a step: from a tangent gradient to a direction."""

from keras_lowrank.optimizers import adam, momentum, muon  # noqa: F401, register their rules
from keras_lowrank.optimizers.rule import Direction, Rule, register_rule

__all__ = ["Direction", "Rule", "register_rule"]
