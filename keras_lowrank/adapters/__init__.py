"""Adapters: low-rank changes of a frozen model that find their rank."""

from keras_lowrank.adapters.adapters import Adapters
from keras_lowrank.adapters.adding import add_adapters, load_adapters, merge_adapters

__all__ = ["Adapters", "add_adapters", "load_adapters", "merge_adapters"]
