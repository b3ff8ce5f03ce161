"""What Keras layers become, in place, that have a delta beside a frozen kernel."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.adapters.delta import Delta, EmbeddingDelta

if TYPE_CHECKING:  # a base that stands before a Keras layer, and extends its methods
    from keras.layers import Layer as _Base
else:
    _Base = object


class Switch:
    """Whether the deltas of a model count. All of its layers share one."""

    def __init__(self) -> None:
        self.on = True


class AdaptedLayer(_Base):
    """Methods of a Keras layer with `W0 + U S V^T` in the place of `W0`: go before its class.

    Attributes:
        kernels: dict from the attribute in which Keras holds a kernel to that of its delta.
        switch: `Switch`.
    """

    kernels: Mapping[str, str] = MappingProxyType({"_kernel": "delta"})
    switch: Switch

    def quantize(self, mode: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: a kernel with a delta beside it stays what it is."""
        refuse_to_quantize(self, mode)

    def enable_lora(self, rank: int, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: one kernel has one adapter."""
        raise ValueError(
            "A layer with an adapter cannot have LoRA too. Call `merge_adapters` first. "
            f"Received: rank={rank} for layer {self.name!r}"
        )

    def save_own_variables(self, store: Any) -> None:
        """Saves the layer as its Keras class does, with the sum of kernel and delta."""
        if not self.switch.on:
            return super().save_own_variables(store)
        summed(self).save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        """Loads what the Keras class of the layer has saved; the delta starts at zero again."""
        super().load_own_variables(store)
        for delta in deltas_of(self):
            delta.set_to_zero(delta.factors.rank)


class AdaptedProduct(AdaptedLayer):
    """A layer whose delta is a product of its own, cheaper than to form the sum of kernels."""

    on_outputs: tuple[str, ...]

    def call(self, inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        return self._with_delta(super().call, "call", inputs, args, kwargs)

    def quantized_call(self, inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        return self._with_delta(super().quantized_call, "quantized_call", inputs, args, kwargs)

    def _with_delta(
        self,
        plain_call: Callable[..., tf.Tensor],
        method: str,
        inputs: tf.Tensor,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> tf.Tensor:
        if not (self.switch.on and self.has_delta(*args, **kwargs)):
            return plain_call(inputs, *args, **kwargs)
        base = plain_twin(self, **dict.fromkeys(self.on_outputs))
        outputs = getattr(base, method)(inputs, *args, **kwargs)
        mask = getattr(outputs, "_keras_mask", None)
        more = self.delta_call(inputs, *args, **kwargs)
        outputs = self.finish(outputs + tf.cast(more, outputs.dtype), *args, **kwargs)
        if mask is not None:
            keras_internals.set_keras_mask(outputs, mask)
        return outputs

    def has_delta(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the kernel of a call with these arguments is one with a delta."""
        return True


class AdaptedKernel(AdaptedProduct):
    """A dense layer or a convolution."""

    delta: Delta
    on_outputs = ("activation",)

    @property
    def kernel(self) -> tf.Tensor:
        """The sum of kernel and delta, for a reader; of a quantized layer, the kernel."""
        return with_delta(self, super().kernel, self.delta)

    def delta_call(self, inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        return self.delta.call(inputs)

    def finish(self, outputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        return outputs if self.activation is None else self.activation(outputs)


class AdaptedEmbedding(AdaptedProduct):
    """An embedding; one that is called in reverse shares its delta with the output projection."""

    kernels = MappingProxyType({"_embeddings": "delta"})
    delta: EmbeddingDelta
    on_outputs = ("logit_soft_cap",)

    @property
    def embeddings(self) -> tf.Tensor:
        """The sum of table and delta, for a reader; of a quantized layer, the table."""
        return with_delta(self, super().embeddings, self.delta)

    def has_delta(self, reverse: bool = False) -> bool:
        return not reverse or self.tie_weights

    def delta_call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        return self.delta.call(inputs, reverse=reverse)

    def finish(self, outputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        cap = getattr(self, "logit_soft_cap", None) if reverse else None
        return outputs if cap is None else cap * keras.ops.tanh(outputs / cap)


class AdaptedCell(AdaptedLayer):
    """A recurrent cell, which multiplies with the sums of its kernels and their deltas."""

    kernels = MappingProxyType(
        {"kernel": "kernel_delta", "recurrent_kernel": "recurrent_kernel_delta"}
    )
    kernel_delta: Delta
    recurrent_kernel_delta: Delta

    @property
    def kernel(self) -> tf.Tensor:
        return with_delta(self, vars(self)["kernel"], self.kernel_delta)

    @property
    def recurrent_kernel(self) -> tf.Tensor:
        return with_delta(self, vars(self)["recurrent_kernel"], self.recurrent_kernel_delta)


def refuse_to_quantize(layer: keras.layers.Layer, mode: str | None) -> None:
    """Raises ValueError for a layer or model with adapters."""
    raise ValueError(
        "What has adapters is not quantized. Quantize the model before `add_adapters`, or after "
        f"`merge_adapters`. Received: mode={mode!r} for {layer.name!r}"
    )


def adapt(
    layer: keras.layers.Layer,
    adapted_class: type[AdaptedLayer],
    parts: dict[str, Delta],
    switch: Switch,
) -> None:
    """Gives a Keras layer deltas, in place.

    Args:
        layer: built Keras layer.
        adapted_class: subclass of `AdaptedLayer`.
        parts: dict from the name of an attribute to its delta.
        switch: `Switch`.
    """
    layer.switch = switch
    for name, delta in parts.items():
        keras_internals.attach(layer, name, delta)
    keras_graphs.change_class(layer, before=(adapted_class,))


def restore(layer: keras.layers.Layer) -> None:
    """Takes back what `adapt` has done."""
    names = layer.kernels.values()
    keras_graphs.restore_class(layer)
    for name in names:
        keras_internals.detach(layer, name)
    del layer.switch


def deltas_of(layer: keras.layers.Layer) -> list[Delta]:
    """The deltas of an adapted layer, in the order of `kernels`."""
    return [getattr(layer, name) for name in layer.kernels.values()]


def plain_twin(layer: keras.layers.Layer, **attributes: Any) -> keras.layers.Layer:
    """The layer as Keras has it, of its own class and with its own variables, but for some others.

    In its place, so that whatever the class computes is computed, in every mode of quantization.
    """
    twin: Any = object.__new__(keras_graphs.class_before(layer))
    vars(twin).update({**vars(layer), **attributes})
    return twin


def summed(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer as Keras has it whose kernels are the sums of kernels and deltas, to be saved.

    Of a quantized layer Keras rounds the sum anew, as it does for its own LoRA.
    """
    if getattr(layer, "quantization_mode", None):
        (name,) = layer.kernels
        delta = layer.delta.kernel
        one = keras.ops.eye(delta.shape[-1], dtype=delta.dtype)
        lora = {f"lora{name}_a": delta, f"lora{name}_b": one}
        return plain_twin(layer, lora_enabled=True, lora_rank=1, lora_alpha=1, **lora)
    held = {name: vars(layer)[name] for name in layer.kernels}
    sums = {name: sum_of(held[name], delta) for name, delta in zip(held, deltas_of(layer))}
    by_id = {id(held[name]): sums[name] for name in held}
    tracked = ("_trainable_variables", "_non_trainable_variables")
    lists = {name: [by_id.get(id(v), v) for v in vars(layer)[name]] for name in tracked}
    return plain_twin(layer, **sums, **lists)


def sum_of(kernel: keras.Variable, delta: Delta) -> tf.Tensor:
    """`W0 + U S V^T` in the type of `W0`, summed in that of the factors."""
    change = delta.kernel
    total = keras.ops.cast(keras.ops.convert_to_tensor(kernel), change.dtype) + change
    return keras.ops.cast(total, keras.backend.standardize_dtype(kernel.dtype))


def with_delta(layer: keras.layers.Layer, kernel: Any, delta: Delta) -> Any:
    """What reading a kernel of an adapted layer gives."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    return kernel if quantized or not layer.switch.on else sum_of(kernel, delta)
