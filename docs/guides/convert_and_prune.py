# %% [markdown]
# # Convert and prune a trained model
#
# Cut a trained Keras model by truncated SVD, and fine-tune it on the manifold of low-rank matrices.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_lowrank

keras.utils.set_random_seed(0)
digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data.astype("float32") / 16, digits.target, test_size=0.25, random_state=0
)
trained = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(256, activation="relu", name="first"),
        keras.layers.Dense(256, activation="relu", name="second"),
        keras.layers.Dense(10, activation="softmax", name="head"),
    ]
)


def compile_and_test(model, **options):
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model.evaluate(x_test, y_test, verbose=0)[1]


compile_and_test(trained)
trained.fit(x_train, y_train, epochs=10, verbose=0)
print(f"trained: {compile_and_test(trained):.1%}")

# %% [markdown]
# ## What is in the kernels
#
# The singular values say what a cut costs: what is left out of a kernel is the norm of their tail.

# %%
fig, ax = plt.subplots(layout="constrained")
for layer in trained.layers:
    values = np.linalg.svd(layer.kernel.numpy(), compute_uv=False)
    ax.semilogy(np.arange(1, len(values) + 1), values, marker=".", label=layer.name)
ax.set(xlabel="index", ylabel="singular value")
ax.legend()
plt.show()

# %% [markdown]
# ## Cut
#
# A `budget` is a number of weights for the whole model. `data` weighs the error by what the layers
# see, which keeps more accuracy at the same size.

# %%
budget = 8_000
cut = keras_lowrank.from_keras(trained, budget=budget, exclude="head")
weighted = keras_lowrank.from_keras(trained, budget=budget, exclude="head", data=x_train)
print(f"cut:            {compile_and_test(cut):.1%}  {cut.ranks}")
print(f"cut, with data: {compile_and_test(weighted):.1%}  {weighted.ranks}")
print(weighted.compression())

# %% [markdown]
# ## A kernel and its low-rank picture

# %%
layer = weighted.get_layer("first")
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for ax, (title, kernel) in zip(
    axes,
    {
        "kernel, first 64 columns": trained.get_layer("first").kernel.numpy(),
        f"rank {layer.rank}": layer.kernel.numpy(),
    }.items(),
):
    picture = ax.imshow(kernel[:, :64], cmap="coolwarm", vmin=-0.4, vmax=0.4)
    ax.set(title=title, xlabel="output", ylabel="input")
fig.colorbar(picture, ax=axes, label="weight")
plt.show()

# %% [markdown]
# ## Fine-tune
#
# `KeepRank` holds the ranks of the cut, so that the size stays.

# %%
compile_and_test(weighted, truncation=keras_lowrank.KeepRank())
weighted.fit(x_train, y_train, epochs=5, verbose=0)
print(f"after fine-tuning: {weighted.evaluate(x_test, y_test, verbose=0)[1]:.1%}")

# %% [markdown]
# `to_keras` leads back to plain Keras layers, two for each low-rank one where that is smaller:

# %%
plain = keras_lowrank.to_keras(weighted)
plain.summary()
print(float(np.max(np.abs(plain.predict(x_test, verbose=0) - weighted.predict(x_test, verbose=0)))))

# %% [markdown]
# The same from a shell, after `trained.save("model.keras")`. The page that the first command writes
# has a slider over sizes, and shows the second:
#
#     python -m keras_lowrank inspect model.keras --html report.html
#     python -m keras_lowrank convert model.keras low_rank.keras --budget=8000 --exclude=head
