"""How a layer multiplies with its matrix.

Use them to write a layer: `Matricization` says how its kernel is read as a matrix, and
`matmul_last` multiplies inputs of any number of axes with a matrix.
"""

from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import matmul_last

__all__ = ["Matricization", "matmul_last"]
