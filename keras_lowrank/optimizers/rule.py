"""What an optimizer means for a low-rank matrix: the extension point for rules of your own."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold.tangent_vector import TangentVector

# Kinds of state, see `Rule.state`.
TANGENT, ROWS, COLUMNS, SCALAR = "tangent", "rows", "columns", "scalar"

# The sum of gradients under `gradient_accumulation_steps`, kept as a tangent vector, too.
ACCUMULATED = "accumulated_gradient"


class Direction(NamedTuple):
    """Where a step goes: `W - h D`.

    Attributes:
        tangent: `TangentVector` D.
        gradient_weight: scalar, how much of the gradient G of this step is in D. What an integrator
            sees of G outside of the tangent space is added in the same proportion. None: the update
            is not linear in the gradient, so nothing outside the tangent space is added.
        rows: tensor p, shape `(n,)`, or None.
        columns: tensor q, shape `(m,)`, or None. With both, what is added of G is
            `gradient_weight diag(p) G diag(q)`.
    """

    tangent: TangentVector
    gradient_weight: tf.Tensor | float | None = 1.0
    rows: tf.Tensor | None = None
    columns: tf.Tensor | None = None


class Rule:
    """How the factors of every low-rank layer follow a compiled Keras optimizer.

    Subclass it for an optimizer of your own: name its state, implement `direction`, and announce
    the rule by `@keras_lowrank.optimizers.register_rule(MyOptimizer)`. Learning rate, schedules,
    `clipnorm`, `global_clipnorm`, `weight_decay`, loss scaling and gradient accumulation are dealt
    with outside of it. All operations must be traceable and free of side effects: the package
    keeps the state, discards it with a step that is not finite, saves it with the optimizer, and
    carries tangent vectors to the tangent space of the next step. `diagnostics.check_rule` tests a
    rule.

    Attributes:
        optimizer: the Keras optimizer.
        state: dict from str to the kind of what is kept for each matrix: `"tangent"` (a
            `TangentVector`), `"rows"` (shape `(n,)`), `"columns"` (shape `(m,)`) or `"scalar"`.
            All start at zero.
        decay: float. What tangent vectors are multiplied with on their way to the next step, at no
            cost: the mu of `mu P(M)`. Defaults to 1.
        takes_rows: bool. Whether `direction` takes a gradient whose K-part is given by its rows
            (`tf.IndexedSlices`), which is what an embedding has of a batch, and puts none into the
            state: a rule does that works by the methods of `TangentVector`. Defaults to False.

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

    takes_rows = False

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.state = {}
        self.decay = 1.0

    def check(self):
        """Raises ValueError for an option of the optimizer that has no meaning here."""

    def of_layer(self, path):
        """The rule of one layer: this one, but for what the optimizer is set to treat otherwise.

        `check` and `step_size` of this one are for all: another rule has its directions in units
        of this step size.

        Args:
            path: str, what the path of the layer's weight is in Keras, such as `dense/kernel`.
        """
        return self

    @property
    def weight_decay(self):
        """float or None, the decay of the weights that move by this rule."""
        return self.optimizer.weight_decay

    def step_size(self, learning_rate, step):
        """Returns h of the step `W - h D`.

        Args:
            learning_rate: scalar tensor, the present one.
            step: scalar float tensor, the number of this step: 1, 2, ...
        """
        return learning_rate

    def direction(self, gradient, state, point, learning_rate, step):
        """Returns the `Direction` of a step, and the new state.

        Args:
            gradient: `TangentVector`, the tangent gradient, clipped.
            state: dict, what `direction` returned last, with tangent vectors carried to `point`,
                and multiplied with `decay`.
            point: where W is: `point.U` and `point.V` are bases of it, orthonormal up to rounding
                at full steps, and nearly so between them.
            learning_rate: scalar tensor, as in `step_size`.
            step: scalar float tensor, as in `step_size`.

        Returns:
            `(Direction, dict)`.
        """
        # Abstract: a rule is its direction, and there is none to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `direction`.")


_RULES = {}


def register_rule(*optimizers):
    """Decorator: the class is the `Rule` of these classes of Keras optimizers.

    And of subclasses that override nothing but how they are made and saved.
    """

    def register(rule):
        _RULES.update(dict.fromkeys(optimizers, rule))
        return rule

    return register


def known_optimizers():
    """The names of the optimizers that have a rule, sorted."""
    return sorted(optimizer.__name__ for optimizer in _RULES)


_NO_PART_OF_A_STEP = {"get_config", "from_config"}


def rule_class(optimizer):
    """The class of the rule of an optimizer, or None.

    A subclass has that of its base where it steps as its base does: it overrides nothing but how it
    is made and saved.
    """
    for cls in type(optimizer).__mro__:
        if cls in _RULES:
            return _RULES[cls]
        own = {name for name in vars(cls) if not name.startswith("__")} - _NO_PART_OF_A_STEP
        if any(hasattr(super(cls, optimizer), name) for name in own):
            return None
    return None
