"""How long is one inference: Keras, SavedModel and LiteRT, full-rank and low-rank, in one process?

784-5120-5120-5120-5120-10 with random weights. Every method is exported as a user would export it.
`litert int8` has weights quantised to 8 bits (dynamic range). All candidates take turns; ratios to
full rank are within a round.

    python benchmarks/inference.py
    python benchmarks/inference.py --widths 2048,2048,2048 --batches 1
"""

import pathlib
import tempfile

import measuring
import networks
import numpy as np
import reporting
import tensorflow as tf
from absl import flags
from ai_edge_litert.interpreter import Interpreter

WIDTHS = reporting.define_numbers("widths", ["5120"] * 4, "Neurons of the hidden dense layers.")
RANKS = reporting.define_numbers("ranks", ["32"], "Ranks; each gives its own rows.")
BATCHES = reporting.define_numbers("batches", ["1", "256"], "Rows in a batch.")
ROUNDS = flags.DEFINE_integer("rounds", 6, "Rounds; in each, all once.", lower_bound=1)
CALLS = flags.DEFINE_integer("calls", 5, "Inferences in a round.", lower_bound=1)


def export(model, folder):
    """Exports a model to all formats; returns `{format: path}`."""
    saved, float_file, int8_file = (folder / n for n in ("saved", "float.tflite", "int8.tflite"))
    model.export(str(saved), verbose=False)
    model.export(str(float_file), format="litert", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    int8_file.write_bytes(converter.convert())
    return {"SavedModel": saved, "litert float": float_file, "litert int8": int8_file}


def size(path):
    """Megabytes of a file or a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def inference(form, model, path, rows):
    """Returns a callable for one inference."""
    if form == "keras":
        return lambda: model.predict_on_batch(rows)
    if form == "SavedModel":
        loaded = tf.saved_model.load(str(path))  # the closure keeps it alive
        serve = loaded.signatures["serving_default"]
        name = next(iter(serve.structured_input_signature[1]))
        tensor = tf.constant(rows)

        def run_saved():
            assert loaded is not None
            return [output.numpy() for output in serve(**{name: tensor}).values()]

        return run_saved
    interpreter = Interpreter(str(path), num_threads=2)
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, rows.shape)
    interpreter.allocate_tensors()
    output = interpreter.get_output_details()[0]["index"]

    def run_litert():
        interpreter.set_tensor(index, rows)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run_litert


def main(_):
    models = {("full_rank", None): networks.dense("full_rank", reporting.numbers(WIDTHS))}
    for rank in reporting.numbers(RANKS):
        models["low_rank", rank] = networks.dense("parallel", reporting.numbers(WIDTHS), rank)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (key, model) in enumerate(models.items()):
            place = pathlib.Path(folder) / str(number)
            place.mkdir()
            paths[key] = {"keras": None, **export(model, place)}
        rows = []
        for batch in reporting.numbers(BATCHES):
            data = np.random.default_rng(0).standard_normal((batch, networks.FEATURES), "float32")
            candidates = {
                (form, key): inference(form, models[key], path, data)
                for key in models
                for form, path in paths[key].items()
            }
            seconds = measuring.seconds_in_turns(candidates, ROUNDS.value, CALLS.value)
            for form, key in candidates:
                low, median, high = measuring.ratio(seconds, (form, key), (form, (*models,)[0]))
                path = paths[key][form]
                rows.append(
                    {
                        "batch": batch,
                        "form": form,
                        "method": key[0],
                        "rank": key[1],
                        "ms": measuring.milliseconds(seconds, (form, key)),
                        "full_rank_over_it": 1.0 / median,
                        "quartiles_of_ratio": [low, high],
                        "megabytes": path and size(path),
                    }
                )
    columns = dict.fromkeys(("batch", "form", "method", "rank"), "{}")
    columns |= {"ms": "{:.3f}", "full_rank_over_it": "{:.1f}", "megabytes": "{:.2f}"}
    widths = reporting.numbers(WIDTHS)
    title = f"One inference, hidden layers {widths}"
    reporting.report("inference", title, rows, columns, widths=widths, rounds=ROUNDS.value)


if __name__ == "__main__":
    reporting.run(main)
