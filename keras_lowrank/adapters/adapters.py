"""The adapters of one model: their sets, their files, and how they are merged."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_lowrank import keras_internals
from keras_lowrank.adapters import file
from keras_lowrank.adapters.adapted_layer import Switch, deltas_of, restore, sum_of
from keras_lowrank.adapters.adapted_model import restore_model
from keras_lowrank.adapters.delta import Delta
from keras_lowrank.adapters.report import Report, Row
from keras_lowrank.adapters.selection import Place
from keras_lowrank.adapters.state import AdapterState, weighted_sum

# The attribute of a model that holds its adapters.
HELD = "_keras_lowrank_adapters"


class Adapters:
    """The adapters of one model, as `add_adapters` returns them.

    One set of adapters is in use. Others, by their names, are set aside on the host.

    Args:
        model: `keras.Model` that they are in.
        layers: dict from path to the layer that has deltas.
        places: list of int, the place of each layer among all that could have them.
        trained: dict from the place of a variable to the variable, those trained beside deltas.
        arguments: dict, `rank` and `max_rank` of `add_adapters`.
        switch: `Switch` of the layers.
        undo: callable that gives all variables back whether they are trainable.
        name: str, that of the first set.

    Attributes:
        model: as given.
        active: str, the name of the set in use.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, name="dense")])
    >>> french = add_adapters(model, rank=2, name="french")
    >>> french.add("german")
    >>> french.switch("french")
    >>> french.names, french.ranks
    (['french', 'german'], {'dense/delta': 2})
    """

    def __init__(
        self,
        model: keras.Model,
        layers: dict[str, keras.layers.Layer],
        places: Sequence[int],
        trained: dict[Place, keras.Variable],
        arguments: dict[str, Any],
        switch: Switch,
        undo: Callable[[], None],
        name: str,
    ) -> None:
        self.model, self.active = model, name
        self._layers, self._places, self._trained = layers, places, trained
        self._arguments, self._switch, self._undo = arguments, switch, undo
        self._base = [variable.numpy() for variable in trained.values()]
        self._aside: dict[str, AdapterState] = {}

    @property
    def deltas(self) -> dict[str, Delta]:
        """The low-rank layers beside the frozen kernels, `{path: layer}` as in `model.ranks`."""
        return {
            f"{path}/{delta.name}": delta
            for path, layer in self._layers.items()
            for delta in deltas_of(layer)
        }

    @property
    def names(self) -> list[str]:
        """The names of all sets, that in use first."""
        return [self.active, *self._aside]

    @property
    def ranks(self) -> dict[str, int]:
        """The present ranks, `{path: int}`."""
        return {path: delta.factors.rank for path, delta in self.deltas.items()}

    def report(self) -> Report:
        """Returns a `Report`: kernels, ranks, weights and sizes. `print` it."""
        rows, held = [], set[int]()
        for path, delta in self.deltas.items():
            n, m, rank = delta.factors.n, delta.factors.m, delta.factors.rank
            size = float(np.linalg.norm(delta.factors.singular_values()))
            rows.append(Row(path, n, m, rank, rank * (n + m), size))
            held |= {id(variable) for variable in delta.variables}
        others = sum(math.prod(v.shape) for v in self._trained.values() if v.trainable)
        total = sum(math.prod(v.shape) for v in self.model.weights if id(v) not in held)
        return Report(rows, others, total)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """While open, the model is its base, bit for bit.

        Its functions are traced anew when it opens and when it closes. A function of your own that
        is traced while it is open has the base in it.
        """
        before = self._switch.on, [v.numpy() for v in self._trained.values()]
        try:
            self._set(False, self._base)
            yield
        finally:
            self._set(*before)

    def add(self, name: str) -> None:
        """Adds a set that starts at zero, at the rank of `add_adapters`, and takes it in use.

        Args:
            name: str, a new one.
        """
        self._set_aside(name)
        for delta in self.deltas.values():
            delta.set_to_zero(self._arguments["rank"])
        self._assign_others(self._base)

    def switch(self, name: str) -> None:
        """Takes another set in use. Ranks follow; what the optimizer keeps for them starts anew.

        Args:
            name: str, one of `names`.
        """
        self._check_known(name)
        if name != self.active:
            state = self._aside.pop(name)
            self._set_aside(name)
            self._restore(state)

    def combine(self, name: str, weights: dict[str, float]) -> None:
        """Adds the weighted sum of several sets, and takes it in use.

        It is exact, at a rank of up to the sum of theirs. Training cuts that to `max_rank`.

        Args:
            name: str, a new one.
            weights: dict from the name of a set to a float.
        """
        if not weights:
            raise ValueError("`weights` must name sets of adapters. Received: an empty dict")
        for one in weights:
            self._check_known(one)
        self._set_aside(name)
        states = [self._aside[one] for one in weights]
        self._restore(weighted_sum(states, list(weights.values()), self._base))

    def save(self, filepath: str | os.PathLike[str]) -> None:
        """Writes the set in use to a file: the deltas, and what is trained beside them.

        The base is not in it. After a crash the file is whole, or that from before.

        Args:
            filepath: str or path, such as `"a.adapters.h5"`.
        """
        header = {"name": self.active, "ranks": self.ranks, **self._header()}
        file.write(filepath, self._state(), header)

    def load(self, filepath: str | os.PathLike[str], name: str | None = None) -> None:
        """Adds the set in a file, and takes it in use.

        Args:
            filepath: str or path that `save` has written.
            name: str or None, a new name. None is the name that it was saved with.

        Raises:
            ValueError: a file of other layers or another base, a damaged one, or a name in use.
        """
        state, header = file.read(filepath)
        file.check_same(header, self._header(), filepath)
        self._set_aside(header["name"] if name is None else name)
        self._restore(state)

    def merge(self) -> None:
        """What `merge_adapters` does."""
        quantized = [p for p, x in self._layers.items() if getattr(x, "quantization_mode", None)]
        if quantized:
            raise ValueError(
                "A delta is merged into a kernel of floats: in int8 or int4 the sum would be "
                "rounded, and no longer what was trained. Save the adapters, load them into the "
                "model before it was quantized, and merge there. "
                f"Received: quantized layers {quantized[:3]}"
            )
        for layer in self._layers.values():
            for kernel, delta in zip(layer.kernels, deltas_of(layer)):
                vars(layer)[kernel].assign(sum_of(vars(layer)[kernel], delta))
            restore(layer)
        self._undo()
        restore_model(self.model)
        del vars(self.model)[HELD]

    def _state(self) -> AdapterState:
        return AdapterState.of(self.deltas.values(), self._trained.values())

    def _restore(self, state: AdapterState) -> None:
        state.restore(self.deltas.values(), self._trained.values())

    def _set_aside(self, name: str) -> None:
        """Sets aside what is in use, to go on under a new name."""
        self._check_new(name)
        self._aside[self.active] = self._state()
        self.active = name

    def _set(self, on: bool, values: Iterable[np.ndarray]) -> None:
        self._switch.on = on
        self._assign_others(values)
        keras_internals.forget_traces(self.model)

    def _assign_others(self, values: Iterable[np.ndarray]) -> None:
        for variable, value in zip(self._trained.values(), values):
            variable.assign(value)

    def _header(self) -> dict[str, Any]:
        places = zip(self._places, self._layers.values())
        kernels = [[p, *delta.kernel_shape] for p, x in places for delta in deltas_of(x)]
        trained = [[*place, *variable.shape] for place, variable in self._trained.items()]
        return file.header(self._places, kernels, trained, self._arguments)

    def _check_new(self, name: str) -> None:
        if name in self.names:
            raise ValueError(
                f"A new set of adapters needs a new name, other than {self.names}. "
                f"Received: {name!r}"
            )

    def _check_known(self, name: str) -> None:
        if name not in self.names:
            raise ValueError(f"The adapters are {self.names}. Received: {name!r}")
