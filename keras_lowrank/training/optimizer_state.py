"""The state of the rules for all low-rank layers: variables of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.manifold.factors import Factors, RankVariable
from keras_lowrank.manifold.squares import Squares
from keras_lowrank.manifold.tangent_vector import TangentVector, zero_vector
from keras_lowrank.optimizers.rule import COLUMNS, ROWS, SCALAR, SQUARES, TANGENT
from keras_lowrank.ranks.policy import Policy
from keras_lowrank.training.kinds import step_functions
from keras_lowrank.training.matrix_step import MatrixState

_UNTRACED_CHECKS = 16

# The least singular value with which layers are trained, by the type that they compute in. A core
# that float16 rounds to zero leaves no gradient of U and V.
_LEAST = {"float16": 2.0**-14}


class OptimizerState:
    """The state of all low-rank layers of a model; its optimizer saves and restores it.

    For each layer it has the scale of its `Chart`, r numbers, and the state of its rule:
    `r (n + m + r)` numbers for a tangent vector or squares, n for rows and m for columns.
    """

    _traced_positions: Callable[[], list]

    def __init__(self) -> None:
        self._factors: dict[str, Factors] = {}
        self._scales: dict[str, RankVariable] = {}
        self._least: dict[str, float] = {}
        self._variables: dict[str, dict[str, list]] = {}
        self._unverified, self._checks = False, 0

    @classmethod
    def of(
        cls,
        optimizer: keras.optimizers.Optimizer,
        layers: dict[str, LowRankLayer],
        kinds: dict[str, dict[str, str]],
    ) -> OptimizerState:
        """The state of `optimizer`, not a loss-scaling one; it creates what layers lack.

        Args:
            optimizer: the Keras optimizer.
            layers: dict from path to `LowRankLayer`.
            kinds: dict from path to a dict from name to kind, as in `Rule.state`.
        """
        unbuilt = [path for path, layer in layers.items() if layer.S.is_made_in_trace]
        if unbuilt:
            raise ValueError(
                "Low-rank layers must be built before the step that trains them is traced: call "
                "the model on a batch first, or `build` it. Received: the layers "
                f"{unbuilt}, which the first step would create"
            )
        state = getattr(optimizer, "low_rank_state", None)
        if state is None:
            state = optimizer.low_rank_state = cls()
        for path, layer in layers.items():
            if state._factors.get(path, layer.factors) is not layer.factors:
                raise ValueError(
                    "An optimizer belongs to the model that it was first compiled with. Give this "
                    f"model one of its own. Received: optimizer={optimizer.name!r}, which has the "
                    f"moments of another layer {path!r}"
                )
            if path not in state._variables:
                state._factors[path] = layer.factors
                state._least[path] = _LEAST.get(layer.compute_dtype, 0.0)
                scale = state._scales[path] = _unset_scale(path, layer.factors)
                keras_internals.hold(optimizer, [scale])
                slots = state._variables[path] = {
                    name: _make(kind, name, path, layer.factors)
                    for name, kind in kinds[path].items()
                }
                keras_internals.hold(optimizer, [v for slot in slots.values() for v in slot])
            if state._variables[path].keys() != kinds[path].keys():
                raise ValueError(
                    "The first `compile` decides what an optimizer stores for a layer. Compile "
                    "with a new optimizer after a change of its options. Received: "
                    f"optimizer={optimizer.name!r}, which stores {list(state._variables[path])} "
                    f"for layer {path!r}, but needs {list(kinds[path])}"
                )
        state._traced_positions = tf.function(state._positions, autograph=False)
        return state

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables."""
        return self.variables_of(self._factors)

    def holds(self, path: str) -> bool:
        """Whether it has state for a layer: it was trainable when the model was compiled."""
        return path in self._factors

    def variables_of(self, paths: Iterable[str]) -> list[keras.Variable]:
        """The variables of some layers."""
        slots = [slot for path in paths for slot in self._variables[path].values()]
        return [*(self._scales[path] for path in paths), *(v for slot in slots for v in slot)]

    def read(self, path: str) -> MatrixState:
        """The state of one layer."""
        if path not in self._variables:
            raise ValueError(
                f"The optimizer has no state for layer {path!r}, which was frozen when the model "
                "was compiled. Call `compile` again, with a new optimizer."
            )
        slots, factors = {}, self._factors[path]
        for name, variables in self._variables[path].items():
            values = [tf.convert_to_tensor(v.value) for v in variables]
            slots[name] = type(variables)(*values) if len(values) == 3 else values[0]
        scale = tf.convert_to_tensor(self._scales[path].value)
        return MatrixState(factors.read(), scale, slots, tf.zeros([]))

    def assign(self, path: str, scale: tf.Tensor, slots: dict[str, Any]) -> None:
        """Sets the state of one layer."""
        self._scales[path].assign(scale)
        for name, variables in self._variables.get(path, {}).items():
            values = slots[name] if len(variables) == 3 else [slots[name]]
            for variable, value in zip(variables, values):
                variable.assign(value)

    def mark_unverified(self) -> None:
        """Makes `verify` check all factors: the host does not see what traced code assigns."""
        self._unverified = True

    def verify(self, at_origin: bool = False) -> None:
        """Moves each layer whose factors someone else has assigned to the origin of a chart.

        This makes the bases orthonormal, keeps W, and resets moments of another matrix. Factors
        that came with their scale, as from a checkpoint, stay as they are.

        Args:
            at_origin: bool. Allow only the origin of a chart: steps of `adapt_every=1` start there.
        """
        assigned = [not factors.is_owned_by(self) for factors in self._factors.values()]
        for factors, elsewhere in zip(self._factors.values(), assigned):
            if elsewhere:
                factors.check_shapes(*(variable.shape for variable in factors.variables))
        positions = self._positions
        if self._unverified and not any(assigned):
            # A trace costs some 16 checks, and a traced check a twentieth of one: it pays off with
            # many calls of `train_on_batch`.
            self._checks += 1
            if self._checks > _UNTRACED_CHECKS:
                positions = self._traced_positions
        elif not any(assigned):
            return
        self._unverified = False
        for (path, factors), (inside, origin) in zip(self._factors.items(), positions()):
            valid = origin if at_origin else inside
            if factors.is_owned_by_another(self) or not valid:
                self.reset(path)
            factors.set_owner(self)

    def reset(self, path: str) -> None:
        """Moves one layer to the origin of a chart, and resets its moments."""
        factors, slots = self._factors[path], self.read(path).slots
        functions = step_functions(factors)
        if not functions.is_origin(factors.read()):
            factors.orthonormalize()
        point = factors.read()
        zero = zero_vector(point, factors.vector_type)
        for name, slot in slots.items():
            if isinstance(slot, TangentVector):
                slots[name] = zero
            elif isinstance(slot, Squares):
                slots[name] = slot.spread(tf.shape(point.S)[0])
        point, scale = functions.origin(factors.read(), self._least[path])
        factors.assign(point)
        self.assign(path, scale, slots)

    def recenter(self, path: str, policy: Policy) -> None:
        """Moves one layer to the origin of a chart, at the rank that `policy` chooses."""
        factors = self._factors[path]
        new = step_functions(factors).recentered(self.read(path), policy)
        if new is not None:
            factors.assign(new.factors)
            self.assign(path, new.scale, new.slots)
            factors.set_owner(self)

    def _positions(self):
        """For every layer, whether it is inside its chart, and whether at its origin."""
        return [_position(self.read(path), one) for path, one in self._factors.items()]


def _position(matrix, factors):
    functions, point = step_functions(factors), matrix.factors
    tangents = [slot for slot in matrix.slots.values() if isinstance(slot, TangentVector)]
    pairs = [(matrix.scale, functions.origin_scale(point))]
    pairs += [(tangent.S, point.S) for tangent in tangents]
    equal_ranks = [tf.reduce_all(tf.equal(tf.shape(one), tf.shape(two))) for one, two in pairs]
    return tf.cond(
        tf.reduce_all(tf.stack(equal_ranks)),
        lambda: functions.position(matrix),
        lambda: (tf.constant(False), tf.constant(False)),
    )


def _unset_scale(path, factors):
    """The variable of a layer's scale, negative until the layer has a chart."""
    name = f"{path}/scale".replace("/", "_")
    unset = keras.initializers.Constant(-1.0)
    return RankVariable(unset, (factors.columns,), (0,), factors.S.dtype, name=name)


def _make(kind, name, path, factors):
    """The variables of one slot, initially zero."""
    label, dtype = f"{path}/{name}", factors.S.dtype
    parts = {TANGENT: factors.vector_type, SQUARES: Squares}.get(kind)
    if parts is not None:
        zeros = keras.initializers.Zeros()
        names = [f"{label}_{part}".replace("/", "_") for part in parts._fields]
        return parts(
            *(
                RankVariable(zeros, tuple(like.shape), like.open_axes, dtype, name)
                for name, like in zip(names, factors.variables)
            )
        )
    shapes = {ROWS: (factors.n,), COLUMNS: (factors.m,), SCALAR: ()}
    if kind not in shapes:
        raise ValueError(
            "The kinds of a rule's `state` are 'tangent', 'squares', 'rows', 'columns' and "
            f"'scalar'. Received: {name}={kind!r}"
        )
    zeros = keras.initializers.Zeros()
    return [
        keras.Variable(
            zeros,
            shape=shapes[kind],
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",
            name=label.replace("/", "_"),
        )
    ]
