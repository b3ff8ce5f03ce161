"""How small does quantisation make a LiteRT file, and what does it cost in accuracy?

LeNet5 on MNIST, trained low-rank to a budget of weights, and exported in every quantisation. The
report of each export has the size of the full-rank file in float.

    python benchmarks/quantization.py --data_dir ~/tensorflow_datasets
    python benchmarks/quantization.py --compression 0.95 --epochs 5
"""

import pathlib
import tempfile

import keras
import networks
import reporting
import tensorflow_datasets as tfds
from absl import flags

from keras_lowrank import Budget

COMPRESSION = flags.DEFINE_float("compression", 0.9, "The share of the weights to save.", 0.0, 0.99)
EPOCHS = flags.DEFINE_integer("epochs", 2, "Epochs of training.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 200, "Images to calibrate int8 with.", lower_bound=1)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of tensorflow-datasets. Without: its own, where it may download to."
)

_QUANTIZATIONS = (None, "float16", "dynamic_int8", "int8")
_BATCH = 128


def images(split):
    loaded = tfds.load(
        "mnist", split=split, data_dir=DATA_DIR.value, batch_size=-1, as_supervised=True
    )
    pixels, labels = tfds.as_numpy(loaded)
    return pixels.astype("float32") / 255.0, labels


def train(x, y):
    """Trains LeNet5 to `--compression`, met after half of the training."""
    model = networks.lenet5("parallel")
    steps = EPOCHS.value * -(-len(x) // _BATCH)
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, steps), momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        truncation=Budget(compression=COMPRESSION.value, steps=max(1, steps // 2)),
    )
    model.fit(x, y, batch_size=_BATCH, epochs=EPOCHS.value, verbose=2)
    return model


def main(_):
    x, y = images("train")
    model, test = train(x, y), images("test")
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for quantization in _QUANTIZATIONS:
            full_int8 = quantization == "int8"
            reports[quantization] = model.export(
                pathlib.Path(folder) / f"{quantization}.tflite",
                "litert",
                verbose=False,
                quantization=quantization,
                representative_data=x[: SAMPLES.value] if full_int8 else None,
                check_data=test,
                report=True,
            )
    rows = [
        {
            "quantization": quantization,
            "bytes": report.artefact.bytes,
            "our_float_over_it": reports[None].artefact.bytes / report.artefact.bytes,
            "full_rank_float_over_it": report.full_rank.bytes / report.artefact.bytes,
            "accuracy": 100.0 * report.accuracy,
            "points_lost": 100.0 * (report.model_accuracy - report.accuracy),
            "ms": report.artefact.milliseconds,
            "full_rank_ms": report.full_rank.milliseconds,
        }
        for quantization, report in reports.items()
    ]
    columns = {"quantization": "{}", "bytes": "{:,}"}
    columns |= {"our_float_over_it": "{:.2f}", "full_rank_float_over_it": "{:.1f}"}
    columns |= {"accuracy": "{:.2f}", "points_lost": "{:.2f}", "ms": "{:.3f}"}
    columns |= {"full_rank_ms": "{:.3f}"}
    count = model.compression()
    title = f"LeNet5 with {count.saved(count.factored):.1%} of its weights saved, as LiteRT"
    settings = {"epochs": EPOCHS.value, "samples": SAMPLES.value, "ranks": model.ranks}
    reporting.report("quantization", title, rows, columns, weights=count.factored, **settings)


if __name__ == "__main__":
    reporting.run(main)
