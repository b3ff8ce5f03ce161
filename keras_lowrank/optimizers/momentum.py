"""Gradient descent on the manifold, with or without momentum."""

import keras

from keras_lowrank.optimizers.rule import TANGENT, Direction, Rule, register_rule


@register_rule(keras.optimizers.SGD)
class GradientDescentRule(Rule):
    r"""`keras.optimizers.SGD`: `D = G`, or with momentum mu the tangent vector

        M <- mu P(M) + h G,    W <- W - M    (Nesterov: W <- W - mu M - h G),

    P the projection from the last tangent space onto the present one. At full rank it is Keras's
    own step.
    """

    takes_rows = True

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.momentum = float(optimizer.momentum)
        self.state = {"momentum": TANGENT} if self.momentum else {}
        self.decay = self.momentum

    def step_size(self, learning_rate, step):
        # As in Keras, a step keeps the learning rate that it was made with.
        return 1.0 if self.momentum else learning_rate

    def direction(self, gradient, state, point, learning_rate, step):
        if not self.momentum:
            return Direction(gradient), state
        pull = gradient.scaled(learning_rate)
        moved = state["momentum"].plus(pull)
        if self.optimizer.nesterov:
            ahead = moved.scaled(self.momentum).plus(pull)
            return Direction(ahead, (1.0 + self.momentum) * learning_rate), {"momentum": moved}
        return Direction(moved, learning_rate), {"momentum": moved}
