"""The manifold of rank-r matrices: points, tangent vectors, and the linear algebra of both.

Use them to write an integrator or an optimizer rule. All functions accept NaN: a step that is not
finite is undone as a whole afterwards.
"""

from keras_lowrank.manifold.decompositions import signed_qr, signed_svd
from keras_lowrank.manifold.orthonormalize import orthonormalized
from keras_lowrank.manifold.point import Point, diagonalized
from keras_lowrank.manifold.squares import Squares
from keras_lowrank.manifold.tangent_vector import TangentVector

__all__ = [
    "Point",
    "Squares",
    "TangentVector",
    "diagonalized",
    "orthonormalized",
    "signed_qr",
    "signed_svd",
]
