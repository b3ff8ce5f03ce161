"""What an artefact computes, whatever its format: preprocessing, the model, labels."""

import keras
import tensorflow as tf

from keras_lowrank import keras_internals

SCORES, LABEL = "scores", "label"

_FREE = 8  # an extent that is free, where random input needs a number


class Served:
    """The function `model(preprocessing(x))` in inference, and what it is called with.

    Args:
        model: built `keras.Model`.
        preprocessing: `keras.layers.Layer` or model, or None.
        class_labels: list of str, one a column of the model's output, or None. With them, the
            function returns `{"scores": outputs, "label": the label of the highest score}`.
        input_signature: as in `keras.Model.export`, or None: the inputs of `preprocessing` if it is
            a model, else those of `model`.

    Attributes:
        signature: list of arguments, structures of specs.
        batch_size: int, or None where it is free: of the states of a stateful layer, or as the
            `input_signature` has it.
        names: list of str or None, the names of the inputs, flat.
    """

    def __init__(self, model, preprocessing=None, class_labels=None, input_signature=None):
        if preprocessing is not None and not isinstance(preprocessing, keras.layers.Layer):
            raise TypeError(
                "`preprocessing` must be a Keras layer or model. "
                f"Received: preprocessing={preprocessing!r}"
            )
        self.model, self.preprocessing = model, preprocessing
        self.class_labels = _checked_labels(model, class_labels)
        outer = preprocessing if isinstance(preprocessing, keras.Model) else model
        self.signature = input_signature or keras_internals.input_signature(outer)
        flat = keras.tree.flatten(self.signature)
        self.batch_size = next((spec.shape[0] for spec in flat if spec.shape[0]), None)
        if preprocessing is not None and not preprocessing.built:
            preprocessing(*keras.tree.map_structure(_symbolic, self.signature))
        self.names = [getattr(spec, "name", None) for spec in flat]

    def __call__(self, *arguments):
        if self.preprocessing is not None:
            arguments = (self.preprocessing(*arguments, training=False),)
        outputs = self.model(*arguments, training=False)
        if self.class_labels is None:
            return outputs
        best = tf.argmax(outputs, axis=-1)
        return {LABEL: tf.gather(tf.constant(self.class_labels), best), SCORES: outputs}

    @property
    def layers(self):
        """All layers inside, at every depth."""
        if self.preprocessing is None:
            return keras_internals.all_layers(self.model)
        before = [self.preprocessing, *keras_internals.all_layers(self.preprocessing)]
        return [*before, *keras_internals.all_layers(self.model)]

    def specs(self, batch):
        """The arguments as `tf.TensorSpec`s of one batch size, all other extents fixed too.

        Where the batch size is fixed, it is that one.
        """
        batch = self.batch_size or batch
        return keras.tree.map_structure(
            lambda spec: tf.TensorSpec(
                _shape(spec, batch), spec.dtype, getattr(spec, "name", None)
            ),
            self.signature,
        )

    def random_arguments(self, batch, random):
        """The arguments as tensors of random numbers, drawn from a NumPy generator."""
        return keras.tree.map_structure(lambda spec: _draw(spec, random), self.specs(batch))

    def arguments(self, arrays):
        """The arguments of a flat list of arrays, each converted to the type of its input."""
        flat = [
            tf.cast(array, spec.dtype) if spec.dtype != "string" else tf.constant(array)
            for array, spec in zip(arrays, keras.tree.flatten(self.signature), strict=True)
        ]
        return keras.tree.pack_sequence_as(self.signature, flat)


def input_names(served, received):
    """The names of an artefact's inputs, in the order of the arguments.

    Args:
        served: `Served`.
        received: names, in any order, that the artefact has.
    """
    if set(served.names) == set(received):
        return served.names
    return sorted(received, key=position)  # inputs without names are called x_0, x_1, ...


def position(key):
    """Sorts `output_10` behind `output_9`, and other names as Keras flattens dictionaries."""
    stem, _, digits = key.rpartition("_")
    return (stem, int(digits)) if digits.isdigit() and stem in ("output", "x") else (key, 0)


def _checked_labels(model, labels):
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


def _symbolic(spec):
    return keras.KerasTensor(spec.shape, spec.dtype)


def _shape(spec, batch):
    return [batch if axis == 0 else extent or _FREE for axis, extent in enumerate(spec.shape)]


def _draw(spec, random):
    dtype = tf.as_dtype(spec.dtype)
    if dtype.is_floating:
        return tf.constant(random.standard_normal(spec.shape), dtype)
    if dtype == tf.string:
        return tf.fill(spec.shape, "")
    return tf.constant(random.integers(0, 2, spec.shape), dtype)
