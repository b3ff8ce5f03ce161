"""The L2 penalty of a kernel that is never formed."""

import keras

from keras_lowrank.kernels.kernel_override import squared_norm


class KernelPenalty(keras.regularizers.Regularizer):
    """`l2 ||W||_F^2`. Keras collects it from S, whatever kernel the present step has in place."""

    def __init__(self, l2, factors):
        self.l2, self.factors = l2, factors

    def __call__(self, _):
        return self.l2 * squared_norm(self.factors)
