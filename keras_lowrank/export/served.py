"""The function that every export computes: preprocessing, the model, labels."""

from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.error_reason import reason
from keras_lowrank.export import signature

SCORES, LABEL = "scores", "label"

_OTHER_INPUTS = (
    "give it an Input, `keras.Sequential([keras.Input(...), layer])`, or pass `input_signature`"
)


class Served:
    """The function `model(preprocessing(x))` in inference, and its signature.

    Args:
        model: built `keras.Model`.
        preprocessing: `keras.layers.Layer` or model, or None.
        class_labels: list of str or None, one label for each column of the model's output. With
            labels, the function returns `{"scores": outputs, "label": that of the highest score}`.
        input_signature: as in `keras.Model.export`. None takes the inputs of `preprocessing` if it
            is a model with inputs, else those of `model`.
        batch_size: int or None, the batch size to fix.

    Attributes:
        model: `keras.Model`, as the argument.
        preprocessing: `keras.layers.Layer` or None, as the argument.
        class_labels: list of str or None, as the argument.
        signature: list of arguments, structures of `tf.TensorSpec`.
        batch_size: int, or None if it is open. Fixed by the argument, by the `input_signature` or
            by the states of a stateful layer.
        names: list of str, the names of the inputs, flat.
        remedy: str, what else to do if the model fails on its inputs; may be empty.

    Raises:
        TypeError: `preprocessing` is not a layer.
        ValueError: the labels do not fit the outputs, or `preprocessing` does not take the inputs.
    """

    model: keras.Model
    preprocessing: keras.layers.Layer | None
    class_labels: list[str] | None
    signature: list
    batch_size: int | None
    names: list[str]
    remedy: str

    def __init__(
        self,
        model: keras.Model,
        preprocessing: keras.layers.Layer | None = None,
        class_labels: list[str] | None = None,
        input_signature: Any = None,
        batch_size: int | None = None,
    ) -> None:
        if preprocessing is not None and not isinstance(preprocessing, keras.layers.Layer):
            raise TypeError(
                "`preprocessing` must be a Keras layer or model. "
                f"Received: preprocessing={preprocessing!r}"
            )
        self.model, self.preprocessing = model, preprocessing
        self.class_labels = _checked_labels(model, class_labels)
        # A model without inputs is like a layer: it takes the inputs of `model`.
        own = isinstance(preprocessing, keras.Model) and preprocessing.built
        given = input_signature is not None
        if not given:
            input_signature = keras_internals.input_signature(preprocessing if own else model)
        self.signature = signature.standardized(input_signature)
        if batch_size is not None:
            self.signature = signature.with_batch_size(self.signature, batch_size)
        flat = keras.tree.flatten(self.signature)
        self.batch_size = next((spec.shape[0] for spec in flat if spec.shape[0]), None)
        self.names = [spec.name for spec in flat]
        self.remedy = ""
        if preprocessing is not None and not own and not given:
            self.remedy = f" If `preprocessing` fails, {_OTHER_INPUTS}."
        if preprocessing is not None and not preprocessing.built:
            self._call_once(preprocessing)

    def __call__(self, *arguments: Any) -> Any:
        if self.preprocessing is not None:
            arguments = (self.preprocessing(*arguments, training=False),)
        outputs = self.model(*arguments, training=False)
        if self.class_labels is None:
            return outputs
        best = tf.argmax(outputs, axis=-1)
        return {LABEL: tf.gather(tf.constant(self.class_labels), best), SCORES: outputs}

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """List of all layers inside, at every depth."""
        if self.preprocessing is None:
            return keras_internals.all_layers(self.model)
        before = [self.preprocessing, *keras_internals.all_layers(self.preprocessing)]
        return [*before, *keras_internals.all_layers(self.model)]

    def arguments(self, arrays: list) -> Any:
        """Converts a flat list of arrays to arguments, each with the dtype of its input."""
        flat = [
            tf.cast(array, spec.dtype) if spec.dtype != "string" else tf.constant(array)
            for array, spec in zip(arrays, keras.tree.flatten(self.signature), strict=True)
        ]
        return keras.tree.pack_sequence_as(self.signature, flat)

    def _call_once(self, preprocessing: keras.layers.Layer) -> None:
        """Builds `preprocessing` by a call on symbolic inputs."""
        inputs = keras.tree.map_structure(
            lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name), self.signature
        )
        try:
            preprocessing(*inputs)
        except Exception as error:  # any class, from the layer's code
            raise ValueError(
                "`preprocessing` must take the inputs of the model. If it takes other inputs, "
                f"{_OTHER_INPUTS}. Received: {reason(error)}"
            ) from error


def position(key: str) -> tuple[str, int]:
    """Returns a key that sorts `output_10` after `output_9`, and other names as Keras does."""
    stem, _, digits = key.rpartition("_")
    return (stem, int(digits)) if digits.isdigit() and stem == "output" else (key, 0)


def _checked_labels(model: keras.Model, labels: list[str] | None) -> list[str] | None:
    if labels is None:
        return None
    labels = list(labels)
    shape = getattr(getattr(model, "output", None), "shape", (None,))
    if not all(isinstance(label, str) for label in labels) or (
        len(shape) != 2 or shape[-1] not in (None, len(labels))
    ):
        raise ValueError(
            "`class_labels` must be a list of str, one for each column of the model's one output "
            f"of shape (batch, classes). Received: {len(labels)} labels for the shape {shape}"
        )
    return labels
