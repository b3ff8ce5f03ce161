# %% [markdown]
# # Fine-tune with adapters
#
# A network has learned the digits 0 to 4. Teach it 5 to 9, by low-rank changes beside kernels that
# stay as they are. The changes find their ranks, and go into a file of their own.

# %%
import pathlib
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_lowrank import add_adapters, callbacks, load_adapters, merge_adapters

digits = load_digits()
x, y = digits.images[..., None].astype("float32") / 16, digits.target
x, x_test, y, y_test = train_test_split(x, y, test_size=0.25, random_state=0)
low, high = y < 5, y >= 5


def network():
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(32, 3, activation="relu", name="first")(inputs)
    hidden = keras.layers.Conv2D(64, 3, activation="relu", name="second")(hidden)
    hidden = keras.layers.Dense(128, activation="relu", name="wide")(keras.layers.Flatten()(hidden))
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="head")(hidden))


def compiled(model, **options):
    adam = keras.optimizers.Adam(3e-3)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def show_accuracy(model):
    for name, chosen in ("0 to 4", y_test < 5), ("5 to 9", y_test >= 5):
        accuracy = np.mean(model.predict(x_test[chosen], verbose=0).argmax(-1) == y_test[chosen])
        print(f"{name}: {accuracy:.1%}")


keras.utils.set_random_seed(0)
base = compiled(network())
base.fit(x[low], y[low], epochs=8, batch_size=32, verbose=0)
show_accuracy(base)


# %% [markdown]
# ## Add, and train
#
# `add_adapters` changes the model in place. It computes what it did until the first step. The head
# is trained as a whole: what it knows of 5 to 9 is that they do not occur.


# %%
def copy_of(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


model = copy_of(base)
adapters = add_adapters(model, rank=4, max_rank=12, exclude="head", trainable="head", name="high")
assert np.array_equal(model(x[:8]), base(x[:8]))

compiled(model, truncation=0.1)
history = callbacks.RankHistory()
model.fit(x[high], y[high], epochs=16, batch_size=32, verbose=0, callbacks=[history])
show_accuracy(model)
print(adapters.report())

# %% [markdown]
# ## The ranks that were needed
#
# Left: each change grows until the tolerance is met. Right: the singular values of the changes at
# the end.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
callbacks.plot_ranks(history, ax=axes[0]).set_title("ranks while training")
callbacks.plot_spectrum(model, ax=axes[1]).set_title("spectra of the changes")
plt.show()

# %% [markdown]
# ## Switch, keep, merge
#
# Without the changes the model is the base, bit for bit. The file holds the changes and the head.

# %%
with adapters.disabled():
    show_accuracy(model)

folder = pathlib.Path(tempfile.mkdtemp())
adapters.save(folder / "high.adapters.h5")
fresh = copy_of(base)
load_adapters(fresh, folder / "high.adapters.h5")
assert np.array_equal(fresh(x[:8]), model(x[:8]))

merge_adapters(fresh)
print(type(fresh).__name__, [type(layer).__name__ for layer in fresh.layers])
fresh.save(folder / "merged.keras")

# %% [markdown]
# The command line does the same with files:
#
#     python -m keras_lowrank adapters high.adapters.h5
#     python -m keras_lowrank merge base.keras high.adapters.h5 merged.keras
#
# [Adapters in detail](../fine-tuning.md) has bases in int8, budgets, several sets of adapters at
# once, and a comparison with LoRA.
