# %% [markdown]
# # Train from scratch
#
# Write low-rank layers in place of Keras's, and `fit` as ever. Here two networks read the 8 x 8
# digits of scikit-learn, which need no download: one at full rank, one low-rank.

# %%
import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_lowrank
from keras_lowrank import LowRankDense, LowRankModel, callbacks

keras.utils.set_random_seed(0)
digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data.astype("float32") / 16, digits.target, test_size=0.25, random_state=0
)


def network(dense, model, **rank):
    inputs = keras.Input((64,))
    x = dense(512, activation="relu", name="first", **rank)(inputs)
    x = dense(512, activation="relu", name="second", **rank)(x)
    return model(inputs, keras.layers.Dense(10, activation="softmax", name="head")(x))


def train(model, **options):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **options,
    )
    watch = callbacks.RankHistory()
    model.fit(
        x_train,
        y_train,
        epochs=8,
        batch_size=64,
        verbose=0,
        callbacks=[watch] if isinstance(model, LowRankModel) else [],
    )
    return model.evaluate(x_test, y_test, verbose=0)[1], watch


# %% [markdown]
# Ranks start at 64. In every full step, each layer drops the singular values that make less than
# `truncation` of its norm.

# %%
full = network(keras.layers.Dense, keras.Model)
full_accuracy, _ = train(full)

low = network(LowRankDense, LowRankModel, rank=64)
accuracy, history = train(low, truncation=0.4)

print(f"full rank: {full_accuracy:.1%}   low-rank: {accuracy:.1%}")
print(low.ranks)
print(low.compression())

# %% [markdown]
# ## Ranks over epochs

# %%
callbacks.plot_ranks(history)
plt.show()

# %% [markdown]
# ## Accuracy against weights
#
# One training for each tolerance: a higher one gives fewer weights, and in the end less accuracy.

# %%
fig, ax = plt.subplots(layout="constrained")
weights = keras_lowrank.count_weights(full).full
ax.scatter(weights, 100 * full_accuracy, marker="s", label="full rank")
ax.scatter(low.compression().factored, 100 * accuracy, label="tolerance 0.4")
for tolerance in (0.2, 0.6):
    keras.utils.set_random_seed(0)
    model = network(LowRankDense, LowRankModel, rank=64)
    reached, _ = train(model, truncation=tolerance)
    ax.scatter(model.compression().factored, 100 * reached, label=f"tolerance {tolerance}")
ax.set(xlabel="weights", ylabel="test accuracy, %")
ax.legend()
ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# Next: [how to choose](../choosing.md) a tolerance, an integrator and an optimizer, with figures
# from larger networks.
