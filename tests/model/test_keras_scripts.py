"""Scripts in the way of Keras's guides and examples: with our classes, not another word changes.

Each is a function of the classes that it uses, and runs with Keras's own first.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.manifold.factors import RankVariable

rng = np.random.default_rng(0)
X = rng.standard_normal((32, 8)).astype("float32")
Y = rng.standard_normal((32, 3)).astype("float32")
LABELS = rng.integers(0, 3, (32, 1))

CLASSES = pytest.mark.parametrize(
    "Model, Dense",
    [
        pytest.param(keras.Model, keras.layers.Dense, id="keras"),
        pytest.param(LowRankModel, LowRankDense, id="low-rank"),
    ],
)


def low_rank_layers(model):
    return [one for one in model._flatten_layers() if isinstance(one, LowRankDense)]


def assert_on_the_manifold(model):
    """After `fit`, whose last step is a full one: orthonormal bases, a diagonal core."""
    for layer in low_rank_layers(model):
        for basis in (layer.U.numpy(), layer.V.numpy()):
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
        core = layer.S.numpy()
        np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-6)


# A guide on `train_step`: its own loop, its own metrics, sample weights, its own `test_step`.


@CLASSES
def test_a_train_step_of_its_own(Model, Dense):
    class CustomModel(Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            trainable_vars = self.trainable_variables
            gradients = tape.gradient(loss, trainable_vars)
            self.optimizer.apply(gradients, trainable_vars)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {m.name: m.result() for m in self.metrics}

    inputs = keras.Input(shape=(8,))
    outputs = keras.layers.Dense(3)(Dense(6, activation="tanh")(inputs))
    model = CustomModel(inputs, outputs)
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    history = model.fit(X, Y, epochs=20, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] and "mae" in history
    assert_on_the_manifold(model)


@CLASSES
def test_a_lower_level_train_step_with_sample_weights(Model, Dense):
    class CustomModel(Model):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_tracker = keras.metrics.Mean(name="loss")
            self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")
            self.loss_fn = keras.losses.MeanSquaredError()

        def train_step(self, data):
            if len(data) == 3:
                x, y, sample_weight = data
            else:
                sample_weight = None
                x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.loss_fn(y, y_pred, sample_weight=sample_weight)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
            self.loss_tracker.update_state(loss)
            self.mae_metric.update_state(y, y_pred)
            return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

        def test_step(self, data):
            x, y = data
            y_pred = self(x, training=False)
            self.loss_tracker.update_state(self.loss_fn(y, y_pred))
            return {"loss": self.loss_tracker.result()}

        @property
        def metrics(self):
            return [self.loss_tracker, self.mae_metric]

    inputs = keras.Input(shape=(8,))
    model = CustomModel(inputs, Dense(3)(inputs))
    model.compile(optimizer="adam", run_eagerly=True)
    model.fit(X, Y, sample_weight=np.ones(32), epochs=5, verbose=0)
    model.fit(X, Y, epochs=1, verbose=0)
    assert np.isfinite(model.evaluate(X, Y, verbose=0))
    assert_on_the_manifold(model)


# A guide on callbacks: what they may do to a model.


@CLASSES
def test_callbacks_of_ones_own(Model, Dense):
    class PrintsLosses(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.seen = []

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append(logs["loss"])

    class EarlyStoppingAtMinLoss(keras.callbacks.Callback):
        def __init__(self, patience=0):
            super().__init__()
            self.patience = patience
            self.best_weights = None

        def on_train_begin(self, logs=None):
            self.wait, self.best = 0, np.inf

        def on_epoch_end(self, epoch, logs=None):
            if logs["loss"] < self.best:
                self.best, self.wait = logs["loss"], 0
                self.best_weights = self.model.get_weights()
            else:
                self.wait += 1
                if self.wait >= self.patience:
                    self.model.stop_training = True
                    self.model.set_weights(self.best_weights)

    class LearningRateScheduler(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            self.model.optimizer.learning_rate = 0.9 * learning_rate

    model = keras.Sequential()
    model.add(Dense(3))
    model.compile(optimizer=keras.optimizers.RMSprop(0.01), loss="mse", metrics=["mae"])
    callbacks = [PrintsLosses(), EarlyStoppingAtMinLoss(), LearningRateScheduler()]
    model.fit(X, Y, epochs=3, callbacks=callbacks, verbose=0)
    assert callbacks[0].seen

    inputs = keras.Input(shape=(8,))
    model = Model(inputs, Dense(3)(inputs))
    model.compile(optimizer=keras.optimizers.RMSprop(0.5), loss="mse", run_eagerly=True)
    model.fit(X, Y, epochs=5, batch_size=8, callbacks=callbacks, verbose=0)


# A distiller: another `compile`, and a loss that needs the inputs.


def distiller(Model):
    @keras.saving.register_keras_serializable("scripts")
    class Distiller(Model):
        def __init__(self, student, teacher):
            super().__init__()
            self.teacher = teacher
            self.student = student

        def compile(self, optimizer, metrics, student_loss_fn, distillation_loss_fn, alpha=0.1):
            super().compile(optimizer=optimizer, metrics=metrics)
            self.student_loss_fn = student_loss_fn
            self.distillation_loss_fn = distillation_loss_fn
            self.alpha = alpha

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, allow_empty=False):
            teacher_pred = self.teacher(x, training=False)
            student_loss = self.student_loss_fn(y, y_pred)
            distillation_loss = self.distillation_loss_fn(
                keras.ops.softmax(teacher_pred, axis=1), keras.ops.softmax(y_pred, axis=1)
            )
            return self.alpha * student_loss + (1 - self.alpha) * distillation_loss

        def call(self, x):
            return self.student(x)

        def get_config(self):
            return {"student": self.student, "teacher": self.teacher}

        @classmethod
        def from_config(cls, config):
            return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})

    return Distiller


@CLASSES
def test_a_distiller(Model, Dense, tmp_path):
    Distiller = distiller(Model)
    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)], name="teacher")
    student = keras.Sequential([keras.Input((8,)), Dense(6), keras.layers.Dense(3)], name="student")
    distiller_ = Distiller(student=student, teacher=teacher)
    teacher.trainable = False
    distiller_.compile(
        optimizer=keras.optimizers.Adam(0.01),
        metrics=[keras.metrics.SparseCategoricalAccuracy()],
        student_loss_fn=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        distillation_loss_fn=keras.losses.KLDivergence(),
        alpha=0.1,
    )
    before = teacher.get_weights()
    history = distiller_.fit(X, LABELS, epochs=10, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    for one, other in zip(teacher.get_weights(), before):
        np.testing.assert_array_equal(one, other)
    distiller_.evaluate(X, LABELS, verbose=0)
    assert_on_the_manifold(distiller_)

    path = tmp_path / "distiller.keras"
    distiller_.save(path)
    with pytest.warns(UserWarning, match=r"`compile\(\)` was not called"):
        loaded = keras.models.load_model(path)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), distiller_.predict(X, verbose=0), 1e-5)


# A variational autoencoder: no `call`, a loop over all weights.


@CLASSES
def test_a_variational_autoencoder(Model, Dense):
    class Sampling(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seed_generator = keras.random.SeedGenerator(1337)

        def call(self, inputs):
            z_mean, z_log_var = inputs
            epsilon = keras.random.normal(keras.ops.shape(z_mean), seed=self.seed_generator)
            return z_mean + keras.ops.exp(0.5 * z_log_var) * epsilon

    encoder_inputs = keras.Input(shape=(8,))
    x = Dense(6, activation="relu")(encoder_inputs)
    z_mean = keras.layers.Dense(2, name="z_mean")(x)
    z_log_var = keras.layers.Dense(2, name="z_log_var")(x)
    z = Sampling()([z_mean, z_log_var])
    encoder = Model(encoder_inputs, [z_mean, z_log_var, z], name="encoder")
    latent_inputs = keras.Input(shape=(2,))
    decoder = Model(latent_inputs, keras.layers.Dense(8)(Dense(6)(latent_inputs)), name="decoder")

    class VAE(Model):
        def __init__(self, encoder, decoder, **kwargs):
            super().__init__(**kwargs)
            self.encoder = encoder
            self.decoder = decoder
            self.total_loss_tracker = keras.metrics.Mean(name="total_loss")

        @property
        def metrics(self):
            return [self.total_loss_tracker]

        def train_step(self, data):
            with tf.GradientTape() as tape:
                z_mean, z_log_var, z = self.encoder(data)
                reconstruction = self.decoder(z)
                error = keras.ops.sum(keras.ops.square(data - reconstruction), axis=1)
                kl = -0.5 * (1 + z_log_var - keras.ops.square(z_mean) - keras.ops.exp(z_log_var))
                total_loss = keras.ops.mean(error) + keras.ops.mean(keras.ops.sum(kl, axis=1))
            grads = tape.gradient(total_loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(grads, self.trainable_weights))
            self.total_loss_tracker.update_state(total_loss)
            return {"loss": self.total_loss_tracker.result()}

    vae = VAE(encoder, decoder)
    vae.compile(optimizer=keras.optimizers.Adam(0.01))
    history = vae.fit(X, epochs=20, batch_size=16, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert_on_the_manifold(vae)


# A GAN: no `call`, two optimizers of its own, to which U, S and V are ordinary weights.


@CLASSES
def test_a_gan(Model, Dense):
    discriminator = keras.Sequential(
        [keras.Input((8,)), Dense(6, activation="relu"), keras.layers.Dense(1)],
        name="discriminator",
    )
    generator = keras.Sequential([Dense(6, activation="relu"), Dense(8)], name="generator")

    class GAN(Model):
        def __init__(self, discriminator, generator, latent_dim):
            super().__init__()
            self.discriminator = discriminator
            self.generator = generator
            self.latent_dim = latent_dim
            self.d_loss_tracker = keras.metrics.Mean(name="d_loss")
            self.seed_generator = keras.random.SeedGenerator(1337)

        @property
        def metrics(self):
            return [self.d_loss_tracker]

        def compile(self, d_optimizer, g_optimizer, loss_fn):
            super().compile()
            self.d_optimizer = d_optimizer
            self.g_optimizer = g_optimizer
            self.loss_fn = loss_fn

        def train_step(self, real_images):
            if isinstance(real_images, tuple):
                real_images = real_images[0]
            batch_size = tf.shape(real_images)[0]
            latent = keras.random.normal((batch_size, self.latent_dim), seed=self.seed_generator)
            combined = tf.concat([self.generator(latent), real_images], axis=0)
            labels = tf.concat([tf.ones((batch_size, 1)), tf.zeros((batch_size, 1))], axis=0)
            with tf.GradientTape() as tape:
                d_loss = self.loss_fn(labels, self.discriminator(combined))
            grads = tape.gradient(d_loss, self.discriminator.trainable_weights)
            self.d_optimizer.apply(grads, self.discriminator.trainable_weights)
            with tf.GradientTape() as tape:
                predictions = self.discriminator(self.generator(latent))
                g_loss = self.loss_fn(tf.zeros((batch_size, 1)), predictions)
            grads = tape.gradient(g_loss, self.generator.trainable_weights)
            self.g_optimizer.apply(grads, self.generator.trainable_weights)
            self.d_loss_tracker.update_state(d_loss)
            return {"d_loss": self.d_loss_tracker.result()}

    gan = GAN(discriminator=discriminator, generator=generator, latent_dim=4)
    gan.compile(
        d_optimizer=keras.optimizers.Adam(0.01),
        g_optimizer=keras.optimizers.Adam(0.01),
        loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    gan.fit(X, batch_size=16, epochs=2, verbose=0)
    before = [v.shape for v in gan.trainable_weights]
    gan.fit(X, batch_size=16, epochs=2, verbose=0)  # nothing of ours has touched what they train
    assert [v.shape for v in gan.trainable_weights] == before
    assert any(isinstance(v, RankVariable) for v in gan.trainable_weights) == (
        Dense is LowRankDense
    )
