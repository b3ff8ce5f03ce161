"""Layers of attention with low-rank projections."""

import keras

from keras_lowrank import keras_internals
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.einsum_dense import LowRankEinsumDense
from keras_lowrank.layers.several_kernels import RankArguments, SeveralKernels

# What Keras calls the projections; the gate is there with `use_gate` alone.
_PROJECTIONS = ("query", "key", "gate", "value", "attention_output")


class LowRankAttention(SeveralKernels, CompositeInputs):
    """What the low-rank layers of attention share: a base beside the layer of Keras.

    In `build` that layer makes each of its projections, an `EinsumDense`, puts it into an
    attribute, and goes on with what is in the attribute. The low-rank projection takes its place on
    the way there, before a kernel exists. Nothing else of the Keras layer is touched.
    """

    def __init__(self, *args, rank=None, min_rank=1, max_rank=None, truncation=None, **kwargs):
        super().__init__(*args, **kwargs)
        config = super(SeveralKernels, self).get_config()  # Keras's own: no ranks are known yet
        names = [name for name in _PROJECTIONS if name != "gate" or config.get("use_gate")]
        self.rank_arguments = RankArguments(names, rank, min_rank, max_rank, truncation)
        shared = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
        shared = {name: config[name] for name in shared}
        for own in filter(None, map(self.rank_arguments.of, names)):
            # Its own checks, with its own words.
            LowRankEinsumDense("ab,bc->ac", 1, name=self.name, **shared, **own)

    def __setattr__(self, name, value):
        if type(value) is keras.layers.EinsumDense:
            arguments = self.rank_arguments.of(value.name)
            if arguments:
                value = LowRankEinsumDense(**value.get_config(), **arguments)
                value.caps_rank = self.rank_arguments.one_rank
        super().__setattr__(name, value)

    def low_rank_kernels(self):
        """The projections that are low-rank."""
        return [one for one in projections(self).values() if isinstance(one, LowRankEinsumDense)]


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
            "attention_output" (and "gate", with `use_gate`) to such, and the projections that it
            leaves out stay dense. The attribute `rank` has the present ranks, as such a dict.
        min_rank, max_rank, truncation: as in `LowRankLayer`, for each low-rank projection, or by
            such a dict.
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
     'low_rank_multi_head_attention/value': 6,
     'low_rank_multi_head_attention/attention_output': 6}
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

    >>> ranks = {"query": 6, "attention_output": 4}
    >>> layer = LowRankGroupQueryAttention(8, 4, 2, rank=ranks, min_rank={"query": 2})
    >>> x = tf.ones((2, 10, 32))
    >>> layer(x, x).shape.as_list()
    [2, 10, 32]
    >>> layer.rank
    {'query': 6, 'attention_output': 4}
    """


def projections(layer):
    """`{name: projection}` of a built layer of attention, Keras's own or low-rank."""
    kinds = (keras.layers.EinsumDense, LowRankEinsumDense)
    found = [one for one in keras_internals.sublayers(layer) if isinstance(one, kinds)]
    return {one.name: one for one in found}
