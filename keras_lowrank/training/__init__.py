"""One training step of a model, and the state that it needs."""
