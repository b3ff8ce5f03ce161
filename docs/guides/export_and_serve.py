# %% [markdown]
# # Export and serve
#
# `model.export` writes a SavedModel, a LiteRT file or an ONNX file, and compares each with the
# model before it puts it in place. None of them needs Keras or this package.

# %%
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

from keras_lowrank import LowRankDense, LowRankModel

keras.utils.set_random_seed(0)
digits = load_digits()
images, labels = digits.images.astype("float32"), digits.target
train, test = slice(None, 1300), slice(1300, None)

inputs = keras.Input((8, 8), name="image")
x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 16)(inputs))
x = LowRankDense(256, rank=16, activation="relu", name="hidden")(x)
model = LowRankModel(inputs, keras.layers.Dense(10, activation="softmax", name="scores")(x))
model.compile(
    keras.optimizers.SGD(0.05, momentum=0.9),
    "sparse_categorical_crossentropy",
    metrics=["accuracy"],
    truncation=0.2,
)
model.fit(images[train], labels[train], epochs=10, verbose=0)
print(f"{model.evaluate(images[test], labels[test], verbose=0)[1]:.1%}", model.ranks)

# %% [markdown]
# ## For a server
#
# The folder is named as TensorFlow Serving reads it: a model, and in it a version. With
# `class_labels` the answer has the label beside the scores.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
model.export(folder / "digits/1", class_labels=list("0123456789"))

served = tf.saved_model.load(folder / "digits/1").signatures["serving_default"]
answer = served(image=tf.constant(images[test][:5]))
print(answer["label"].numpy(), labels[test][:5])

# %% [markdown]
# ## For a phone
#
# Quantized to eight bits, with accuracy compared on data: `check_data` decides whether the file is
# put in place.

# %%
for quantization in (None, "dynamic_int8", "int8"):
    path = folder / f"digits_{quantization}.tflite"
    model.export(
        path,
        format="litert",
        quantization=quantization,
        representative_data=images[train][:200] if quantization == "int8" else None,
        check_data=(images[test], labels[test]),
    )

# %% [markdown]
# The file runs with LiteRT alone, the package `ai-edge-litert`:

# %%
runner = Interpreter(str(folder / "digits_int8.tflite")).get_signature_runner()
(scores,) = runner(image=images[test][:5]).values()
print(np.argmax(scores, axis=-1), labels[test][:5])

# %% [markdown]
# ## What it costs
#
# `report=True` measures the file beside the same network at full rank.

# %%
report = model.export(folder / "measured.tflite", format="litert", report=True, verbose=False)
print(report)

# %% [markdown]
# [Serving](../serving.md) has requests to a server, ONNX, and every option. A browser needs a file
# of a fixed batch size: `batch_size=1`.
