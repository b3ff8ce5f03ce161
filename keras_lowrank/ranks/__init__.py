"""Who decides the rank of each layer."""
