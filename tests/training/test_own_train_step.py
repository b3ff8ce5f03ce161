"""A `train_step` of the user's own, and loops around `model.optimizer`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel, RankAdaptive

rng = np.random.default_rng(0)
X = rng.standard_normal((32, 8)).astype("float32")
Y = rng.standard_normal((32, 3)).astype("float32")


class Unbuilt(LowRankModel):
    """Its layers are made when it is first called."""

    def __init__(self):
        super().__init__()
        self.low = LowRankDense(6, rank=4, name="low")
        self.head = keras.layers.Dense(3)

    def call(self, inputs):
        return self.head(self.low(inputs))


def apply_all(model, x, y):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=y, y_pred=model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply(gradients, model.trainable_variables)
    return loss


class AppliesAll(Unbuilt):
    def train_step(self, data):
        return {"loss": apply_all(self, *data[:2])}


def kernel(model):
    return model.low.kernel.numpy()


def trained(cls, step, optimizer="adam", batches=4, **arguments):
    keras.utils.set_random_seed(0)
    model = cls()
    model.compile(optimizer, "mse", **arguments)
    for _ in range(batches):
        step(model)
    return model


# What reaches `super().train_step` is what the model is built on.


def one_hot(self, data):
    return data["x"], tf.one_hot(data["label"], 3)


def mixed(self, data):
    x, y = data["x"], tf.one_hot(data["label"], 3)
    order = tf.random.shuffle(tf.range(tf.shape(x)[0]))
    return 0.5 * (x + tf.gather(x, order)), 0.5 * (y + tf.gather(y, order))


def cropped(self, data):
    return data["wide"][:, 1:9], data["x"][:, :3], tf.ones(tf.shape(data["x"])[:1])


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("prepare", [one_hot, mixed, cropped])
def test_a_batch_that_is_prepared_first(prepare, eager):
    class Prepares(Unbuilt):
        def train_step(self, data):
            return super().train_step(prepare(self, data))

    model = Prepares()
    model.compile("adam", "mse", run_eagerly=eager)
    data = {"x": X, "label": np.arange(32) % 3, "wide": np.pad(X, [(0, 0), (1, 1)])}
    batches = tf.data.Dataset.from_tensor_slices(data).batch(32)
    for _ in range(2):
        assert np.isfinite(model.fit(batches, verbose=0).history["loss"][0])
    assert list(model.ranks) == ["low"] and model._training.state.holds("low")


def test_four_parts_and_nothing_but_a_tensor():
    class Four(Unbuilt):
        def train_step(self, data):
            x, y, scale, shift = data
            return super().train_step((x, scale * y + shift))

    class Reconstructs(Unbuilt):
        def train_step(self, data):
            return super().train_step((data, data[:, :3]))

    for cls, parts in ((Four, (X, Y, Y, Y)), (Reconstructs, X)):
        model = cls()
        model.compile("sgd", "mse")
        model.fit(tf.data.Dataset.from_tensor_slices(parts).batch(32), verbose=0)
        assert model._training.state.holds("low")


# Gradients of all variables, given to the compiled optimizer.


def test_a_loop_over_all_variables_is_the_step_of_fit():
    """In a trace and eagerly, in `fit` and outside: the same matrices as `fit` has."""

    def on_batch(model):
        model.train_on_batch(X, Y)

    def outside(model):
        model.built or model(X)
        apply_all(model, X, Y)

    wanted = trained(Unbuilt, on_batch, run_eagerly=True, truncation=0.5)
    found = [
        trained(Unbuilt, on_batch, truncation=0.5),
        trained(Unbuilt, outside, truncation=0.5),
        trained(AppliesAll, on_batch, run_eagerly=True, truncation=0.5),
        trained(AppliesAll, on_batch, truncation=0.5),
    ]
    for model in found:
        np.testing.assert_allclose(kernel(model), kernel(wanted), rtol=1e-4, atol=1e-5)
        assert int(model.optimizer.iterations) == 4


def test_some_variables_alone():
    model = trained(Unbuilt, lambda model: model(X), batches=1)
    low, head = model.low, model.head
    before = kernel(model), head.kernel.numpy()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(X) - Y))
    of_low, of_head = tape.gradient(loss, (low.trainable_variables, head.trainable_variables))
    model.optimizer.apply(grads=of_low, trainable_variables=low.trainable_variables)
    assert np.any(kernel(model) != before[0])
    np.testing.assert_array_equal(head.kernel, before[1])
    before = kernel(model)
    model.optimizer.apply_gradients(zip(of_head, head.trainable_variables))
    np.testing.assert_array_equal(kernel(model), before)
    assert int(model.optimizer.iterations) == 2


def test_a_loss_that_is_scaled():
    class Scales(Unbuilt):
        def train_step(self, data):
            x, y, _ = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.trainable_variables)
            self.optimizer.apply(gradients)
            return {"loss": loss}

    def on_batch(model):
        model.train_on_batch(X, Y)

    optimizers = [keras.optimizers.SGD(0.1) for _ in range(2)]
    scaling = keras.optimizers.LossScaleOptimizer(optimizers[0], initial_scale=64.0)
    found = [
        trained(cls, on_batch, one, batches=2, run_eagerly=True)
        for cls, one in ((Scales, scaling), (Unbuilt, optimizers[1]))
    ]
    np.testing.assert_allclose(*map(kernel, found), rtol=1e-4, atol=1e-6)


def test_what_is_not_finite_is_an_error_and_nothing_of_it_is_kept():
    model = trained(AppliesAll, lambda model: model.train_on_batch(X, Y), batches=1)
    before = [v.numpy() for v in model.trainable_variables]
    with pytest.raises(FloatingPointError, match=r"not finite .* in the gradient of"):
        model.train_on_batch(np.nan * X, Y)
    with pytest.raises(FloatingPointError, match="not finite"):
        apply_all(model, np.nan * X, Y)
    for variable, value in zip(model.trainable_variables, before):
        np.testing.assert_array_equal(variable, value)


def test_where_the_compiled_optimizer_cannot_step():
    model = trained(Unbuilt, lambda model: model(X), batches=1)
    with pytest.raises(ValueError, match=r"traced loop.*train_on_batch.*\['low'\]"):
        tf.function(lambda: apply_all(model, X, Y), autograph=False)()
    model.compile("sgd", "mse", integrator=RankAdaptive(adapt_every=1))
    with pytest.raises(ValueError, match="larger `adapt_every`.*Received: .*RankAdaptive"):
        apply_all(model, X, Y)


def test_another_optimizer_has_three_ordinary_weights():
    model = trained(Unbuilt, lambda model: model(X), batches=1, integrator="rank_adaptive")
    other = keras.optimizers.Adam(0.01)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(X) - Y))
        other.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(5)]
    assert losses[-1] < losses[0] and model.ranks == {"low": 4}


# Names.


def test_a_subclass_may_use_any_name():
    """All that is ours is public and documented, or begins with an underscore."""
    ours = {name for name in dir(LowRankModel) if not name.startswith("_")}
    model = trained(Unbuilt, lambda model: model.train_on_batch(X, Y), batches=1, run_eagerly=True)
    plain = keras.Sequential([keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    attributes = {name for name in vars(model) if not name.startswith("_")} - set(vars(plain))
    public = {"compression", "freeze_ranks", "unfreeze_ranks", "ranks", "ranks_frozen"}
    assert ours - set(dir(keras.Model)) == public
    assert attributes == {"integrator", "truncation", "low", "head"}


def test_names_that_once_were_taken():
    class Mine(Unbuilt):
        def __init__(self):
            super().__init__()
            self.policies, self.rule, self.faults = ["mine"], "mine", None
            self.stand_in = self.optimizer_state = self.other_variables = 1

        def prepare(self):
            return "mine"

    model = trained(Mine, lambda model: model.train_on_batch(X, Y), batches=1)
    assert model.policies == ["mine"] and model.prepare() == "mine"
