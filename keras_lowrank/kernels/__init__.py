"""How a layer multiplies with its matrix.

For a layer of your own: `Matricization` says how its kernel is a matrix, and `matmul_last` is the
fastest product of inputs of any number of axes with a matrix.
"""

from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.kernels.products import matmul_last

__all__ = ["Matricization", "matmul_last"]
