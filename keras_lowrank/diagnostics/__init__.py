"""Numerical checks of your own layer, optimizer rule or integrator.

Each check returns a `Report` of the rules that hold, or raises a ValueError that lists the broken
ones. A check takes about a second. Call it in your tests.
"""

from keras_lowrank.diagnostics.layer import check_layer
from keras_lowrank.diagnostics.report import Report
from keras_lowrank.diagnostics.retraction import check_retraction
from keras_lowrank.diagnostics.rule import check_rule

__all__ = ["Report", "check_layer", "check_retraction", "check_rule"]
