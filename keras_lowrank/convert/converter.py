"""The base of the converters: how a family of Keras layers becomes low-rank, and plain again."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_lowrank.convert.building import build_like
from keras_lowrank.convert.forms import Form, MatrixForm
from keras_lowrank.convert.graph_copy import copied_activation
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.layers.across_ranks import AcrossRanks

# What a class statement without a body leaves in a class, and a decorator that makes it public.
_OF_NO_BODY = ("__module__", "__doc__", "__firstlineno__", "__static_attributes__", "_api_export_")


class Kernel(NamedTuple):
    """A whole kernel of a Keras layer, read as a matrix.

    Attributes:
        converter: the `Converter` of the layer.
        layer: built Keras layer.
        name: str, the name of the kernel in Keras.
    """

    converter: "Converter"
    layer: keras.layers.Layer
    name: str

    @property
    def variable(self) -> keras.Variable:
        """The variable of the kernel."""
        return self.converter.variable(self.layer, self.name)

    @property
    def matricization(self) -> Matricization:
        """`Matricization` of the kernel."""
        return self.converter.matricization(self.layer, self.variable.shape)

    @property
    def form(self) -> Form:
        """The form that the kernel is to have."""
        return self.converter.form(self.layer, self.variable.shape)

    def refusal(self) -> str | None:
        """Returns why the kernel cannot become low-rank, or None."""
        return self.converter.refusal(self.layer)

    def matrix(self) -> np.ndarray:
        """Returns the kernel as an array of shape `(n, m)`, in float32 or float64."""
        dtype = "float64" if self.variable.dtype == "float64" else "float32"
        kernel = keras.ops.cast(self.variable, dtype)
        return np.asarray(self.matricization.matrix(kernel))  # a view where nothing is cast


class Converter:
    """How the layers of one family become low-rank ones, and Keras's again.

    A subclass for each family names its classes and finds the kernels. It overrides what differs
    from a layer with one kernel and a bias. `registry.CONVERTERS` lists the families. This class
    itself is for all other layers, which are not converted.

    Attributes:
        classes: tuple of pairs of a Keras layer class and the low-rank one, whose other arguments
            have the same names. A subclass of either may compute anything, and is not converted,
            unless it only gives the class another name.
        low_rank_arguments: tuple of str, the arguments that only the low-rank classes take.
        all_kernels: bool, whether the low-rank layer has no kernel that stays whole.
    """

    classes: tuple[tuple[type, type], ...] = ()
    low_rank_arguments: tuple[str, ...] = ("rank", "min_rank", "max_rank", "truncation")
    all_kernels: bool = False

    def kernels(self, path: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Returns `{path: kernel}` of a layer, each a `Kernel` or a `LowRankLayer`.

        Args:
            path: str, the path of the layer, with which the paths of its kernels begin.
            layer: built layer of the family, plain or low-rank.
        """
        return {path: layer} if isinstance(layer, LowRankLayer) else {}

    def convertible_kernels(self, path: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Returns those of `kernels` that can become low-rank: none in a low-rank layer.

        Args:
            path: as in `kernels`.
            layer: as in `kernels`.
        """
        return {} if self.is_low_rank(layer) else self.kernels(path, layer)

    def to_low_rank(
        self, path: str, layer: keras.layers.Layer, factors: dict[str, Any]
    ) -> keras.layers.Layer:
        """Returns the low-rank layer for a plain one, with its arguments and given factors.

        Args:
            path: str, the path of the layer.
            layer: built plain layer.
            factors: dict from paths of `kernels(path, layer)` to `(U, S, V)`. A kernel without
                them stays as it is.
        """
        low_rank = self.unbuilt_low_rank(path, layer, factors)
        build_like(low_rank, layer)
        before = self.kernels(path, layer)
        for one, kernel in self.kernels(path, low_rank).items():
            if one in factors:
                kernel.factors.assign(factors[one])
            elif isinstance(kernel, Kernel):
                kernel.variable.assign(before[one].variable)
        self.copy_rest(layer, low_rank)
        return low_rank

    def to_plain(self, layer: keras.layers.Layer, style: str) -> keras.layers.Layer:
        """Returns the Keras layer, or a model of two of them, for a low-rank layer.

        Args:
            layer: built low-rank layer.
            style: str, `"merged"`, or `"factored"` where the layer `can_be_factored`.
        """
        plain = self.unbuilt_plain(layer)
        build_like(plain, layer)
        self.copy_merged(layer, plain)
        return plain

    def copy_merged(self, layer: keras.layers.Layer, plain: keras.layers.Layer) -> None:
        """Copies a low-rank layer to a plain one, with whole kernels."""
        before = self.kernels("", layer)
        for one, kernel in self.kernels("", plain).items():
            kernel.variable.assign(self.merged(before, one))
        self.copy_rest(layer, plain)

    def is_plain(self, layer: keras.layers.Layer) -> bool:
        """Whether a layer can become low-rank."""
        return undecorated_class(layer) in dict(self.classes)

    def is_low_rank(self, layer: keras.layers.Layer) -> bool:
        """Whether a layer is low-rank; a layer without a converter of its own may be, too."""
        return isinstance(layer, AcrossRanks) and not isinstance(layer, keras.Model)

    def can_be_factored(self, layer: keras.layers.Layer) -> bool:
        """Whether two Keras layers can multiply with the factors of a low-rank one."""
        return False

    def variable(self, layer: keras.layers.Layer, name: str) -> keras.Variable:
        """Returns the variable of the kernel that a plain layer calls `name`."""
        return getattr(layer, name)

    def matricization(self, layer: keras.layers.Layer, shape: tuple[int, ...]) -> Matricization:
        """Returns how a plain layer's kernel of that shape is a matrix."""
        return Matricization.of_last_axis(shape)

    def in_form(self, layer: keras.layers.Layer, factorization: str) -> "Converter":
        """Returns the converter that gives a layer a form; itself where it has only one.

        Args:
            layer: plain layer of the family.
            factorization: str, as `LowRankConv2D` takes it.
        """
        return self

    def form(self, layer: keras.layers.Layer, shape: tuple[int, ...]) -> Form:
        """Returns the form that a plain layer's kernel of that shape is to have."""
        return MatrixForm(*self.matricization(layer, shape).shape)

    def merged(self, kernels: dict[str, Any], path: str) -> np.ndarray:
        """Returns a plain layer's kernel at a path, from the `kernels` of a low-rank one."""
        return merged_kernel(kernels[path])

    def copy_rest(self, source: keras.layers.Layer, target: keras.layers.Layer) -> None:
        """Copies all but the kernels between a plain and a low-rank layer, either way."""
        copy_bias(source, target)

    def refusal(self, layer: keras.layers.Layer) -> str | None:
        """Returns why a layer cannot become low-rank, or None."""
        if not self.is_plain(layer):
            return (
                f"Only its code says how a {type(layer).__name__} uses the layers inside it; write "
                "its low-rank twin with `keras_lowrank.convert_layer`, or exclude it"
            )
        try:
            self.with_rank(layer, 1)
        except ValueError as error:
            return str(error)
        return None

    def with_rank(self, layer: keras.layers.Layer, rank: Any, **others: Any) -> keras.layers.Layer:
        """Returns an unbuilt low-rank layer with the arguments of a plain one.

        Args:
            layer: plain layer.
            rank: int, or in a family with several kernels a dict of ranks.
            **others: others of the `low_rank_arguments`.

        Raises:
            ValueError: an argument has no meaning without the kernel (a constraint, an L1 penalty,
                groups), in the words of the low-rank layer.
        """
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                "A quantized layer has no float kernel to decompose. Convert before "
                f"quantizing. Received: quantization_mode={layer.quantization_mode!r}"
            )
        config = self.arguments(layer)
        for name in ("lora_rank", "lora_alpha"):  # the kernel contains what LoRA learned
            config.pop(name, None)
        return dict(self.classes)[undecorated_class(layer)](**{**config, "rank": rank, **others})

    def unbuilt_low_rank(
        self, path: str, layer: keras.layers.Layer, factors: dict[str, Any]
    ) -> keras.layers.Layer:
        """Returns the layer of `to_low_rank` before it is built, with the ranks of `factors`."""
        ranks = {
            one.rpartition("/")[2]: factors[one][1].shape[0]
            for one in self.kernels(path, layer)
            if one in factors
        }
        return self.with_rank(layer, ranks)

    def unbuilt_plain(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """Returns the Keras layer of `to_plain` before it is built."""
        return self.plain_class(layer).from_config(self.plain_arguments(layer))

    def plain_class(self, layer: keras.layers.Layer) -> Any:
        """Returns the Keras class of a low-rank layer.

        Raises:
            ValueError: a class without a converter.
        """
        for plain, low_rank in self.classes:
            if type(layer) is low_rank:
                return plain
        raise ValueError(
            f"`to_keras` knows no Keras layer for the class {type(layer).__name__}. "
            f"Received: the layer {layer.name!r}"
        )

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        """Returns the arguments of a layer, plain or low-rank, for another one."""
        config = layer.get_config()
        for name in {"activation", "recurrent_activation"} & set(config):
            # Not from the config, which cannot restore a function without a name.
            config[name] = copied_activation(getattr(layer, name))
        return config

    def plain_arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        """Returns the arguments of the Keras layer of a low-rank one."""
        config = self.arguments(layer)
        return {key: one for key, one in config.items() if key not in self.low_rank_arguments}


def undecorated_class(layer: keras.layers.Layer) -> type:
    """Returns the class of a layer, or its base where the class only gives it another name."""
    cls = type(layer)
    while len(cls.__bases__) == 1 and all(name.startswith(_OF_NO_BODY) for name in vars(cls)):
        (cls,) = cls.__bases__
    return cls


def joined(
    kernels: Callable[[str, keras.layers.Layer], dict[str, Any]],
    path: str,
    layers: Iterable[keras.layers.Layer],
) -> dict[str, Any]:
    """Returns the results of `kernels(path, layer)` for several layers, in one dict."""
    found: dict[str, Any] = {}
    for layer in layers:
        found.update(kernels(f"{path}/{layer.name}", layer))
    return found


def in_float64(layer: LowRankLayer) -> list[np.ndarray]:
    """Returns U, S and V of a low-rank layer as arrays in float64."""
    return [np.asarray(part, "float64") for part in layer.factors.read()]


def merged_kernel(kernel: Kernel | LowRankLayer) -> np.ndarray:
    """Returns a `Kernel` as an array, or the kernel `U S V^T` of a low-rank layer in float64."""
    if isinstance(kernel, Kernel):
        return np.asarray(kernel.variable)
    u, s, v = in_float64(kernel)
    if s.ndim == 3:
        return np.einsum("cp,kpq,fq->kcf", u, s, v).reshape(kernel.kernel_shape)
    return kernel.matricization.kernel(u @ s @ v.T)


def copy_bias(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies the bias of a layer or a cell, where it has one."""
    if getattr(target, "bias", None) is not None:  # Keras's embedding has no such attribute
        target.bias.assign(source.bias)
