"""A Keras model in, a `LowRankModel` out."""

from typing import Any

import keras

from keras_lowrank.convert.copies import copy_model
from keras_lowrank.convert.copyable import check_model
from keras_lowrank.convert.factors import (
    SMALLER,
    check_form,
    decompose,
    decompositions_of,
    sizes,
)
from keras_lowrank.convert.graph import graph_layers
from keras_lowrank.convert.graph_copy import GraphCopy
from keras_lowrank.convert.in_place import make_low_rank
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.convert.registry import NAMES, converter_of
from keras_lowrank.convert.selection import hides_kernels, select_kernels, warn_of_refused
from keras_lowrank.convert.twins import output_moments
from keras_lowrank.keras_graphs import is_saved_as_graph
from keras_lowrank.layers.find_layers import layers_by_path
from keras_lowrank.model import LowRankModel
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
    factorization: str = "matrix",
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

    A functional or Sequential model becomes a `LowRankModel` with the same graph of layers. It is
    not compiled, and a custom `train_step` is not copied. Every other model, such as a subclassed
    one or a `Backbone` or `Task` of KerasHub, is made again from its config and converted as
    `make_low_rank` converts it: the copy is of its class too, with its preprocessor and methods. So
    are models with layers of your own that hold Keras layers.

    With `data`, `W_r` is the best approximation for the inputs of the layer: it minimises
    `E ||x W - x W_r||^2` instead of `||W - W_r||_F^2` (DRONE, Chen et al., NeurIPS 2021), and ranks
    follow the singular values of `C^{1/2} W` with `C = E[x x^T]`.

    A Tucker-2 kernel is cut by a truncated higher-order SVD: `||W - W_pq||_F^2` is at most the sum
    of the squared tails of both unfoldings. A tolerance is shared by both cuts, `rank` is for both
    sides (all channels of one where there are fewer), and a budget weighs the singular values of
    both sides alike.

    Layers whose arguments a low-rank layer refuses stay as they are, with a warning: a kernel
    constraint, a kernel regularizer other than L2, groups, quantization, or an equation whose
    kernel is a stack of matrices.

    Args:
        model: built `keras.Model`. One with code of its own must be made by its config; rewrite
            others with `convert_layer`, or use `make_low_rank`.
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
        factorization: str, the form of the kernels of convolutions, as in `LowRankConv2D`:
            `"matrix"` (the default), `"spatial"` or `"tucker"`. A layer that does not have the form
            keeps the matrix.
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
        ValueError: an unbuilt model, nothing to convert, a name that means no layer, an argument
            outside its range, `data` for another form than the matrix, a budget below the weights
            at rank 1, non-finite weights, or a model or layer that cannot be copied.

    Example:

    >>> inputs = keras.Input((64,))
    >>> x = keras.layers.Dense(128, activation="relu", name="hidden")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(10, name="head")(x))
    >>> low_rank = from_keras(model, rank=16, exclude="head")
    >>> low_rank.ranks
    {'hidden': 16}
    >>> from_keras(model, budget=5000).compression().factored <= 5000
    True
    >>> images = keras.Input((8, 8, 16))
    >>> model = keras.Model(images, keras.layers.Conv2D(32, 3, name="conv")(images))
    >>> from_keras(model, rank=6, factorization="tucker").ranks
    {'conv/input': 6, 'conv/output': 6}
    """
    rule = Rule(rank, tolerance, energy, budget)
    check_form(factorization, data)
    check_model(model, "from_keras")
    if not is_saved_as_graph(model) or hides_kernels(model):
        warn_of_refused(layers_by_path(model), include, exclude)
        copy, _ = copy_model(model)
        make_low_rank(
            copy,
            rank,
            tolerance,
            energy,
            budget,
            include=include,
            exclude=exclude,
            factorization=factorization,
            data=data,
            only_smaller=only_smaller,
            verbose=verbose,
        )
        return copy
    kernels = rule.concerned(select_kernels(model, include, exclude, factorization))
    moments = None if data is None else output_moments(model, kernels, data)
    ranks, factors = decompose(model, kernels, rule, only_smaller, moments, verbose)
    dense, count = [path for path in kernels if not ranks[path]], len(kernels)
    by_name = isinstance(rank, dict) or include is not None
    if dense and (by_name or len(dense) == count):
        warn_user(
            f"{'No layer' if len(dense) == count else 'Not every layer'} would be smaller at "
            f"the rank that was asked for, and {len(dense)} of {count} stay dense: "
            f"{sizes(kernels, dense)}. {SMALLER}"
        )
    paths = {id(layer): path for path, layer in graph_layers(model).items()}

    def replace(layer):
        path, converter = paths.get(id(layer), ""), converter_of(layer)
        converter = converter.in_form(layer, factorization)
        inside = converter.kernels(path, layer)
        given = {one: factors(one) for one in inside if one in kernels and ranks[one]}
        return converter.to_low_rank(path, layer, given) if given else None

    return GraphCopy(replace).of(model, LowRankModel)


def convert_layer(
    layer: keras.layers.Layer,
    rank: int | None = None,
    tolerance: float | None = None,
    energy: float | None = None,
    *,
    factorization: str = "matrix",
) -> keras.layers.Layer:
    """Returns the low-rank twin of one built Keras layer, for subclassed models.

    `make_low_rank` converts a subclassed model as it is. This is for a low-rank twin that you write
    by hand, with the same layers converted.

    Args:
        layer: built `keras.layers.Dense`, `Conv1D`, `Conv2D`, `Conv3D`, `Conv2DTranspose`,
            `EinsumDense`, `Embedding`, `MultiHeadAttention`, `GroupQueryAttention`, `LSTM`, `GRU`,
            or a `Bidirectional` of the last two.
        rank: int, the rank, or `min(n, m)` where that is less.
        tolerance: float in `[0, 1)`, as in `from_keras`.
        energy: float in `(0, 1]`, as in `from_keras`. Give exactly one of the three.
        factorization: str, as in `from_keras`.

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
    check_form(factorization, None)
    converter = converter_of(layer).in_form(layer, factorization)
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
    decompositions = decompositions_of(kernels, rule)
    forms = {path: one.form for path, one in kernels.items()}
    values = {path: one.values for path, one in decompositions.items()}
    ranks: dict[str, Any] = rule.ranks(kernels, forms, values, 0, only_smaller=False)
    factors = {path: decompositions[path].factors(rank) for path, rank in ranks.items()}
    return converter.to_low_rank(layer.name, layer, factors)
