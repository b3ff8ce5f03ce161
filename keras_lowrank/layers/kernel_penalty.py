"""Penalties of a kernel that is never formed, as functions of its singular values."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.kernels.kernel_override import core_gram
from keras_lowrank.manifold.factors import Factors


@keras.saving.register_keras_serializable("keras_lowrank")
class Conditioning(keras.regularizers.Regularizer):
    r"""A kernel regularizer that draws the singular values of a kernel together.

    The penalty is `strength ||S^T S - a^2 I||_F` with `a^2 = ||S||_F^2 / r`: zero where all
    singular values are equal. A well-conditioned kernel passes small changes of its inputs on
    without amplifying some of them, which makes a network more robust to adversarial ones
    (Schotthoefer, Yang, Schnake, "Dynamical low-rank compression of neural networks with robustness
    under adversarial attacks", NeurIPS 2025). It is a function of the kernel, whatever its factors,
    and a low-rank layer takes its tangent gradient as that of the loss.

    A plain Keras layer takes it too, for comparison: the kernel is read as the matrix
    `(all but the last axis, last axis)`, and r is its smaller side.

    Args:
        strength: float, at least 0.
        l2: float, that of `keras.regularizers.L2` beside it. Defaults to 0.

    Raises:
        ValueError: a negative number.

    Example:

    >>> layer = LowRankDense(32, rank=8, kernel_regularizer=Conditioning(0.01))
    >>> layer(np.ones((1, 16))).shape.as_list(), len(layer.losses)
    ([1, 32], 1)
    """

    def __init__(self, strength: float, l2: float = 0.0) -> None:
        for name, value in (("strength", strength), ("l2", l2)):
            if not (isinstance(value, (int, float)) and value >= 0.0):
                raise ValueError(
                    f"`{name}` must be a number that is not negative. Received: {name}={value!r}"
                )
        self.strength, self.l2 = float(strength), float(l2)

    def __call__(self, kernel: tf.Tensor) -> tf.Tensor:
        matrix = tf.reshape(kernel, [-1, kernel.shape[-1]])
        tall = matrix.shape[0] is None or matrix.shape[0] >= matrix.shape[1]
        return self.of_gram(tf.matmul(matrix, matrix, transpose_a=tall, transpose_b=not tall))

    def of_gram(self, gram: tf.Tensor, rank: tf.Tensor | None = None) -> tf.Tensor:
        """The penalty, from a matrix whose eigenvalues are the squares of the singular values.

        Args:
            gram: tensor, shape `(k, k)`. Eigenvalues of zero may be among them.
            rank: integer scalar tensor r; None for k.
        """
        rank = tf.cast(tf.shape(gram)[0] if rank is None else rank, gram.dtype)
        square = tf.linalg.trace(gram)
        spread = tf.reduce_sum(gram * tf.transpose(gram)) - square**2 / rank
        # A difference that is rounding alone counts as zero: its root has no useful gradient.
        least = np.finfo(gram.dtype.as_numpy_dtype).eps * square**2
        clear = spread > least
        spread = tf.sqrt(tf.where(clear, spread, tf.ones_like(spread)))
        spread = tf.where(clear, spread, tf.zeros_like(spread))
        return self.strength * spread + self.l2 * square

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "l2": self.l2}


class KernelPenalty(keras.regularizers.Regularizer):
    """The penalty of W. Keras collects it from S, whatever kernel the present step has in place.

    Args:
        regularizer: `Conditioning`, or one of Keras's with an attribute `l2`.
        factors: `Factors`.
    """

    def __init__(self, regularizer: keras.regularizers.Regularizer, factors: Factors) -> None:
        self.regularizer, self.factors = regularizer, factors

    def __call__(self, _: Any) -> tf.Tensor:
        gram = core_gram(self.factors)
        if isinstance(self.regularizer, Conditioning):
            return self.regularizer.of_gram(gram, tf.shape(self.factors.U.value)[1])
        return self.regularizer.l2 * tf.linalg.trace(gram)
