"""Gradient descent on the manifold, with or without momentum."""

import keras

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.optimizers.rule import TANGENT, Direction, Float, Rule, State, register_rule


@register_rule(keras.optimizers.SGD)
class GradientDescentRule(Rule):
    r"""`keras.optimizers.SGD`: `D = G`, or with momentum mu the tangent vector

        M <- mu P(M) + h G,    W <- W - M    (Nesterov: W <- W - mu M - h G),

    where P projects from the last tangent space onto the present one. At full rank it is Keras's
    own step.
    """

    takes_rows = takes_tucker = True

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        super().__init__(optimizer)
        self.momentum = float(optimizer.momentum)
        self.state = {"momentum": TANGENT} if self.momentum else {}
        self.decay = self.momentum

    def step_size(self, learning_rate: Float, step: Float) -> Float:
        # As in Keras, the momentum contains each learning rate.
        return 1.0 if self.momentum else learning_rate

    def direction(
        self, gradient: TangentVector, state: State, point: Chart, learning_rate: Float, step: Float
    ) -> tuple[Direction, State]:
        if not self.momentum:
            return Direction(gradient), state
        update = gradient.scaled(learning_rate)
        momentum = state["momentum"].plus(update)
        new = {"momentum": momentum}
        if self.optimizer.nesterov:
            ahead = momentum.scaled(self.momentum).plus(update)
            return Direction(ahead, (1.0 + self.momentum) * learning_rate), new
        return Direction(momentum, learning_rate), new
