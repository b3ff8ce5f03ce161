"""A check that the package can train, save and export a layer."""

import contextlib
import json
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.diagnostics.maps import check_maps
from keras_lowrank.diagnostics.report import Report
from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.layers.across_ranks import set_weights
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.manifold.point import Point


def check_layer(layer: keras.layers.Layer, inputs: Any, **arguments: Any) -> Report:
    """Checks a low-rank layer, or a layer that contains some, on the inputs of one call.

    For each kernel:

    - `project` and `expand` are linear in both arguments, column by column of the basis;
    - `expand(project(x, U) S, V)` equals the layer's product with the full kernel;
    - the gradients of U, S and V are correct.

    For the layer:

    - it runs in a graph for any batch size;
    - its symbolic outputs have the shapes and dtypes of the real ones;
    - a layer from its config computes the same.

    Args:
        layer: Keras layer, built or not. The check calls it. A built layer keeps its weights.
        inputs: array or dense tensor.
        **arguments: further arguments of the call.

    Returns:
        `Report`.

    Raises:
        ValueError: rules are broken. The message lists each with what was received.

    Example:

    >>> class Shifted(LowRankDense):
    ...     def project(self, inputs, basis):
    ...         return keras.ops.matmul(inputs, basis) + 1.0
    >>> diagnostics.check_layer(Shifted(4, rank=2), np.ones((3, 8)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Shifted 'shifted' breaks these rules:
    - `project` adds no constant: it is zero for a basis of zeros. Received: values up to 1
    """
    inputs = tf.convert_to_tensor(inputs)
    if inputs.dtype.is_floating:
        inputs = tf.cast(inputs, layer.compute_dtype)
    with Report(f"{type(layer).__name__} {layer.name!r}") as report:

        def call() -> Any:
            return layer(inputs, **arguments)

        rule = "The layer can be called on the inputs, once `build` has called `build_factors`"
        with contextlib.suppress(Exception):  # reported below, unless another rule says more
            call()
        kernels = _low_rank_layers(layer)
        if not kernels:
            report.attempt(rule, call)
        report.need(
            bool(kernels), "The layer is low-rank, or contains a layer that is", "no such layer"
        )
        recorded = {path: _RecordingKernel.of(one.factors.read()) for path, one in kernels.items()}
        overrides = {one.factors: recorded[path] for path, one in kernels.items()}
        with override_kernels(overrides), contextlib.suppress(Exception):
            call()
        names = {path: f"of {path!r} " if path else "" for path in recorded}
        for path, kernel in recorded.items():
            if kernel.calls and kernel.calls[0][0].core is None:
                maps, given = kernel.calls[0]
                check_maps(report, names[path], maps, given, Point(*kernel.matrices))
        outputs = report.attempt(rule, call)
        for path, kernel in recorded.items():
            rule = f"`call` {names[path]}uses `apply_kernel`"
            report.check(bool(kernel.calls), rule, "a call without it")
        _check_graphs(report, layer, inputs, arguments, outputs)
        _check_config(report, layer, inputs, arguments, outputs)
    return report


def _low_rank_layers(layer: keras.layers.Layer) -> dict[str, LowRankLayer]:
    own = isinstance(layer, LowRankLayer) and hasattr(layer, "factors")
    return {**({"": layer} if own else {}), **find_built_layers(layer)}


class _RecordingKernel(ProductKernel):
    """A kernel that records the maps and inputs of each call."""

    def __init__(
        self, *matrices: tf.Tensor, core: tf.Tensor | None = None, calls: list | None = None
    ) -> None:
        super().__init__(*matrices, core=core)
        self.calls = [] if calls is None else calls

    def apply(
        self, maps: KernelMaps, inputs: tf.Tensor, dtype: str, transposed: bool = False
    ) -> tf.Tensor:
        self.calls.append((maps, inputs))
        return super().apply(maps, inputs, dtype, transposed)

    def folded(self, dtype: str) -> "_RecordingKernel":
        return _RecordingKernel(*super().folded(dtype).matrices, calls=self.calls)


def _check_graphs(
    report: Report,
    layer: keras.layers.Layer,
    inputs: tf.Tensor,
    arguments: dict[str, Any],
    outputs: Any,
) -> None:
    """Checks the layer on symbolic tensors, and in a graph with an open batch size."""

    def symbolic(value: Any) -> Any:
        is_array = tf.is_tensor(value) or hasattr(value, "__array__")
        return keras.KerasTensor(value.shape, value.dtype) if is_array else value

    spec = report.attempt(
        "The layer can be called on symbolic tensors",
        lambda: layer(symbolic(inputs), **keras.tree.map_structure(symbolic, arguments)),
    )
    for expected, found in zip(*map(keras.tree.flatten, (spec, outputs))):
        same = tuple(expected.shape) == tuple(found.shape)
        same &= keras.backend.standardize_dtype(found.dtype) == expected.dtype
        report.check(
            same,
            "The outputs have the shape of `compute_output_shape` and the dtype of the policy",
            f"shape {tuple(found.shape)}, {found.dtype.name}; "
            f"symbolically {tuple(expected.shape)}, {expected.dtype}",
        )
    open_batch = tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype)
    graph = tf.function(lambda x: layer(x, **arguments), autograph=False)
    traced = report.attempt(
        "`call` can be traced by TensorFlow for any batch size",
        lambda: graph.get_concrete_function(open_batch)(inputs),
    )
    for found, expected in zip(*map(keras.tree.flatten, (traced, outputs))):
        report.close("A traced call returns the same as an eager one", found, expected)


def _check_config(
    report: Report,
    layer: keras.layers.Layer,
    inputs: tf.Tensor,
    arguments: dict[str, Any],
    outputs: Any,
) -> None:
    """Checks that a layer from the config, with the same weights, returns the same."""

    def again() -> Any:
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
        own = {type(layer).__name__: type(layer)}
        made = keras.saving.deserialize_keras_object(config, custom_objects=own)
        made(inputs, **arguments)
        set_weights(made, layer.get_weights())
        return made(inputs, **arguments)

    rule = "`get_config` has all arguments of `__init__`, and a layer can be made from it"
    for found, expected in zip(*map(keras.tree.flatten, (report.attempt(rule, again), outputs))):
        report.close(
            "A layer from the config returns the same with the same weights", found, expected
        )
