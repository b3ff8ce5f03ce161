"""The densely connected layer with a low-rank kernel."""

import keras
import tensorflow as tf

from keras_lowrank.kernels.products import matmul_last
from keras_lowrank.layers.arguments import by_name, positive_integer
from keras_lowrank.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankDense(LowRankLayer):
    r"""`keras.layers.Dense` with the kernel `W = U S V^T`: `y = activation(x U S V^T + b)`.

    From "Low-rank lottery tickets" (arXiv:2205.13571), section 4.

    Args:
        units: int, size of the output.
        activation, use_bias, *args: as in `keras.layers.Dense`, in its order.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        **kwargs: all other arguments of `LowRankLayer` and of `keras.layers.Dense`.

    Input shape:
        `(batch, ..., n)`, any number of axes from two on; or a `tf.SparseTensor`, `(batch, n)`,
        which is data and has no gradient.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: an argument outside its range; a rank above `min(n, units)` when built.

    Example:

    >>> layer = LowRankDense(64, rank=4, activation="relu")
    >>> layer(tf.ones((2, 32))).shape.as_list()
    [2, 64]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(32, 4), (4, 4), (64, 4), (64,)]
    """

    takes = ("sparse",)

    def __init__(self, units, activation=None, use_bias=True, *args, rank=None, **kwargs):
        kwargs = dict(by_name(keras.layers.Dense, 3, args), **kwargs)
        super().__init__(activation=activation, use_bias=use_bias, rank=rank, **kwargs)
        self.units = positive_integer("units", units)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def build(self, input_shape):
        self.build_factors((input_shape[-1], self.units))
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs):
        if isinstance(inputs, tf.SparseTensor) and inputs.shape.rank != 2:
            raise ValueError(
                f"Layer {self.name!r} takes sparse tensors of shape (batch, n). Make others dense, "
                f"by `tf.sparse.to_dense`. Received: a sparse tensor of shape {inputs.shape}"
            )
        return super().call(inputs)

    def project(self, inputs, basis):
        return matmul_last(tf.cast(inputs, basis.dtype), basis)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}
