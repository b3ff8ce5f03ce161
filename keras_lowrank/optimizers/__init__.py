"""Stage 1 of a step: what the compiled Keras optimizer means for a low-rank matrix."""

from keras_lowrank.optimizers import adaptive, momentum, muon  # announce their rules
from keras_lowrank.optimizers.options import make_rule, rules_by_layer
from keras_lowrank.optimizers.rule import Direction, Rule, register_rule

__all__ = [
    "Direction",
    "Rule",
    "adaptive",
    "make_rule",
    "momentum",
    "muon",
    "register_rule",
    "rules_by_layer",
]
