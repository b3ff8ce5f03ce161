"""A Keras model in, a `LowRankModel` out."""

import math

import keras
import numpy as np

from keras_lowrank.convert.decomposition import Decomposition
from keras_lowrank.convert.graph import GraphCopy, check_model, graph_layers
from keras_lowrank.convert.moments import OutputMoment, stream
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.convert.registry import NAMES, converter_of
from keras_lowrank.convert.selection import select_kernels
from keras_lowrank.model import LowRankModel
from keras_lowrank.reporting.compression import count_others
from keras_lowrank.user_warnings import warn_user


def from_keras(
    model,
    rank=None,
    tolerance=None,
    energy=None,
    budget=None,
    *,
    include=None,
    exclude=None,
    data=None,
    only_smaller=True,
    verbose=False,
):
    r"""Returns a `LowRankModel` that computes what a Keras model does, at lower ranks.

    The kernel W of every Dense, EinsumDense and Embedding layer, of every convolution (Conv1D,
    Conv2D, Conv3D, Conv2DTranspose), of every projection in a layer of attention
    ("attention/query", ...), and both kernels of an LSTM or GRU ("lstm/lstm_cell/kernel", ...),
    bidirectional or not, become their best approximation `W_r = U S V^T` (truncated SVD;
    randomised, and within 1% of the least error, where `rank` is small beside a large kernel),
    with the layer's bias and arguments. All else is copied, with weights and statistics: names,
    `trainable`, precision, layers that are used in several places. The model that was given is
    left as it is, and shares nothing with the new one but what the function of a `Lambda` refers
    to. The new one is not compiled; a `train_step` of one's own, in a subclass of a functional
    model, stays behind.

    With `data`, `W_r` is the best approximation for the inputs that the layer sees in it: it
    minimises `E ||x W - x W_r||^2` in place of `||W - W_r||_F^2` (DRONE, Chen et al., NeurIPS
    2021), and the ranks follow the singular values of `C^{1/2} W` with `C = E[x x^T]`. A network
    784-784-784-784-784-10 of 98.3% on MNIST has 96.6% when cut to rank 30, and 97.7% when cut
    with 10,000 images (`examples/prune_and_retrain.py --data_aware`).

    Args:
        model: functional or Sequential `keras.Model`, built. Models inside it are opened, and so is
            what a `TimeDistributed` repeats. Subclassed ones must be rewritten with
            `convert_layer`.
        rank: int, the rank of all layers (of `min(n, m)` where that is less), or a dict from the
            path, name or pattern of layers to their ranks, which converts no others.
        tolerance: float in `[0, 1)`. Each layer keeps the smallest rank with
            `||W - W_r||_F <= tolerance ||W||_F`.
        energy: float in `(0, 1]`. The smallest rank with `||W_r||_F^2 >= energy ||W||_F^2`.
        budget: int, the number of weights of the whole model, counted as `Compression.factored`
            and spent on the singular values with the largest shares of their layers' energy.
            Exactly one of `rank`, `tolerance`, `energy` and `budget` must be given.
        include: the layers to convert: a path or name, a pattern with `*`, a layer class, a
            function of a layer that returns a bool, or a list of these. All by default.
        exclude: the layers that stay dense, in the same terms. None by default.
        data: inputs, as an array (a list or dict of arrays for several inputs), or a
            `tf.data.Dataset`, `PyDataset` or generator of batches, with or without targets, that
            comes to an end. They are run
            through the model once; m^2 numbers are held for a layer with m outputs. None
            approximates the kernels themselves.
        only_smaller: bool. Leave a layer dense where its factors would be no smaller than its
            kernel, `r (n + m) >= n m`. Defaults to `True`. With `False` and `tolerance=0.0` all
            layers get the ranks of their kernels: a model to train and cut afterwards.
        verbose: bool. Show a progress bar over the layers. Defaults to `False`.

    Layers whose arguments a low-rank layer refuses (a kernel constraint, a kernel regularizer
    other than L2, groups, quantization, an equation whose kernel is a stack of matrices) stay
    as they are, with a warning.

    Raises:
        TypeError: no Keras model.
        ValueError: a subclassed or unbuilt model, nothing to convert, a name that means no layer,
            an argument outside its range, a budget that rank 1 exceeds, weights that are not
            finite, or a layer that cannot be copied.

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


def decompose(model, kernels, rule, only_smaller, moments=None, verbose=False):
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
    ranks = rule.ranks(
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


def sizes(kernels, paths):
    """Some of `{path: Kernel}` with their shapes, for a message."""
    return ", ".join("{} ({} x {})".format(p, *kernels[p].matricization.shape) for p in paths)


SMALLER = "Ask for ranks below n m / (n + m), or pass only_smaller=False."


def convert_layer(layer, rank=None, tolerance=None, energy=None):
    """Returns the low-rank twin of one built Keras layer: for classes of your own.

    What a subclassed model computes only its code says, so its twin is written by hand, and this
    is all that it takes: its layers, converted.

    Args:
        layer: built `keras.layers.Dense`, `Conv1D`, `Conv2D`, `Conv3D`, `Conv2DTranspose`,
            `EinsumDense`, `Embedding`, `MultiHeadAttention`, `GroupQueryAttention`, `LSTM`, `GRU`,
            or a `Bidirectional` of the last two.
        rank: int, the rank, or `min(n, m)` where that is less.
        tolerance: float in `[0, 1)`, as in `from_keras`.
        energy: float in `(0, 1]`, as in `from_keras`. Exactly one of the three must be given.

    Raises:
        ValueError: a layer of another class or without weights, or one of those that `from_keras`
            leaves as they are; or an argument outside its range.

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
            f"`layer` must be one of the Keras layers {NAMES}, and no subclass of them. "
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
    ranks = rule.ranks(kernels, shapes, values, 0, only_smaller=False)
    factors = {path: decompositions[path].factors(rank) for path, rank in ranks.items()}
    return converter.to_low_rank(layer.name, layer, factors)


def _decompose(kernels, rule, moments=None, verbose=False):
    """`{path: Decomposition}` of kernels, for the ranks that a rule asks for."""
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


def _converted(model, chosen, factors, make=keras.Model):
    """A copy of a model that is low-rank in part, and `{path: kernel}` of what is new in it.

    Args:
        model: `keras.Model`.
        chosen: paths of the kernels in whose place factors are put.
        factors: callable from such a path to `(U, S, V)`.
        make: as `GraphCopy.of` takes it.
    """
    paths = {id(layer): path for path, layer in graph_layers(model).items()}
    made = {}

    def replace(layer):
        path, converter = paths.get(id(layer)), converter_of(layer)
        given = {one: factors(one) for one in converter.kernels(path, layer) if one in chosen}
        if not given:
            return None
        low_rank = converter.to_low_rank(path, layer, given)
        made.update(converter.kernels(path, low_rank))
        return low_rank

    return GraphCopy(replace).of(model, make), made


def _moments(model, kernels, data):
    """`{path: E[y y^T]}` of the outputs `y = x W` of kernels, over a data set."""

    def nothing(path):
        # Only where factors are is anything put in their place: those of rank 1 are not read.
        n, m = kernels[path].matricization.shape
        return np.zeros((n, 1)), np.zeros((1, 1)), np.zeros((m, 1))

    copy, made = _converted(model, kernels, nothing)
    moments = {
        path: OutputMoment(keras.ops.convert_to_tensor(kernel.matrix()))
        for path, kernel in kernels.items()
        if path in made
    }
    stream(copy, {made[path].factors: moment for path, moment in moments.items()}, data)
    return {path: moment.mean for path, moment in moments.items()}
