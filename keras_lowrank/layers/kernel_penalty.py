"""The L2 penalty of a kernel that is never formed."""

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_override import squared_norm
from keras_lowrank.manifold.factors import Factors


class KernelPenalty(keras.regularizers.Regularizer):
    """`l2 ||W||_F^2`, as the regularizer of S. It follows the kernel that the present step uses.

    Args:
        l2: float.
        factors: `Factors` of W.
    """

    def __init__(self, l2: float, factors: Factors) -> None:
        self.l2, self.factors = l2, factors

    def __call__(self, _: Any) -> tf.Tensor:
        return self.l2 * squared_norm(self.factors)
