"""Inputs that are not dense tensors: sparse and ragged ones."""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:  # a base that stands before a Keras layer, and extends its methods
    from keras.layers import Layer as _Base
else:
    _Base = object

_INSTEAD = {
    "sparse": "Make it dense with `tf.sparse.to_dense`",
    "ragged": "Make it dense with `.to_tensor()`, and a mask where rows differ in length",
}


class CompositeInputs(_Base):
    """A base before the Keras layer that refuses sparse and ragged tensors.

    Keras would make them dense without a word wherever it reshapes them, and may then move entries
    of one row to another.

    Attributes:
        takes: tuple of str, the kinds that a class can take, among `"sparse"` and `"ragged"`.
    """

    takes: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for value in keras.tree.flatten((args, kwargs)):
            kind = kind_of_composite(value)
            if kind is not None and kind not in self.takes:
                self._refuse_composite(kind)
        return super().__call__(*args, **kwargs)

    def _refuse_composite(self, kind: str) -> None:
        raise ValueError(
            f"Layer {self.name!r} of class {type(self).__name__} takes no {kind} tensor here. "
            f"{_INSTEAD[kind]}. Received: a {kind} tensor"
        )


def kind_of_composite(value: Any) -> str | None:
    """Returns `"sparse"` or `"ragged"` for such a tensor, symbolic or not; None for all else."""
    for kind, cls in (("sparse", tf.SparseTensor), ("ragged", tf.RaggedTensor)):
        # Keras's symbolic tensors have a flag, in the versions that know ragged ones.
        symbolic = isinstance(value, keras.KerasTensor) and getattr(value, kind, False)
        if isinstance(value, cls) or symbolic:
            return kind
    return None
