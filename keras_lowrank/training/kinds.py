"""Which functions step a kernel: those for matrices, or those for Tucker-2 kernels."""

from types import ModuleType

from keras_lowrank.manifold.factors import Factors
from keras_lowrank.manifold.tucker_factors import TuckerFactors
from keras_lowrank.training import matrix_step, tucker_step


def step_functions(factors: Factors) -> ModuleType:
    """Returns the module with `tangent_gradient`, `advance`, `position`, `recentered`,
    `is_origin` and `origin_scale` for a kernel.
    """
    return tucker_step if isinstance(factors, TuckerFactors) else matrix_step
