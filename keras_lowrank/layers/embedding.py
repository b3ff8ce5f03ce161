"""The embedding with a low-rank table, and its use as an output projection."""

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.kernels.kernel_maps import PLAIN
from keras_lowrank.kernels.kernel_override import low_rank_apply
from keras_lowrank.layers.arguments import by_name, check_regularizer, positive_integer, refuse
from keras_lowrank.layers.composite import kind_of_composite
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankEmbedding(LowRankLayer):
    r"""`keras.layers.Embedding` with the table `W = U S V^T`: `y = U[i] S V^T` for the index i.

    Rows of U are looked up and the rest is products with r x r and r x m matrices: neither the
    table nor its gradient is formed. The gradient of `U[i]` comes row by row, and stays the rows of
    the batch.

    Called with `reverse=True` it is the output projection of a language model that shares the
    table (Press and Wolf, arXiv:1608.05859), as in `keras.layers.ReversibleEmbedding`:
    `y = c tanh(x V S^T U^T / c)`, with `c` the `logit_soft_cap`, or without it.

    Args:
        input_dim: int, n, the number of indices: 0 to n - 1.
        output_dim: int, m, the size of a vector.
        embeddings_initializer: as in `keras.layers.Embedding`, and read as `initial_factors` says.
        embeddings_regularizer: L2 or None.
        embeddings_constraint: None only.
        mask_zero: bool, whether index 0 is padding, to be masked. Defaults to `False`.
        weights: array of shape `(n, m)` or None: a table to start from, cut to its best
            approximation of rank r (SVD).
        reverse_dtype: str or None, the type to compute logits in. None is the `compute_dtype`.
        logit_soft_cap: float or None, the bound on the size of logits.
        tie_weights: bool, whether `reverse` projects by the one table. With `False` it has a matrix
            of its own, in the layer `reverse_embeddings`, a `LowRankDense` without a bias.
        rank: int or None, the rank to start with. See `LowRankLayer`.
        reverse_rank: int or None, the same for a matrix of its own. None is `rank`.
        **kwargs: all other arguments of `LowRankLayer` that are not about bias and activation, and
            of `keras.layers.Embedding`.

    Call arguments:
        inputs: indices, or with `reverse` vectors.
        reverse: bool, whether to project vectors to logits. Defaults to `False`.

    Input shape:
        `(batch, ...)` of indices, ragged ones too, or `(batch, ..., m)` with `reverse`.

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
        input_dim,
        output_dim,
        embeddings_initializer="uniform",
        embeddings_regularizer=None,
        embeddings_constraint=None,
        mask_zero=False,
        weights=None,
        *args,
        reverse_dtype=None,
        logit_soft_cap=None,
        tie_weights=True,
        rank=None,
        reverse_rank=None,
        **kwargs,
    ):
        kwargs = dict(by_name(keras.layers.Embedding, 7, args), **kwargs)
        input_dim = positive_integer("input_dim", input_dim)
        output_dim = positive_integer("output_dim", output_dim)
        refuse(
            embeddings_constraint,
            "embeddings_constraint",
            "a constraint acts on the entries of a table that is never formed",
        )
        if tie_weights and reverse_rank is not None:
            raise ValueError(
                "`reverse_rank` is for a matrix of its own, with tie_weights=False. "
                f"Received: reverse_rank={reverse_rank!r}, tie_weights={tie_weights!r}"
            )
        for name in _OF_OTHER_LAYERS & set(kwargs):
            raise ValueError(f"`{name}` is no argument of an embedding. Received: {kwargs[name]!r}")
        check_regularizer(keras.regularizers.get(embeddings_regularizer), "embeddings_regularizer")
        super().__init__(
            rank=rank,
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
        self.autocast = False  # indices may come as floats, and half precision would round them
        if weights is not None:
            drawn, self.kernel_initializer = self.kernel_initializer, self._given(weights)
            self.build()
            self.kernel_initializer = drawn

    def build(self, input_shape=None):
        self.build_factors((self.input_dim, self.output_dim))
        if self.reverse_embeddings is not None:
            self.reverse_embeddings.build((None, self.output_dim))

    def project(self, inputs, basis):
        return keras.ops.take(basis, inputs, axis=0)

    def call(self, inputs, reverse=False):
        if reverse:
            return self._logits(inputs)
        if isinstance(inputs, tf.RaggedTensor):
            outputs = inputs.with_flat_values(self._looked_up(inputs.flat_values))
        else:
            outputs = self._looked_up(inputs)
        if self.mask_zero:
            # Here and not by `compute_mask`, which is not told the direction of the call.
            keras_internals.set_keras_mask(outputs, keras.ops.not_equal(inputs, 0))
        return outputs

    def _looked_up(self, indices):
        if indices.dtype not in (tf.int32, tf.int64):
            indices = keras.ops.cast(indices, "int32")
        return self.apply_kernel(indices)

    def _logits(self, vectors):
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

    def compute_mask(self, inputs, mask=None):
        """The mask of indices of an integer type; `call` sets that of indices in floats."""
        if not self.mask_zero or "int" not in keras.backend.standardize_dtype(inputs.dtype):
            return None
        return keras.ops.not_equal(inputs, 0)

    def compute_output_shape(self, input_shape, reverse=False):
        if reverse:
            return (*input_shape[:-1], self.input_dim)
        return (*input_shape, self.output_dim)

    def compute_output_spec(self, inputs, reverse=False):
        shape = self.compute_output_shape(inputs.shape, reverse)
        dtype = (reverse and self.reverse_dtype) or self.compute_dtype
        # Up to Keras 3.10 no symbolic tensor says that it is ragged.
        kind = {"ragged": True} if kind_of_composite(inputs) == "ragged" else {}
        return keras.KerasTensor(shape, dtype, **kind)

    # Keras's names of what every low-rank layer has for its kernel.

    @property
    def embeddings_initializer(self):
        return self.kernel_initializer

    @property
    def embeddings_regularizer(self):
        return self.kernel_regularizer

    @property
    def embeddings(self):
        """The table `U S V^T`, formed for a reader. No training or export step reads it."""
        return self.kernel

    def get_config(self):
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

    def _own_projection(self):
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

    def _given(self, weights):
        table = weights[0] if isinstance(weights, list) and len(weights) == 1 else weights
        table = np.asarray(table)
        if table.shape != (self.input_dim, self.output_dim):
            raise ValueError(
                f"`weights` must have the shape ({self.input_dim}, {self.output_dim}). "
                f"Received: an array of shape {table.shape}"
            )
        return lambda shape, dtype=None: keras.ops.cast(table, dtype)


# What every other low-rank layer takes, and an embedding has under other names or not at all.
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
