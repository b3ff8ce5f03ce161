"""Layers of attention with low-rank projections."""

import keras

from keras_lowrank import keras_internals
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.einsum_dense import LowRankEinsumDense
from keras_lowrank.layers.low_rank_layer import AcrossRanks
from keras_lowrank.ranks.truncation import get_truncation

# The names that Keras gives to the projections, and what they are called here.
_NAMES = {
    "query": "query",
    "key": "key",
    "gate": "gate",
    "value": "value",
    "attention_output": "output",
}


class LowRankAttention(AcrossRanks, CompositeInputs):
    """What the low-rank layers of attention share: a base beside the layer of Keras.

    In `build` that layer makes each of its projections, an `EinsumDense`, puts it into an
    attribute, and goes on with what is in the attribute. The low-rank projection takes its place on
    the way there, before a kernel exists. Nothing else of the Keras layer is touched.
    """

    def __init__(self, *args, rank=None, min_rank=1, max_rank=None, truncation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.rank = dict(rank) if isinstance(rank, dict) else rank
        self.min_rank = min_rank
        self.max_rank = max_rank
        self.truncation = None if truncation is None else get_truncation(truncation)
        config = self.get_config()
        names = [name for name in _NAMES.values() if name != "gate" or config.get("use_gate")]
        ranks = rank if isinstance(rank, dict) else dict.fromkeys(names, rank)
        if not ranks or not set(ranks) <= set(names):
            raise ValueError(
                f"`rank` must be a number, None, or a dict with some of the keys {names}. "
                f"Received: rank={rank}"
            )
        shared = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
        shared = {name: config[name] for name in shared}
        for one in ranks.values():  # their own checks, with their own words
            LowRankEinsumDense("ab,bc->ac", 1, name=self.name, **shared, **self._bounds(one))
        self._projection_ranks = dict(ranks)

    def __setattr__(self, name, value):
        if type(value) is keras.layers.EinsumDense:
            projection = _NAMES.get(value.name)
            if projection in self._projection_ranks:
                bounds = self._bounds(self._projection_ranks[projection])
                plain, config = value, {**value.get_config(), **bounds, "name": projection}
                value = LowRankEinsumDense(**config)
                value.named_in_keras = plain.name
                value.caps_rank = not isinstance(self.rank, dict)
        super().__setattr__(name, value)

    def get_config(self):
        return {
            **super().get_config(),
            "rank": self.rank,
            "min_rank": self.min_rank,
            "max_rank": self.max_rank,
            "truncation": keras.saving.serialize_keras_object(self.truncation),
        }

    def _bounds(self, rank):
        return {
            "rank": rank,
            "min_rank": self.min_rank,
            "max_rank": self.max_rank,
            "truncation": self.truncation,
        }


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankMultiHeadAttention(LowRankAttention, keras.layers.MultiHeadAttention):
    r"""`keras.layers.MultiHeadAttention` with low-rank projections.

    Each head attends by `softmax(q k^T / sqrt(key_dim)) v` as in Keras, masks, dropout and all;
    the kernels that make queries, keys, values and outputs are matrices `U S V^T`, all heads of a
    projection together: `(dim, num_heads key_dim)` for queries and keys,
    `(dim, num_heads value_dim)` for values, and `(num_heads value_dim, dim)` for outputs.
    From "Attention is all you need" (arXiv:1706.03762), section 3.2, with kernels as in "Low-rank
    lottery tickets" (arXiv:2205.13571), section 4.

    Args:
        num_heads, key_dim, value_dim: as in `keras.layers.MultiHeadAttention`.
        rank: int or None, the rank that each projection starts with, as in `LowRankLayer`, or
            `min(n, m)` where a projection has no more; or a dict from "query", "key", "value",
            "output" (and "gate", with `use_gate`) to such, and the projections that it leaves out
            stay dense.
        min_rank, max_rank, truncation: as in `LowRankLayer`, for each low-rank projection.
        **kwargs: all other arguments of `keras.layers.MultiHeadAttention`.

    Input shape:
        As in Keras, in call: queries `(batch, T, dim)` and values `(batch, S, dim)`, and keys like
        values, or more axes between the batch and the last.

    Output shape:
        `(batch, T, dim)`, or with the axes of `output_shape` at the end.

    Raises:
        ValueError: an argument outside its range or that a low-rank layer refuses; an unknown
            projection; a rank in a dict above `min(n, m)` of its projection when built.

    Example:

    >>> layer = LowRankMultiHeadAttention(num_heads=4, key_dim=8, rank=6)
    >>> x = tf.ones((2, 10, 32))
    >>> layer(x, x, use_causal_mask=True).shape.as_list()
    [2, 10, 32]
    >>> inputs = keras.Input((10, 32))
    >>> LowRankModel(inputs, layer(inputs, inputs)).ranks  # doctest: +NORMALIZE_WHITESPACE
    {'low_rank_multi_head_attention/query': 6, 'low_rank_multi_head_attention/key': 6,
     'low_rank_multi_head_attention/value': 6, 'low_rank_multi_head_attention/output': 6}
    """


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankGroupQueryAttention(LowRankAttention, keras.layers.GroupQueryAttention):
    r"""`keras.layers.GroupQueryAttention` with low-rank projections.

    Several heads of queries share one of keys and values; attention itself is Keras's. The kernels
    are matrices `U S V^T`, all heads of a projection together: `(dim, num_query_heads head_dim)`
    for queries, `(dim, num_key_value_heads head_dim)` for keys and values, and
    `(num_query_heads head_dim, dim)` for outputs. From "GQA" (arXiv:2305.13245), with kernels as
    in "Low-rank lottery tickets" (arXiv:2205.13571), section 4.

    Args:
        head_dim, num_query_heads, num_key_value_heads: as in `keras.layers.GroupQueryAttention`.
        rank, min_rank, max_rank, truncation: as in `LowRankMultiHeadAttention`.
        **kwargs: all other arguments of `keras.layers.GroupQueryAttention`.

    Input shape:
        As in Keras, in call: queries `(batch, T, dim)`, values `(batch, S, dim)`, and keys like
        values.

    Output shape:
        `(batch, T, dim)`.

    Raises:
        ValueError: an argument outside its range or that a low-rank layer refuses; an unknown
            projection; a rank in a dict above `min(n, m)` of its projection when built.

    Example:

    >>> layer = LowRankGroupQueryAttention(8, 4, 2, rank={"query": 6, "output": 6})
    >>> x = tf.ones((2, 10, 32))
    >>> layer(x, x).shape.as_list()
    [2, 10, 32]
    >>> inputs = keras.Input((10, 32))
    >>> LowRankModel(inputs, layer(inputs, inputs)).ranks  # doctest: +NORMALIZE_WHITESPACE
    {'low_rank_group_query_attention/query': 6, 'low_rank_group_query_attention/output': 6}
    """


def projections(layer):
    """`{name: projection}` of a built layer of attention, Keras's own or low-rank."""
    kinds = (keras.layers.EinsumDense, LowRankEinsumDense)
    found = [one for one in keras_internals.sublayers(layer) if isinstance(one, kinds)]
    return {_NAMES.get(one.name, one.name): one for one in found}
