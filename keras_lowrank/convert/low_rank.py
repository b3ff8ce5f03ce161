"""A Keras model in, a `LowRankModel` out."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_lowrank.convert.converter import Kernel
from keras_lowrank.convert.copyable import check_model
from keras_lowrank.convert.decomposition import Decomposition
from keras_lowrank.convert.graph import graph_layers
from keras_lowrank.convert.graph_copy import GraphCopy
from keras_lowrank.convert.moments import OutputMoment, stream
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.convert.registry import NAMES, converter_of
from keras_lowrank.convert.selection import select_kernels
from keras_lowrank.model import LowRankModel
from keras_lowrank.reporting.compression import count_others
from keras_lowrank.user_warnings import warn_user


def from_keras(
    model: keras.Model,
    rank: int | dict[str, int] | None = None,
    tolerance: float | None = None,
    energy: float | None = None,
    budget: int | None = None,
    *,
    include: Any = None,
    exclude: Any = None,
    data: Any = None,
    only_smaller: bool = True,
    verbose: bool = False,
) -> LowRankModel:
    r"""Returns a `LowRankModel` that computes what a Keras model does, at lower ranks.

    Each of these kernels W becomes its best approximation `W_r = U S V^T` (truncated SVD):

    - of every Dense, EinsumDense and Embedding layer;
    - of every convolution (Conv1D, Conv2D, Conv3D, Conv2DTranspose);
    - of every projection in an attention layer ("attention/query", ...);
    - both of an LSTM or GRU ("lstm/lstm_cell/kernel", ...), bidirectional or not.

    Where `rank` is small for a large kernel, the SVD is randomised, with an error within 1% of the
    least one. Everything else is copied, with weights and statistics: biases, arguments, names,
    `trainable`, precision, and layers that are used in several places. The given model is not
    changed, and the new one shares nothing with it but what the function of a `Lambda` refers to.
    The new model is not compiled. A custom `train_step` is not copied.

    With `data`, `W_r` is the best approximation for the inputs of the layer: it minimises
    `E ||x W - x W_r||^2` instead of `||W - W_r||_F^2` (DRONE, Chen et al., NeurIPS 2021), and ranks
    follow the singular values of `C^{1/2} W` with `C = E[x x^T]`.

    Layers whose arguments a low-rank layer refuses stay as they are, with a warning: a kernel
    constraint, a kernel regularizer other than L2, groups, quantization, or an equation whose
    kernel is a stack of matrices.

    Args:
        model: functional or Sequential `keras.Model`, built. Nested models and the layer inside a
            `TimeDistributed` are converted too. Rewrite subclassed models with `convert_layer`.
        rank: int, the rank of all layers (`min(n, m)` where that is less), or a dict from the path,
            name or pattern of layers to their ranks, which converts no others.
        tolerance: float in `[0, 1)`. Each layer keeps the smallest rank with
            `||W - W_r||_F <= tolerance ||W||_F`.
        energy: float in `(0, 1]`. The smallest rank with `||W_r||_F^2 >= energy ||W||_F^2`.
        budget: int, the number of weights of the whole model, counted as `Compression.factored`. It
            is spent on the singular values with the largest shares of their layers' energy.
            Give exactly one of `rank`, `tolerance`, `energy` and `budget`.
        include: the layers to convert: a path or name, a pattern with `*`, a layer class, a
            function from a layer to bool, or a list of these. Defaults to all.
        exclude: the layers to keep dense, in the same terms. Defaults to none.
        data: inputs, as an array (a list or dict of arrays for several inputs), or as a finite
            `tf.data.Dataset`, `PyDataset` or generator of batches, with or without targets. The
            model runs through them once, and holds m^2 numbers for a layer with m outputs. None
            approximates the kernels themselves.
        only_smaller: bool. Keep a layer dense where its factors would be no smaller than its
            kernel, `r (n + m) >= n m`. Defaults to `True`. `only_smaller=False` with
            `tolerance=0.0` gives each layer the rank of its kernel, to train and truncate later.
        verbose: bool. Show a progress bar over the layers. Defaults to `False`.

    Returns:
        `LowRankModel`.

    Raises:
        TypeError: no Keras model.
        ValueError: a subclassed or unbuilt model, nothing to convert, a name that means no layer,
            an argument outside its range, a budget below the weights at rank 1, non-finite weights,
            or a layer that cannot be copied.

    Example:

    >>> inputs = keras.Input((64,))
    >>> x = keras.layers.Dense(128, activation="relu", name="hidden")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(10, name="head")(x))
    >>> low_rank = from_keras(model, rank=16, exclude="head")
    >>> low_rank.ranks
    {'hidden': 16}
    >>> from_keras(model, budget=5000).compression().factored <= 5000
    True
    """
    rule = Rule(rank, tolerance, energy, budget)
    check_model(
        model,
        "from_keras",
        "Write its low-rank twin, a subclass of `LowRankModel`, with "
        "`keras_lowrank.convert_layer(layer, rank=...)` for each layer.",
    )
    kernels = rule.concerned(select_kernels(model, include, exclude))
    moments = _moments(model, kernels, data) if data is not None else {}
    ranks, factors = decompose(model, kernels, rule, only_smaller, moments, verbose)
    dense, count = [path for path in kernels if not ranks[path]], len(kernels)
    by_name = isinstance(rank, dict) or include is not None
    if dense and (by_name or len(dense) == count):
        warn_user(
            f"{'No layer' if len(dense) == count else 'Not every layer'} would be smaller at "
            f"the rank that was asked for, and {len(dense)} of {count} stay dense: "
            f"{sizes(kernels, dense)}. {SMALLER}"
        )
    chosen = {path for path in kernels if ranks[path]}
    return _converted(model, chosen, factors, LowRankModel)[0]


def decompose(
    model: keras.Model,
    kernels: dict[str, Kernel],
    rule: Rule,
    only_smaller: bool,
    moments: dict[str, np.ndarray] | None = None,
    verbose: bool = False,
) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """Chooses the ranks of kernels, and decomposes them.

    Args:
        model: built `keras.Model` that holds the kernels.
        kernels: `{path: Kernel}`.
        rule: `Rule`.
        only_smaller: bool, as in `from_keras`.
        moments: `{path: array}`, as `Decomposition` takes them, or None.
        verbose: bool, whether to show a progress bar.

    Returns:
        `({path: rank}, factors)`: None where the kernel stays whole, and a callable from a path to
        `(U, S, V)`, once for each.
    """
    decompositions = _decompose(kernels, rule, moments, verbose)
    shapes = {path: kernel.matricization.shape for path, kernel in kernels.items()}
    ranks: dict[str, Any] = rule.ranks(
        kernels,
        shapes,
        {path: one.values for path, one in decompositions.items()},
        count_others(model, [])[1] - sum(math.prod(shape) for shape in shapes.values()),
        only_smaller,
    )
    whole = {id(one.layer) for path, one in kernels.items() if not ranks[path]}
    for path, one in kernels.items():
        if one.converter.all_kernels and id(one.layer) in whole:
            ranks[path] = None

    def factors(path):
        return decompositions.pop(path).factors(ranks[path])

    return ranks, factors


def sizes(kernels: dict[str, Kernel], paths: Iterable[str]) -> str:
    """Returns some of `{path: Kernel}` with their shapes, for a message."""
    return ", ".join("{} ({} x {})".format(p, *kernels[p].matricization.shape) for p in paths)


SMALLER = "Ask for ranks below n m / (n + m), or pass only_smaller=False."


def convert_layer(
    layer: keras.layers.Layer,
    rank: int | None = None,
    tolerance: float | None = None,
    energy: float | None = None,
) -> keras.layers.Layer:
    """Returns the low-rank twin of one built Keras layer, for subclassed models.

    Only its code says what a subclassed model computes. So write its low-rank twin by hand, with
    its layers converted.

    Args:
        layer: built `keras.layers.Dense`, `Conv1D`, `Conv2D`, `Conv3D`, `Conv2DTranspose`,
            `EinsumDense`, `Embedding`, `MultiHeadAttention`, `GroupQueryAttention`, `LSTM`, `GRU`,
            or a `Bidirectional` of the last two.
        rank: int, the rank, or `min(n, m)` where that is less.
        tolerance: float in `[0, 1)`, as in `from_keras`.
        energy: float in `(0, 1]`, as in `from_keras`. Give exactly one of the three.

    Returns:
        Low-rank layer, built.

    Raises:
        ValueError: a layer of another class or without weights, or one that `from_keras` keeps as
            it is; or an argument outside its range.

    Example:

    >>> class Net(keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden, self.head = keras.layers.Dense(32), keras.layers.Dense(2)
    ...     def call(self, inputs):
    ...         return self.head(keras.ops.relu(self.hidden(inputs)))
    >>> class LowRankNet(LowRankModel):
    ...     def __init__(self, net):
    ...         super().__init__()
    ...         self.hidden, self.head = convert_layer(net.hidden, rank=4), net.head
    ...     call = Net.call
    >>> net = Net()
    >>> outputs = net(np.ones((1, 16)))
    >>> low_rank = LowRankNet(net)
    >>> low_rank(np.ones((1, 16))).shape.as_list()
    [1, 2]
    >>> low_rank.ranks
    {'dense': 4}
    """
    converter = converter_of(layer)
    if not converter.is_plain(layer):
        raise ValueError(
            f"`layer` must be one of the Keras layers {NAMES}, and not of a subclass. "
            f"Received: {layer!r}"
        )
    if not layer.built:
        raise ValueError(
            f"`layer` must have weights. Build it, or call it on a batch. Received: {layer!r}"
        )
    rule = Rule(rank, tolerance, energy)
    kernels = rule.concerned(converter.kernels(layer.name, layer))
    decompositions = _decompose(kernels, rule)
    shapes = {path: one.matricization.shape for path, one in kernels.items()}
    values = {path: one.values for path, one in decompositions.items()}
    ranks: dict[str, Any] = rule.ranks(kernels, shapes, values, 0, only_smaller=False)
    factors = {path: decompositions[path].factors(rank) for path, rank in ranks.items()}
    return converter.to_low_rank(layer.name, layer, factors)


def _decompose(
    kernels: dict[str, Any],
    rule: Rule,
    moments: dict[str, Any] | None = None,
    verbose: bool = False,
) -> dict[str, Decomposition]:
    """Returns `{path: Decomposition}` of kernels, for the ranks that a rule asks for."""
    bar = keras.utils.Progbar(len(kernels), verbose=int(verbose), unit_name="layer")
    found = {}
    for path, kernel in kernels.items():
        moment = moments.get(path) if moments else None
        try:
            found[path] = Decomposition(kernel.matrix(), moment, rule.asked(path, kernel))
        except ValueError as error:
            raise ValueError(f"Layer {path!r} cannot be decomposed. {error}") from None
        bar.add(1)
    return found


def _converted(
    model: keras.Model,
    chosen: Iterable[str],
    factors: Callable[[str], Any],
    make: Callable[..., Any] = keras.Model,
) -> tuple[Any, dict[str, Any]]:
    """Returns a copy of a model with low-rank kernels, and `{path: kernel}` of the new layers.

    Args:
        model: `keras.Model`.
        chosen: paths of the kernels that become low-rank.
        factors: callable from such a path to `(U, S, V)`.
        make: as `GraphCopy.of` takes it.
    """
    paths = {id(layer): path for path, layer in graph_layers(model).items()}
    made: dict[str, Any] = {}

    def replace(layer):
        path, converter = paths.get(id(layer), ""), converter_of(layer)
        given = {one: factors(one) for one in converter.kernels(path, layer) if one in chosen}
        if not given:
            return None
        low_rank = converter.to_low_rank(path, layer, given)
        made.update(converter.kernels(path, low_rank))
        return low_rank

    return GraphCopy(replace).of(model, make), made


def rank_one_copy(
    model: keras.Model, kernels: dict[str, Any]
) -> tuple[keras.Model, dict[str, Any]]:
    """Returns a low-rank copy of a model to put other kernels into, and its new layers by path.

    Args:
        model: `keras.Model`.
        kernels: dict from paths to `Kernel`, which become factors of rank 1.
    """

    def nothing(path):
        n, m = kernels[path].matricization.shape
        return np.zeros((n, 1)), np.zeros((1, 1)), np.zeros((m, 1))

    return _converted(model, kernels, nothing)


def _moments(model: keras.Model, kernels: dict[str, Any], data: Any) -> dict[str, Any]:
    """Returns `{path: E[y y^T]}` of the outputs `y = x W` of kernels, over a data set."""
    # The moments take the place of the factors of rank 1, which are not read.
    copy, made = rank_one_copy(model, kernels)
    moments = {
        path: OutputMoment(keras.ops.convert_to_tensor(kernel.matrix()))
        for path, kernel in kernels.items()
        if path in made
    }
    stream(copy, {made[path].factors: moment for path, moment in moments.items()}, data)
    return {path: moment.mean for path, moment in moments.items()}
