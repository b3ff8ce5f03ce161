"""Numerical checks of a layer, an optimizer rule or an integrator of your own.

Each one raises a ValueError that lists the rules which are broken, in plain words, or returns a
`Report` of the rules that hold. They take about a second, and belong into your tests.
"""

from keras_lowrank.diagnostics.layer import check_layer
from keras_lowrank.diagnostics.report import Report
from keras_lowrank.diagnostics.retraction import check_retraction
from keras_lowrank.diagnostics.rule import check_rule

__all__ = ["Report", "check_layer", "check_retraction", "check_rule"]
