"""What the rule of an optimizer keeps for every low-rank layer: variables of the optimizer."""

import warnings

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.factors import RankVariable, has_orthonormal_bases
from keras_lowrank.optimizers.rule import COLUMNS, ROWS, SCALAR, TANGENT
from keras_lowrank.tangent_vector import TangentVector, carried, overlap, zeros_at

# The kind of the sum of gradients under `gradient_accumulation_steps`: a tangent vector, too.
ACCUMULATED = "accumulated_gradient"

_UNTRACED_LOOKS = 16


class OptimizerState:
    """The state of all low-rank layers of a model, held, saved and restored by its optimizer.

    Its size follows the ranks: `r (n + m + r)` numbers for a tangent vector, and `n` or `m`.
    """

    def __init__(self):
        self._factors, self._variables = {}, {}
        self._doubted, self._looks = False, 0

    @classmethod
    def of(cls, optimizer, layers, kinds):
        """The state of `optimizer`, not a scaling one: what it has for the layers, and new.

        Args:
            optimizer: the Keras optimizer.
            layers: dict from path to `LowRankLayer`.
            kinds: dict from path to a dict from name to kind, as in `Rule.state`.
        """
        state = getattr(optimizer, "low_rank_state", None)
        if state is None:
            state = optimizer.low_rank_state = cls()
        for path, layer in layers.items():
            if state._factors.get(path, layer.factors) is not layer.factors:
                raise ValueError(
                    "An optimizer belongs to the model that it was first compiled with. Give this "
                    f"model one of its own. Received: optimizer={optimizer.name!r}, which holds "
                    f"the moments of another layer {path!r}"
                )
            if path not in state._variables:
                state._factors[path] = layer.factors
                slots = state._variables[path] = {
                    name: _make(kind, name, path, layer.factors)
                    for name, kind in kinds[path].items()
                }
                keras_internals.hold(optimizer, [v for slot in slots.values() for v in slot])
            if state._variables[path].keys() != kinds[path].keys():
                raise ValueError(
                    "What an optimizer keeps for a layer is settled when it is first compiled. "
                    "Compile with a new optimizer after a change of its options. Received: "
                    f"optimizer={optimizer.name!r}, which keeps {list(state._variables[path])} for "
                    f"layer {path!r}, and needs {list(kinds[path])}"
                )
        state._traced_look = tf.function(state._look, autograph=False)
        return state

    @property
    def variables(self):
        """All variables."""
        return [v for slots in self._variables.values() for slot in slots.values() for v in slot]

    def read(self, path):
        """The state of one layer: a dict from name to `TangentVector` or tensor."""
        if path not in self._variables and self.variables:
            raise ValueError(
                f"The optimizer holds nothing for layer {path!r}, which was frozen when the model "
                "was compiled. Call `compile` again, with a new optimizer."
            )
        slots = {}
        for name, variables in self._variables.get(path, {}).items():
            values = [tf.convert_to_tensor(v.value) for v in variables]
            slots[name] = TangentVector(*values) if len(values) == 3 else values[0]
        return slots

    def assign(self, path, slots):
        """Sets the state of one layer."""
        for name, variables in self._variables.get(path, {}).items():
            values = slots[name] if len(variables) == 3 else [slots[name]]
            for variable, value in zip(variables, values):
                variable.assign(value)

    @property
    def carries(self):
        """bool, whether there are tangent vectors that follow the layers."""
        return any(
            len(variables) == 3
            for slots in self._variables.values()
            for name, variables in slots.items()
            if name != ACCUMULATED
        )

    def carried(self, slots, old, moved, direction, decay):
        """The state of one layer once it has moved: tangent vectors in the new tangent space.

        Args:
            slots: dict, the state at the matrix before.
            old: `Factorization`, that matrix.
            moved: `Moved`, what an integrator has made of it.
            direction: `TangentVector`, where the step went.
            decay: float, what tangent vectors are multiplied with.
        """

        def carry(vector):
            lies = moved.overlap if vector is direction else ()
            lies = lies or overlap(vector, old, moved.factors, moved.overlap)
            return carried(vector, old, lies, decay)

        return {
            name: carry(value)
            if isinstance(value, TangentVector) and name != ACCUMULATED
            else value
            for name, value in slots.items()
        }

    def follow_ranks(self):
        """Forgets tangent vectors where weights of another rank were loaded in the meantime."""
        for path, slots in self._variables.items():
            factors = self._factors[path]
            for variables in slots.values():
                if len(variables) == 3 and variables[1].shape != factors.S.shape:
                    for variable, value in zip(variables, zeros_at(factors.read())):
                        variable.assign(value)

    def doubt(self):
        """Has `settle` look at all factors: the host does not see what traced code assigns."""
        self._doubted = True

    def settle(self):
        """Makes what someone else has assigned fit for a step, which relies on its form."""
        changed = []
        unfit = [path for path, factors in self._factors.items() if not factors.left_by(self)]
        if self._doubted and not unfit:
            # A trace takes the time of some 16 looks, and a traced look a twentieth of one: it is
            # for those who call `train_on_batch` again and again.
            self._looks += 1
            look = self._look if self._looks <= _UNTRACED_LOOKS else self._traced_look
            unfit = [path for path, flag in zip(self._factors, look()) if flag]
        elif self._doubted:
            unfit = list(self._factors)
        self._doubted = False
        for path in unfit:
            if self._factors[path].orthonormalize():
                changed.append(path)
            self._forget_stale(path)
            self._factors[path].taken_by(self)
        if changed:
            warnings.warn(
                "The columns of U and V must be orthonormal. They were made so, W unchanged, in "
                f"the layers {changed}. Received: other bases, by assignment or from a file",
                stacklevel=3,
            )

    def _look(self):
        """For every layer whether its bases or its tangent vectors are not fit for a step."""
        flags = []
        for path, factors in self._factors.items():
            point = factors.read()
            stale = [_is_stale(value, point) for value in self.read(path).values()]
            flags.append(tf.reduce_any([~has_orthonormal_bases(point), *stale]))
        return flags

    def _forget_stale(self, path):
        """Forgets tangent vectors of a layer that are in no tangent space at its matrix.

        Someone has assigned its factors, and not these: steps from both would leave the bases far
        from orthonormal.
        """
        point = self._factors[path].read()
        slots = {
            name: zeros_at(point) if _is_stale(value, point) else value
            for name, value in self.read(path).items()
        }
        self.assign(path, slots)


def _is_stale(value, point):
    if not isinstance(value, TangentVector):
        return False
    if not value.S.shape.is_compatible_with(point.S.shape):
        return True
    # Both parts must have the S-part that is kept; roundings and drifted bases leave some 1e-5.
    by_k = tf.matmul(point.U, value.K, transpose_a=True)
    by_l = tf.matmul(value.L, point.V, transpose_a=True)
    off = tf.norm(by_k - value.S) + tf.norm(by_l - value.S)
    return off > 1e-4 * (tf.norm(value.K) + tf.norm(value.L))


def _make(kind, name, path, factors):
    """The variables of one slot, zero."""
    label, dtype = f"{path}/{name}", factors.S.dtype
    n, m, rank = factors.n, factors.m, factors.rank
    if kind == TANGENT:
        parts = {"K": ((n, rank), (1,)), "S": ((rank, rank), (0, 1)), "L": ((m, rank), (1,))}
        return [
            RankVariable(
                keras.initializers.Zeros(), shape, axes, dtype, f"{label}_{part}".replace("/", "_")
            )
            for part, (shape, axes) in parts.items()
        ]
    shapes = {ROWS: (n,), COLUMNS: (m,), SCALAR: ()}
    if kind not in shapes:
        raise ValueError(
            "The kinds of a rule's `state` are 'tangent', 'rows', 'columns' and 'scalar'. "
            f"Received: {name}={kind!r}"
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
