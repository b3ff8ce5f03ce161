# %% [markdown]
# # A layer, a rule, an integrator of your own
#
# Each is one class with one or two methods. `keras_lowrank.diagnostics` tests each numerically and
# says in plain words what is wrong with it.

# %%
import keras
import numpy as np
import tensorflow as tf

import keras_lowrank
from keras_lowrank import LowRankModel, diagnostics, integrators, optimizers

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).standard_normal((256, 12)).astype("float32")
y = np.tanh(x[:, :4])

# %% [markdown]
# ## A layer
#
# A layer type is `project`: how inputs are multiplied with a matrix. It must be linear in both.
# This one multiplies every input with a sign first.

# %%


@keras.saving.register_keras_serializable("my_package")
class SignedDense(keras_lowrank.LowRankLayer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.signs = (-1.0) ** np.arange(input_shape[-1])
        self.build_factors((input_shape[-1], self.units))

    def project(self, inputs, basis):  # basis has shape (n, k)
        return keras.ops.matmul(inputs * keras.ops.cast(self.signs, inputs.dtype), basis)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


print(diagnostics.check_layer(SignedDense(8, rank=4), x[:2]))

# %% [markdown]
# What a fault looks like: this `project` adds a bias.

# %%


class Biased(SignedDense):
    def project(self, inputs, basis):
        return super().project(inputs, basis) + 1.0


try:
    diagnostics.check_layer(Biased(8, rank=4), x[:2])
except ValueError as error:
    print(error)

# %% [markdown]
# ## An optimizer rule
#
# A `Rule` says what a Keras optimizer means for a low-rank matrix. Its gradients and directions are
# tangent vectors, so the answer must not depend on the bases that the factors happen to have.

# %%


class NormalizedSGD(keras.optimizers.SGD):
    """Moves low-rank kernels by the learning rate along the mean gradient; all else as SGD."""


@optimizers.register_rule(NormalizedSGD)
class NormalizedRule(optimizers.Rule):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.state = {"mean": "tangent"}
        self.decay = 0.9

    def direction(self, gradient, state, point, learning_rate, step):
        mean = state["mean"].plus(gradient)
        scale = 1.0 / (tf.sqrt(mean.squared_norm()) + 1e-12)
        return optimizers.Direction(mean.scaled(scale), gradient_weight=scale), {"mean": mean}


print(diagnostics.check_rule(NormalizedRule(NormalizedSGD())))

# %% [markdown]
# ## A truncation

# %%


@keras.saving.register_keras_serializable("my_package")
class AboveNoise(keras_lowrank.Truncation):
    """Keeps the singular values above a tenth of the largest."""

    def rank(self, singular_values, current):
        return tf.math.count_nonzero(singular_values > 0.1 * singular_values[0], dtype=tf.int32)


# %% [markdown]
# ## An integrator
#
# A step takes factors and directions, and returns new factors. This one augments the bases, moves
# the core and truncates, as the papers do, and never lets a rank grow.

# %%


@keras.saving.register_keras_serializable("my_package")
class Shrinking(keras_lowrank.Integrator):
    def step(self, problem):  # a full step of all matrices
        matrices = zip(problem.factors, problem.direction(), problem.policies)
        return [self.move(f, d, problem.step_size, policy) for f, d, policy in matrices]

    def move(self, factors, direction, step_size, policy):
        augmented = integrators.augment(factors, direction)
        core = integrators.moved_core(augmented, step_size)
        most = policy.most(tf.shape(factors.S)[0])
        return integrators.truncate(augmented, core, policy._replace(max_rank=most))


print(diagnostics.check_retraction(Shrinking()))

# %% [markdown]
# ## All of them

# %%
inputs = keras.Input((12,))
hidden = SignedDense(32, rank=8, activation="tanh", name="signed")(inputs)
model = LowRankModel(inputs, keras.layers.Dense(4, name="head")(hidden))
model.compile(NormalizedSGD(0.05), "mse", integrator=Shrinking(), truncation=AboveNoise())
history = model.fit(x, y, epochs=10, verbose=0)
print(history.history["loss"][0], "->", history.history["loss"][-1], model.ranks)
