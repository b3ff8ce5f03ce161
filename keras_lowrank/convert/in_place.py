"""A Keras model becomes low-rank in place: what it is, and what it can do, stays."""

from typing import Any

import keras

from keras_lowrank import integrators, keras_internals
from keras_lowrank.convert.conversion import Conversion, Converted, weights_left
from keras_lowrank.convert.converted_model import compile_again, convert_class
from keras_lowrank.convert.copyable import check_model
from keras_lowrank.convert.factors import SMALLER, check_form, decompose, sizes
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.convert.selection import select_in_place
from keras_lowrank.convert.twins import become_twins, output_moments
from keras_lowrank.layers.find_layers import layers_by_path
from keras_lowrank.optimizers.options import fresh, make_rule
from keras_lowrank.reporting.compression import count_others


def make_low_rank(
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
) -> Conversion:
    r"""Makes a Keras model low-rank in place, whatever has built it, and returns a report.

    The model may be functional, subclassed, or a `Backbone` or `Task` of KerasHub. Every kernel in
    it that has a low-rank layer becomes its best approximation `W_r = U S V^T`, at any depth: in
    attention, decoder blocks, or layers of your own. Each layer stays the same object, in its
    place, with its name and all who use it; only its class is another. So does the model, which is
    a `LowRankModel` too from here on, and what it could do (`fit` on texts, `generate`,
    `preprocessor`, a `compile` with defaults of its own) goes on to work.

    If the model was compiled, it is compiled again with the same arguments and an optimizer without
    a state. `compile` with other arguments sets integrator and truncation. The model is saved with
    `save` and loads with `keras.saving.load_model`; `save_to_preset` writes whole kernels.

    Args:
        model: built `keras.Model`.
        rank: int, the rank of all layers (of `min(n, m)` where that is less), or a dict from the
            path, name or pattern of layers to their ranks, which converts no others.
        tolerance: float in `[0, 1)`. Each layer keeps the smallest rank with
            `||W - W_r||_F <= tolerance ||W||_F`.
        energy: float in `(0, 1]`. The smallest rank with `||W_r||_F^2 >= energy ||W||_F^2`.
        budget: int, the number of weights of the whole model, as in `from_keras`. Exactly one of
            `rank`, `tolerance`, `energy` and `budget` must be given.
        include: the layers to convert: a path or name, a pattern with `*`, a layer class, a
            function of a layer that returns a bool, or a list of these. All by default.
        exclude: the layers that stay dense, in the same terms. None by default.
        factorization: str, the form of the kernels of convolutions, as in `from_keras`.
        data: inputs of the model, to approximate what each layer computes on them, as in
            `from_keras`. It runs on a copy of the model, which needs the memory for the time. None
            approximates the kernels themselves.
        only_smaller: bool. Leave a layer dense where its factors would be no smaller than its
            kernel, `r (n + m) >= n m`. Defaults to `True`.
        verbose: bool. Show a progress bar over the layers. Defaults to `False`.

    Returns:
        `Conversion`: what was converted, what was not and why, and the weights before and after.

    Raises:
        TypeError: no Keras model.
        ValueError: a model that is not built or has adapters, nothing to convert, a name that means
            no layer, an argument outside its range, a budget that rank 1 exceeds, weights that are
            not finite, `data` for a model that cannot be copied, or an optimizer that cannot move a
            low-rank matrix. The model is then as it was.

    Example:

    >>> class Net(keras.Model):
    ...     def __init__(self):
    ...         super().__init__(name="net")
    ...         self.hidden = keras.layers.Dense(64, name="hidden")
    ...         self.head = keras.layers.Dense(2, name="head")
    ...     def call(self, inputs):
    ...         return self.head(keras.ops.relu(self.hidden(inputs)))
    >>> net = Net()
    >>> outputs = net(np.ones((1, 32)))
    >>> report = make_low_rank(net, rank=4)
    >>> list(report.converted), report.before, report.after
    (['hidden'], 2176, 512)
    >>> isinstance(net, Net), isinstance(net, LowRankModel), net.ranks
    (True, True, {'hidden': 4})
    """
    rule = Rule(rank, tolerance, energy, budget)
    check_form(factorization, data)
    check_model(model, "make_low_rank")
    optimizer = (keras_internals.compile_arguments(model) or {}).get("optimizer")
    if optimizer is not None:
        make_rule(fresh(optimizer), integrators.get("rank_adaptive"))
    layers = layers_by_path(model)
    if any(getattr(layer, "beside_kernel", False) for layer in layers.values()):
        raise ValueError(
            "A model with adapters is converted after `merge_adapters`, or gets them later. "
            f"Received: {model.name!r} with adapters"
        )
    kernels, reasons = select_in_place(layers, include, exclude, factorization)
    selected = {path: kernel for path, kernel in kernels.items() if reasons[path] is None}
    concerned = rule.concerned(selected) if selected else {}
    reasons.update((path, "Left out by `rank`.") for path in selected.keys() - concerned.keys())
    if not concerned:
        left = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        raise ValueError(
            "A conversion needs a layer to convert, in the model and left by `include` and "
            f"`exclude`. Received: {left or 'none'}"
        )
    before = count_others(model, [])[1]
    moments = None if data is None else output_moments(model, concerned, data)
    ranks, factors = decompose(model, concerned, rule, only_smaller, moments, verbose)
    chosen = {path: kernel for path, kernel in concerned.items() if ranks[path]}
    if not chosen:
        raise ValueError(
            "No layer would be smaller at the rank that was asked for. "
            f"{SMALLER} Received: {sizes(concerned, concerned)}"
        )
    for path in concerned.keys() - chosen.keys():
        reasons[path] = "Its factors would be no smaller."
    converted = {}
    for path, kernel in chosen.items():
        n, m = kernel.matricization.shape
        converted[path] = Converted(n, m, ranks[path])
    skipped = weights_left(model, layers, kernels, reasons)
    become_twins(chosen, factors)
    convert_class(model)
    compile_again(model)
    return Conversion(converted, skipped, before, count_others(model, [])[1])
