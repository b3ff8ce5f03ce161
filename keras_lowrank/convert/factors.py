"""The ranks of kernels, chosen by a rule, and the kernels' factors at these ranks."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_lowrank.convert.converter import Kernel
from keras_lowrank.convert.forms import Decomposed
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.layers.arguments import check_factorization
from keras_lowrank.reporting.compression import count_others


def decompose(
    model: keras.Model,
    kernels: dict[str, Kernel],
    rule: Rule,
    only_smaller: bool,
    moments: dict[str, np.ndarray | None] | None = None,
    verbose: bool = False,
) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """Chooses the ranks of kernels, and decomposes them.

    Args:
        model: built `keras.Model` that holds the kernels.
        kernels: `{path: Kernel}`.
        rule: `Rule`.
        only_smaller: bool, as in `from_keras`.
        moments: `{path: array or None}`, as `Decomposition` takes them, or None.
        verbose: bool, whether to show a progress bar.

    Returns:
        `({path: rank}, factors)`: None where the kernel stays whole, and a callable from a path to
        `(U, S, V)`, once for each.
    """
    decompositions = decompositions_of(kernels, rule, moments, verbose)
    forms = {path: kernel.form for path, kernel in kernels.items()}
    ranks: dict[str, Any] = rule.ranks(
        kernels,
        forms,
        {path: one.values for path, one in decompositions.items()},
        count_others(model, [])[1] - sum(form.full for form in forms.values()),
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
    return ", ".join(f"{path} ({kernels[path].form})" for path in paths)


SMALLER = "Ask for lower ranks, below n m / (n + m) for a matrix, or pass only_smaller=False."


def check_form(factorization: str, data: Any) -> None:
    """Raises ValueError for a form that there is not, or that `data` is not for.

    Args:
        factorization: as in `from_keras`.
        data: as in `from_keras`.
    """
    check_factorization(factorization)
    if data is not None and factorization != "matrix":
        raise ValueError(
            "`data` weighs the errors of kernels in the matrix form: leave it out, or use "
            f"factorization='matrix'. Received: factorization={factorization!r} with `data`"
        )


def decompositions_of(
    kernels: dict[str, Any],
    rule: Rule,
    moments: dict[str, Any] | None = None,
    verbose: bool = False,
) -> dict[str, Decomposed]:
    """Returns `{path: Decomposed}` of kernels, for the ranks that a rule asks for."""
    bar = keras.utils.Progbar(len(kernels), verbose=int(verbose), unit_name="layer")
    found = {}
    for path, kernel in kernels.items():
        moment = moments.get(path) if moments else None
        try:
            asked = rule.asked(path, kernel)
            found[path] = kernel.form.decompose(kernel.matrix(), moment, asked)
        except ValueError as error:
            raise ValueError(f"Layer {path!r} cannot be decomposed. {error}") from None
        bar.add(1)
    return found
