"""Attention with low-rank projections."""

from typing import Any

import keras

from keras_lowrank import keras_internals
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.einsum_dense import LowRankEinsumDense
from keras_lowrank.layers.several_kernels import (
    MinRank,
    Rank,
    RankArguments,
    SeveralKernels,
    Truncations,
)

# The names of the projections in Keras; only `use_gate` has a gate.
_PROJECTIONS = ("query", "key", "gate", "value", "attention_output")


class LowRankAttention(SeveralKernels, CompositeInputs):
    """Base of the low-rank attention layers; before the Keras layer.

    The Keras layer makes each of its projections, an `EinsumDense`, in `build`, sets it as an
    attribute, and builds what the attribute holds. This class replaces it when the attribute is
    set, before it has a kernel. Nothing else of the Keras layer changes.
    """

    def __init__(
        self,
        *args: Any,
        rank: Rank = None,
        min_rank: MinRank = 1,
        max_rank: Rank = None,
        truncation: Truncations = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        config = super(SeveralKernels, self).get_config()  # Keras's own: no ranks are known yet
        names = [name for name in _PROJECTIONS if name != "gate" or config.get("use_gate")]
        self.rank_arguments = RankArguments(names, rank, min_rank, max_rank, truncation)
        shared = {
            name: config[name]
            for name in ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
        }
        for own in filter(None, map(self.rank_arguments.of, names)):
            # Checks the arguments now: the projections are made in `build`.
            LowRankEinsumDense("ab,bc->ac", 1, name=self.name, **shared, **own)

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is keras.layers.EinsumDense:
            arguments = self.rank_arguments.of(value.name)
            if arguments:
                value = LowRankEinsumDense(**value.get_config(), **arguments)
                value.caps_rank = self.rank_arguments.one_rank
        super().__setattr__(name, value)

    def low_rank_kernels(self) -> list[LowRankEinsumDense]:
        return [one for one in projections(self).values() if isinstance(one, LowRankEinsumDense)]


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankMultiHeadAttention(LowRankAttention, keras.layers.MultiHeadAttention):
    r"""`keras.layers.MultiHeadAttention` with low-rank projections.

    Attention is Keras's: `softmax(q k^T / sqrt(key_dim)) v`, with masks and dropout. The kernels
    that make queries, keys, values and outputs are matrices `U S V^T`, one for all heads:
    `(dim, num_heads key_dim)` for queries and keys, `(dim, num_heads value_dim)` for values, and
    `(num_heads value_dim, dim)` for outputs. From "Attention is all you need" (arXiv:1706.03762),
    section 3.2, with kernels as in "Low-rank lottery tickets" (arXiv:2205.13571), section 4.

    Args:
        num_heads, key_dim, value_dim, dropout, use_bias, output_shape, attention_axes: as in
            `keras.layers.MultiHeadAttention`.
        *args: its next arguments, in its order.
        rank: int or None, the rank that each projection starts with, as in `LowRankLayer`, or
            `min(n, m)` where that is smaller; or a dict with keys among "query", "key", "value",
            "attention_output" (and "gate", with `use_gate`). A projection that it leaves out stays
            dense. The attribute `rank` has the present ranks, as such a dict.
        min_rank, max_rank, truncation: as in `LowRankLayer`, for all low-rank projections or as
            such a dict.
        **kwargs: all other arguments of `keras.layers.MultiHeadAttention`.

    Input shape:
        As in Keras's `call`: queries `(batch, T, dim)`, values `(batch, S, dim)` and keys like
        values, or with more axes between the first and the last.

    Output shape:
        `(batch, T, dim)`, or with the axes of `output_shape` last.

    Raises:
        ValueError: an argument outside its range, or that a low-rank layer refuses; an unknown
            projection; when built, a rank in a dict above `min(n, m)` of its projection.

    Example:

    >>> layer = LowRankMultiHeadAttention(num_heads=4, key_dim=8, rank=6)
    >>> x = tf.ones((2, 10, 32))
    >>> layer(x, x, use_causal_mask=True).shape.as_list()
    [2, 10, 32]
    >>> inputs = keras.Input((10, 32))
    >>> LowRankModel(inputs, layer(inputs, inputs)).ranks  # doctest: +NORMALIZE_WHITESPACE
    {'low_rank_multi_head_attention/query': 6, 'low_rank_multi_head_attention/key': 6,
     'low_rank_multi_head_attention/value': 6,
     'low_rank_multi_head_attention/attention_output': 6}
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        attention_axes: int | tuple[int, ...] | None = None,
        *args: Any,
        rank: Rank = None,
        min_rank: MinRank = 1,
        max_rank: Rank = None,
        truncation: Truncations = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_heads,
            key_dim,
            value_dim,
            dropout,
            use_bias,
            output_shape,
            attention_axes,
            *args,
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            **kwargs,
        )


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankGroupQueryAttention(LowRankAttention, keras.layers.GroupQueryAttention):
    r"""`keras.layers.GroupQueryAttention` with low-rank projections.

    Several query heads share one head of keys and values. Attention is Keras's. The kernels are
    matrices `U S V^T`, one for all heads: `(dim, num_query_heads head_dim)` for queries,
    `(dim, num_key_value_heads head_dim)` for keys and values, and
    `(num_query_heads head_dim, dim)` for outputs. From "GQA" (arXiv:2305.13245), with kernels as
    in "Low-rank lottery tickets" (arXiv:2205.13571), section 4.

    Args:
        head_dim, num_query_heads, num_key_value_heads, dropout, use_bias: as in
            `keras.layers.GroupQueryAttention`.
        *args: its next arguments, in its order.
        rank, min_rank, max_rank, truncation: as in `LowRankMultiHeadAttention`.
        **kwargs: all other arguments of `keras.layers.GroupQueryAttention`.

    Input shape:
        As in Keras's `call`: queries `(batch, T, dim)`, values `(batch, S, dim)` and keys like
        values.

    Output shape:
        `(batch, T, dim)`.

    Raises:
        ValueError: an argument outside its range, or that a low-rank layer refuses; an unknown
            projection; when built, a rank in a dict above `min(n, m)` of its projection.

    Example:

    >>> ranks = {"query": 6, "attention_output": 4}
    >>> layer = LowRankGroupQueryAttention(8, 4, 2, rank=ranks, min_rank={"query": 2})
    >>> x = tf.ones((2, 10, 32))
    >>> layer(x, x).shape.as_list()
    [2, 10, 32]
    >>> layer.rank
    {'query': 6, 'attention_output': 4}
    """

    def __init__(
        self,
        head_dim: int,
        num_query_heads: int,
        num_key_value_heads: int,
        dropout: float = 0.0,
        use_bias: bool = True,
        *args: Any,
        rank: Rank = None,
        min_rank: MinRank = 1,
        max_rank: Rank = None,
        truncation: Truncations = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            head_dim,
            num_query_heads,
            num_key_value_heads,
            dropout,
            use_bias,
            *args,
            rank=rank,
            min_rank=min_rank,
            max_rank=max_rank,
            truncation=truncation,
            **kwargs,
        )


def projections(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """Returns `{name: projection}` of a built attention layer, Keras's own or low-rank."""
    kinds = (keras.layers.EinsumDense, LowRankEinsumDense)
    found = [one for one in keras_internals.sublayers(layer) if isinstance(one, kinds)]
    return {one.name: one for one in found}
