"""Stage 1 of a step: what the compiled Keras optimizer means for a low-rank matrix."""

from keras_lowrank.optimizers import adaptive, momentum, muon  # noqa: F401, register their rules
from keras_lowrank.optimizers.rule import Direction, Rule, register_rule

__all__ = ["Direction", "Rule", "register_rule"]
