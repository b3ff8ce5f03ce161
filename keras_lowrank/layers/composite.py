"""Inputs that are no dense tensors: sparse and ragged ones."""

import keras
import tensorflow as tf

_INSTEAD = {
    "sparse": "Make it dense, by `tf.sparse.to_dense`",
    "ragged": "Make it dense, by `.to_tensor()`, with a mask where rows differ in length",
}


class CompositeInputs:
    """A base of layers, before that of Keras, that refuses what they would read wrongly.

    A sparse or ragged tensor becomes a dense one in silence wherever it is reshaped, and what is in
    one of its rows may then be in another.

    Attributes:
        takes: tuple of str, what a class takes all the same, among `"sparse"` and `"ragged"`.
    """

    takes = ()

    def __call__(self, *args, **kwargs):
        for value in keras.tree.flatten((args, kwargs)):
            kind = kind_of_composite(value)
            if kind is not None and kind not in self.takes:
                self._refuse_composite(kind)
        return super().__call__(*args, **kwargs)

    def _refuse_composite(self, kind):
        raise ValueError(
            f"Layer {self.name!r} of class {type(self).__name__} takes no {kind} tensor here. "
            f"{_INSTEAD[kind]}. Received: a {kind} tensor"
        )


def kind_of_composite(value):
    """`"sparse"` or `"ragged"` for a tensor of that kind, symbolic or not; None for all else."""
    for kind, cls in (("sparse", tf.SparseTensor), ("ragged", tf.RaggedTensor)):
        # Symbolic ones of Keras say it themselves, in the versions that know of ragged ones.
        symbolic = isinstance(value, keras.KerasTensor) and getattr(value, kind, False)
        if isinstance(value, cls) or symbolic:
            return kind
    return None
