"""One training step of a model, and what a model keeps for it."""
