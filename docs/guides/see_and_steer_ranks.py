# %% [markdown]
# # See and steer the ranks
#
# Ranks are numbers like a loss: watch them, bound them, freeze them, or give them a budget.

# %%
import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from keras_lowrank import Budget, LowRankDense, LowRankModel, Tolerance, callbacks

digits = load_digits()
x, y = digits.data.astype("float32") / 16, digits.target


def network(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = LowRankDense(256, activation="relu", name="first", rank=48, **options)(inputs)
    hidden = LowRankDense(256, activation="relu", name="second", rank=48)(hidden)
    return LowRankModel(inputs, keras.layers.Dense(10, activation="softmax", name="head")(hidden))


def train(model, truncation, *watching):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        truncation=truncation,
    )
    history = callbacks.RankHistory()
    model.fit(x, y, epochs=8, batch_size=64, verbose=0, callbacks=[history, *watching])
    return history


# %% [markdown]
# ## Spectra before and after

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
model = network()
callbacks.plot_spectrum(model, ax=axes[0]).set_title("before training")
history = train(model, 0.4)
callbacks.plot_spectrum(model, ax=axes[1]).set_title("after, tolerance 0.4")
plt.show()

# %% [markdown]
# ## Bounds of one layer
#
# `min_rank` and `max_rank` hold in training; `truncation` of a layer takes the place of the
# model's.

# %%
bounded = network(min_rank=24, truncation=0.6)
callbacks.plot_ranks(train(bounded, 0.4))
plt.title("first: at least 24")
plt.show()

# %% [markdown]
# ## A tolerance that rises, a budget that is met
#
# Both leave high ranks to the first steps. The budget ends at a size that you know.

# %%
rising = keras.optimizers.schedules.PolynomialDecay(0.0, 150, 0.4)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
for ax, truncation in zip(axes, (Tolerance(rising), Budget(compression=0.8, steps=150))):
    model = network()
    callbacks.plot_ranks(train(model, truncation), ax=ax)
    count = model.compression()
    ax.set_title(f"{type(truncation).__name__}: {count.saved(count.factored):.0%} saved")
plt.show()

# %% [markdown]
# ## Freeze
#
# `FreezeRanks` freezes all ranks once none has moved for some epochs, and `model.freeze_ranks()` at
# once. Steps are then cheaper, and can be compiled with XLA.

# %%
model = network()
train(model, 0.4, callbacks.FreezeRanks(patience=2))
print(model.ranks)
model.unfreeze_ranks()
