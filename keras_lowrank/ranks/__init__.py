"""Truncation rules: they decide the rank of each layer."""
