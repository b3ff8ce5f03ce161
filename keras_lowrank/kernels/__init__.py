"""How a layer multiplies with its matrix."""
