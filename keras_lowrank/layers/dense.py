"""The densely connected layer with a low-rank kernel."""

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.kernels.products import matmul_last
from keras_lowrank.layers.arguments import (
    Activation,
    Constraint,
    Initializer,
    Regularizer,
    Shape,
    TruncationLike,
    positive_integer,
)
from keras_lowrank.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankDense(LowRankLayer):
    r"""`keras.layers.Dense` with the kernel `W = U S V^T`: `y = activation(x U S V^T + b)`.

    From "Low-rank lottery tickets" (arXiv:2205.13571), section 4.

    Args:
        units: int, size of the output.
        activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
        bias_regularizer, activity_regularizer, kernel_constraint, bias_constraint: as in
            `keras.layers.Dense`, with the limits in `LowRankLayer`.
        lora_rank, lora_alpha, quantization_config: must be None.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        min_rank, max_rank, truncation: as in `LowRankLayer`.
        **kwargs: `name`, `dtype` and `trainable`, as in Keras.

    Input shape:
        `(batch, ..., n)`, two axes or more; or a `tf.SparseTensor` of shape `(batch, n)`, which has
        no gradient.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: an argument outside its range; when built, a rank above `min(n, units)`.

    Example:

    >>> layer = LowRankDense(64, rank=4, activation="relu")
    >>> layer(tf.ones((2, 32))).shape.as_list()
    [2, 64]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(32, 4), (4, 4), (64, 4), (64,)]
    """

    takes = ("sparse",)

    def __init__(
        self,
        units: int,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: None = None,
        bias_constraint: Constraint = None,
        lora_rank: None = None,
        lora_alpha: None = None,
        quantization_config: None = None,
        *,
        rank: int | None = None,
        min_rank: int = 1,
        max_rank: int | None = None,
        truncation: TruncationLike = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            quantization_config=quantization_config,
            **kwargs,
        )
        self.units = positive_integer("units", units)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        self.build_factors((input_shape[-1], self.units))
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs: Any) -> Any:
        if isinstance(inputs, tf.SparseTensor) and inputs.shape.rank != 2:
            raise ValueError(
                f"Layer {self.name!r} takes sparse tensors of shape (batch, n). Make others dense "
                f"with `tf.sparse.to_dense`. Received: a sparse tensor of shape {inputs.shape}"
            )
        return super().call(inputs)

    def project(self, inputs: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        return matmul_last(tf.cast(inputs, basis.dtype), basis)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}
