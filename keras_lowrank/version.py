"""The version of this package: here alone, and in CITATION.cff."""

__version__ = "0.1.0"
