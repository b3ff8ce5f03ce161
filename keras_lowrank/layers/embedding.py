"""The embedding with a low-rank table, and its use as an output projection."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.kernels.kernel_maps import PLAIN
from keras_lowrank.kernels.kernel_override import low_rank_apply
from keras_lowrank.layers.arguments import (
    Initializer,
    Regularizer,
    Shape,
    TruncationLike,
    check_regularizer,
    positive_integer,
    refuse,
)
from keras_lowrank.layers.composite import kind_of_composite
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankEmbedding(LowRankLayer):
    r"""`keras.layers.Embedding` with the table `W = U S V^T`: `y = U[i] S V^T` for the index i.

    The layer looks up rows of U and multiplies them with S and `V^T`. It forms neither the table
    nor its gradient: the gradient of U holds only the rows of the batch.

    Call it with `reverse=True` for the output projection of a language model, tied to the table
    (Press and Wolf, arXiv:1608.05859), as in `keras.layers.ReversibleEmbedding`:
    `y = x V S^T U^T`, or `y = c tanh(x V S^T U^T / c)` with `c = logit_soft_cap`.

    Args:
        input_dim: int, n, the number of indices: 0 to n - 1.
        output_dim: int, m, the size of a vector.
        embeddings_initializer: as the `kernel_initializer` of `LowRankLayer`.
        embeddings_regularizer: L2 or None.
        embeddings_constraint: must be None: it would act on a table that is never formed.
        mask_zero: bool. Mask index 0 as padding. Defaults to `False`.
        weights: array of shape `(n, m)` or None, a table to start from; it is cut to rank r (SVD).
        lora_rank, lora_alpha, quantization_config: must be None.
        reverse_dtype: str or None, the type to compute logits in. None is the `compute_dtype`.
        logit_soft_cap: float or None, a bound on the size of logits.
        tie_weights: bool. Project with the table itself. With `False`, `reverse` projects with a
            matrix of its own, the layer `reverse_embeddings`: a `LowRankDense` without a bias.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        reverse_rank: int or None, the same for the matrix of `reverse`. None is `rank`.
        min_rank, max_rank, truncation: as in `LowRankLayer`.
        **kwargs: `activity_regularizer`, `name`, `dtype` and `trainable`, as in Keras.

    Call arguments:
        inputs: indices; with `reverse`, vectors.
        reverse: bool. Project vectors to logits. Defaults to `False`.

    Input shape:
        `(batch, ...)` of indices, dense, sparse or ragged; `(batch, ..., m)` with `reverse`.

    Output shape:
        `(batch, ..., m)`, or `(batch, ..., n)` with `reverse`.

    Raises:
        ValueError: an argument outside its range; a rank above `min(n, m)` when built.
        tf.errors.InvalidArgumentError: an index outside the table, on a CPU, as in Keras.

    Example:

    >>> layer = LowRankEmbedding(1000, 32, rank=4)
    >>> vectors = layer(np.array([[3, 1, 4], [1, 5, 0]]))
    >>> vectors.shape.as_list()
    [2, 3, 32]
    >>> layer(vectors, reverse=True).shape.as_list()
    [2, 3, 1000]
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(1000, 4), (4, 4), (32, 4)]
    """

    replaces, takes = "embeddings", ("sparse", "ragged")

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Initializer = "uniform",
        embeddings_regularizer: Regularizer = None,
        embeddings_constraint: None = None,
        mask_zero: bool = False,
        weights: Any = None,
        lora_rank: None = None,
        lora_alpha: None = None,
        quantization_config: None = None,
        *,
        reverse_dtype: str | None = None,
        logit_soft_cap: float | None = None,
        tie_weights: bool = True,
        rank: int | None = None,
        reverse_rank: int | None = None,
        min_rank: int = 1,
        max_rank: int | None = None,
        truncation: TruncationLike = None,
        **kwargs: Any,
    ) -> None:
        input_dim = positive_integer("input_dim", input_dim)
        output_dim = positive_integer("output_dim", output_dim)
        refuse(
            embeddings_constraint,
            "embeddings_constraint",
            "a constraint acts on the entries of a table that is never formed",
        )
        if tie_weights and reverse_rank is not None:
            raise ValueError(
                "`reverse_rank` must be None with tie_weights=True: the layer has one table. "
                f"Received: reverse_rank={reverse_rank!r}"
            )
        for name in _OF_OTHER_LAYERS & set(kwargs):
            raise ValueError(
                f"`{name}` must not be passed: an embedding has no such argument. "
                f"Received: {kwargs[name]!r}"
            )
        check_regularizer(keras.regularizers.get(embeddings_regularizer), "embeddings_regularizer")
        super().__init__(
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            quantization_config=quantization_config,
            use_bias=False,
            kernel_initializer=embeddings_initializer,
            kernel_regularizer=embeddings_regularizer,
            **kwargs,
        )
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.mask_zero = mask_zero
        self.reverse_dtype = reverse_dtype
        self.logit_soft_cap = logit_soft_cap
        self.tie_weights, self.reverse_rank = tie_weights, reverse_rank
        self.reverse_embeddings = None if tie_weights else self._own_projection()
        self.supports_masking = mask_zero
        self.autocast = False  # half precision would round indices that come as floats
        if weights is not None:
            drawn, self.kernel_initializer = self.kernel_initializer, self._given(weights)
            self.build()
            self.kernel_initializer = drawn

    def build(self, input_shape: Shape | None = None) -> None:
        self.build_factors((self.input_dim, self.output_dim))
        if self.reverse_embeddings is not None:
            self.reverse_embeddings.build((None, self.output_dim))

    def project(self, inputs: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        return keras.ops.take(basis, inputs, axis=0)

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        if reverse:
            return self._logits(inputs)
        if isinstance(inputs, tf.RaggedTensor):
            outputs = inputs.with_flat_values(self._looked_up(inputs.flat_values))
        else:
            outputs = self._looked_up(inputs)
        if self.mask_zero:
            # `compute_mask` does not know the direction of the call.
            keras_internals.set_keras_mask(outputs, keras.ops.not_equal(inputs, 0))
        return outputs

    def _looked_up(self, indices: tf.Tensor) -> tf.Tensor:
        if indices.dtype not in (tf.int32, tf.int64):
            indices = keras.ops.cast(indices, "int32")
        return self.apply_kernel(indices)

    def _logits(self, vectors: Any) -> tf.Tensor:
        kind = kind_of_composite(vectors)
        if kind is not None:
            self._refuse_composite(kind)
        dtype = self.reverse_dtype or self.compute_dtype
        vectors = keras.ops.cast(vectors, dtype)
        own = self.reverse_embeddings
        if own is None:
            logits = low_rank_apply(PLAIN, self.factors, vectors, dtype, transposed=True)
        else:
            logits = low_rank_apply(own.kernel_maps, own.factors, vectors, dtype)
        if self.logit_soft_cap is None:
            return logits
        return self.logit_soft_cap * keras.ops.tanh(logits / self.logit_soft_cap)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of integer indices; `call` sets that of indices that come as floats."""
        if not self.mask_zero or "int" not in keras.backend.standardize_dtype(inputs.dtype):
            return None
        return keras.ops.not_equal(inputs, 0)

    def compute_output_shape(self, input_shape: Shape, reverse: bool = False) -> Shape:
        if reverse:
            return (*input_shape[:-1], self.input_dim)
        return (*input_shape, self.output_dim)

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> keras.KerasTensor:
        shape = self.compute_output_shape(inputs.shape, reverse)
        dtype = (reverse and self.reverse_dtype) or self.compute_dtype
        # Up to Keras 3.10 symbolic tensors have no flag for ragged ones.
        kind = {"ragged": True} if kind_of_composite(inputs) == "ragged" else {}
        return keras.KerasTensor(shape, dtype, **kind)

    # Keras's names for those of the kernel.

    @property
    def embeddings_initializer(self) -> Callable[..., Any]:
        """The initializer of the table."""
        return self.kernel_initializer

    @property
    def embeddings_regularizer(self) -> keras.regularizers.Regularizer | None:
        """The regularizer of the table."""
        return self.kernel_regularizer

    @property
    def embeddings(self) -> tf.Tensor:
        """The table `U S V^T`, formed on request. Neither training nor export reads it."""
        return self.kernel

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in _OF_OTHER_LAYERS:
            config.pop(name, None)
        config.update(
            input_dim=self.input_dim,
            output_dim=self.output_dim,
            embeddings_initializer=keras.initializers.serialize(self.kernel_initializer),
            embeddings_regularizer=keras.regularizers.serialize(self.kernel_regularizer),
            mask_zero=self.mask_zero,
            reverse_dtype=self.reverse_dtype,
            logit_soft_cap=self.logit_soft_cap,
            tie_weights=self.tie_weights,
            reverse_rank=self.reverse_rank,
        )
        return config

    def _own_projection(self) -> LowRankDense:
        return LowRankDense(
            self.input_dim,
            use_bias=False,
            kernel_initializer=self.kernel_initializer,
            rank=self._rank if self.reverse_rank is None else self.reverse_rank,
            min_rank=self.min_rank,
            max_rank=self.max_rank,
            truncation=self.truncation,
            dtype=self.dtype_policy,
            name="reverse_embeddings",
        )

    def _given(self, weights: Any) -> Callable[..., tf.Tensor]:
        table = weights[0] if isinstance(weights, list) and len(weights) == 1 else weights
        table = np.asarray(table)
        if table.shape != (self.input_dim, self.output_dim):
            raise ValueError(
                f"`weights` must have the shape ({self.input_dim}, {self.output_dim}). "
                f"Received: an array of shape {table.shape}"
            )
        return lambda shape, dtype=None: keras.ops.cast(table, dtype)


# Arguments of other low-rank layers that an embedding has under other names, or not at all.
_OF_OTHER_LAYERS = {
    "activation",
    "use_bias",
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "kernel_constraint",
    "bias_constraint",
}
