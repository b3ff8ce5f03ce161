"""Stage 1 of a step: what the compiled Keras optimizer means for a low-rank matrix."""

from keras_lowrank.optimizers import adaptive, momentum, muon  # announce their rules
from keras_lowrank.optimizers.options import rule_for, rules_of
from keras_lowrank.optimizers.rule import Direction, Rule, rule_of

__all__ = ["Direction", "Rule", "adaptive", "momentum", "muon", "rule_for", "rule_of", "rules_of"]
