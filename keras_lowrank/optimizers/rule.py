"""The interface of an optimizer rule, and the register of rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import keras
import tensorflow as tf

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.tangent_vector import TangentVector

Float: TypeAlias = tf.Tensor | float
State: TypeAlias = dict[str, Any]

# Kinds of state, see `Rule.state`.
TANGENT, SQUARES, ROWS, COLUMNS, SCALAR = "tangent", "squares", "rows", "columns", "scalar"

# The sum of gradients under `gradient_accumulation_steps`, a tangent vector too.
ACCUMULATED = "accumulated_gradient"


class Direction(NamedTuple):
    """The direction D of a step `W - h D`.

    Attributes:
        tangent: `TangentVector` D.
        gradient_weight: scalar, the weight of this step's gradient G in D. An integrator that sees
            G outside of the tangent space adds it with the same weight. None: the update is not
            linear in the gradient, so nothing outside the tangent space is added.
        rows: tensor p, shape `(n,)`, or None.
        columns: tensor q, shape `(m,)`, or None. With both, the added part of G is
            `gradient_weight diag(p) G diag(q)`.

    Example:

    >>> gradient = TangentVector(tf.ones((4, 1)), tf.ones((1, 1)), tf.ones((3, 1)))
    >>> optimizers.Direction(gradient.scaled(0.5), gradient_weight=0.5).gradient_weight
    0.5
    """

    tangent: TangentVector
    gradient_weight: Float | None = 1.0
    rows: tf.Tensor | None = None
    columns: tf.Tensor | None = None


class Rule:
    """How a Keras optimizer updates the factors of low-rank layers.

    Subclass it to support another optimizer: name the state, implement `direction`, and register
    the rule with `@keras_lowrank.optimizers.register_rule(MyOptimizer)`. Learning rate, schedules,
    `clipnorm`, `global_clipnorm`, `weight_decay`, loss scaling and gradient accumulation are
    handled outside of it. All operations must be traceable and free of side effects. The package
    stores the state, saves it with the optimizer, discards it with a step that is not finite, and
    transports tangent vectors and squares to the next tangent space. `diagnostics.check_rule` tests
    a rule.

    Attributes:
        optimizer: the Keras optimizer.
        state: dict from the name of each slot of a matrix to its kind: `"tangent"` (a
            `TangentVector`), `"squares"` (mean squares of its parts, `manifold.Squares`), `"rows"`
            (shape `(n,)`), `"columns"` (shape `(m,)`) or `"scalar"`. All start at zero.
        decay: float, the mu of `mu P(M)`: transport multiplies tangent vectors with it, at no cost.
            Defaults to 1.
        takes_rows: bool, whether `direction` accepts a gradient with a K-part given by its rows
            (`tf.IndexedSlices`), as an embedding has it, and returns none in the state. The methods
            of `TangentVector` do so. Defaults to False.
        takes_tucker: bool, whether `direction` uses only methods of the tangent vectors and of
            `point`, so that it serves Tucker-2 kernels too. Defaults to False.

    Example, an optimizer whose steps all have the length of the learning rate:

    >>> class NormalizedSGD(keras.optimizers.SGD):
    ...     "Moves kernels by `learning_rate` along the mean gradient; all else as SGD."
    >>> @optimizers.register_rule(NormalizedSGD)
    ... class NormalizedMomentum(optimizers.Rule):
    ...     def __init__(self, optimizer):
    ...         super().__init__(optimizer)
    ...         self.state = {"mean": "tangent"}
    ...         self.decay = 0.9
    ...     def direction(self, gradient, state, point, learning_rate, step):
    ...         mean = state["mean"].plus(gradient)
    ...         scale = 1.0 / (tf.sqrt(mean.squared_norm()) + 1e-12)
    ...         direction = optimizers.Direction(mean.scaled(scale), gradient_weight=scale)
    ...         return direction, {"mean": mean}
    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    >>> model.compile(NormalizedSGD(0.01), "mse")
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0)
    """

    takes_rows: bool = False
    takes_tucker: bool = False

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.optimizer = optimizer
        self.state: dict[str, str] = {}
        self.decay = 1.0

    def check(self) -> None:
        """Raises ValueError for an option of the optimizer that has no meaning here."""

    def of_layer(self, path: str) -> Rule:
        """The rule of one layer: this one, unless the optimizer excludes the layer.

        `check` and `step_size` of this rule hold for all layers: another rule gives its directions
        in units of this step size.

        Args:
            path: str, the path of the layer's weight in Keras, such as `dense/kernel`.
        """
        return self

    @property
    def weight_decay(self) -> float | None:
        """The weight decay of the layers with this rule."""
        return self.optimizer.weight_decay

    def step_size(self, learning_rate: Float, step: Float) -> Float:
        """Returns h of the step `W - h D`.

        Args:
            learning_rate: scalar tensor, the present learning rate.
            step: scalar float tensor, the number of this step: 1, 2, ...
        """
        return learning_rate

    def direction(
        self, gradient: TangentVector, state: State, point: Chart, learning_rate: Float, step: Float
    ) -> tuple[Direction, State]:
        """Returns the `Direction` of a step, and the new state.

        Args:
            gradient: `TangentVector`, the tangent gradient, clipped.
            state: dict, the last state, with tangent vectors transported to `point` and multiplied
                with `decay`.
            point: `Chart` at W. `point.U` and `point.V` are its bases, orthonormal at full steps
                and nearly so in between.
            learning_rate: scalar tensor, as in `step_size`.
            step: scalar float tensor, as in `step_size`.

        Returns:
            `(Direction, dict)`.
        """
        # Abstract: there is no direction to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `direction`.")


_RULES: dict[type, type[Rule]] = {}
_RuleType = TypeVar("_RuleType", bound=type[Rule])


def register_rule(*optimizers: type) -> Callable[[_RuleType], _RuleType]:
    """Decorator: registers a class as the `Rule` of these classes of Keras optimizers.

    It also holds for subclasses that only change how they are constructed and saved.

    Example:

    >>> class Slower(keras.optimizers.SGD):
    ...     "SGD, with half of its learning rate in low-rank layers."
    >>> @optimizers.register_rule(Slower)
    ... class SlowerRule(optimizers.Rule):
    ...     def direction(self, gradient, state, point, learning_rate, step):
    ...         return optimizers.Direction(gradient.scaled(0.5), gradient_weight=0.5), state
    """

    def register(rule: _RuleType) -> _RuleType:
        _RULES.update(dict.fromkeys(optimizers, rule))
        return rule

    return register


def known_optimizers() -> list[str]:
    """The names of the optimizers that have a rule, sorted."""
    return sorted(optimizer.__name__ for optimizer in _RULES)


_NO_PART_OF_A_STEP = {"get_config", "from_config"}


def rule_class(optimizer: keras.optimizers.Optimizer) -> type[Rule] | None:
    """The class of the rule of an optimizer, or None.

    A subclass has the rule of its base if it only changes how it is constructed and saved.
    """
    for cls in type(optimizer).__mro__:
        if cls in _RULES:
            return _RULES[cls]
        own = {name for name in vars(cls) if not name.startswith("__")} - _NO_PART_OF_A_STEP
        if any(hasattr(super(cls, optimizer), name) for name in own):
            return None
    return None
