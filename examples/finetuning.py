"""Fine-tunes one pretrained model in several ways, and compares them.

Each row of the table trains from the same weights: all of them, the head alone, Keras's
`enable_lora` of some ranks, and adapters whose ranks follow a tolerance, or a budget for the
kernels that are trained.

A module of the examples, not a program.
"""

import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from absl import flags

import results
from keras_lowrank import Budget, add_adapters

EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of fine-tuning.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Examples in a batch.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "That of Adam.", lower_bound=0.0)
LORA = flags.DEFINE_list("lora", ["2", "4", "8"], "Ranks of LoRA, separated by commas.")
BUDGETS = flags.DEFINE_list(
    "budgets", [], "Trained weights of adapters, likewise. Without them, as many as LoRA trains."
)
TOLERANCES = flags.DEFINE_list("tolerances", ["0.1"], "Tolerances of adapters, likewise.")
RANK = flags.DEFINE_integer("rank", 4, "Rank that adapters start with.", lower_bound=1)
MAX_RANK = flags.DEFINE_integer("max_rank", 16, "Largest rank of an adapter.", lower_bound=1)
QUANTIZE = flags.DEFINE_enum(
    "quantize", None, ["int8", "int4"], "Also train adapters on a base that Keras quantizes so."
)
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of every row.", lower_bound=1)
PLOT = flags.DEFINE_string("plot", None, "File for a plot of loss against trained weights.")
_SETTINGS = (
    *(EPOCHS, BATCH_SIZE, LEARNING_RATE, LORA, BUDGETS, TOLERANCES, RANK, MAX_RANK),
    *(QUANTIZE, SEEDS),
)

_PROJECTIONS = (keras.layers.Dense, keras.layers.EinsumDense)


def add_lora(model, rank, head):
    """Gives LoRA to every projection but those of the head. Keras has it for no convolution."""
    for layer in model._flatten_layers():
        if isinstance(layer, _PROJECTIONS) and layer.name not in head:
            layer.enable_lora(rank)


class Start(NamedTuple):
    """What all rows of one seed start from.

    Attributes:
        make: callable that returns the pretrained model, a new one every time, not compiled.
        train, test: pairs `(inputs, labels)` of arrays.
        head: list of str, layers that are new to the task. All rows train them as a whole.
        add_lora: callable `(model, rank, head)` that gives LoRA to a model.
    """

    make: Callable[[], keras.Model]
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    head: list[str]
    add_lora: Callable[[keras.Model, int, list[str]], None] = add_lora


def compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(LEARNING_RATE.value)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


def compare(title, path, starts, settings=()):
    """Trains every row, writes all runs to a file, prints the table, and plots it.

    Args:
        title: str, of the table.
        path: path of the JSON.
        starts: iterable of `Start`, one for each seed.
        settings: flags of the program, beside those of this module.
    """
    path = pathlib.Path(path)
    values = {flag.name: flag.value for flag in (*settings, *_SETTINGS)}
    head = {"name": path.stem, "settings": values, "versions": results.versions()}
    runs = []
    for seed, start in enumerate(starts):
        model = compiled(start.make())
        loss, accuracy = model.evaluate(*start.test, batch_size=256, verbose=0)
        results.say(f"seed {seed}, before fine-tuning: loss {loss:.3f}, accuracy {accuracy:.1%}")
        for name, (prepare, options) in _methods(start).items():
            keras.utils.set_random_seed(seed)
            runs.append({"method": name, "seed": seed, **_fine_tune(start, prepare, options)})
            # After every run: what is interrupted keeps the runs that it has.
            results.write_json(path, {**head, "runs": runs}, verbose=len(runs) == 1)
    header = ("method", "loss", "accuracy", "trained weights", "base, kB", "ms/step")
    results.print_table(title, (*header, "first epoch, s", "seeds"), list(_rows(runs)))
    if PLOT.value:
        _plot(pathlib.Path(PLOT.value), title, runs)


def _freeze(model, head):
    """Freezes all but the head; statistics of batches, too."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    kept = {id(v) for layer in _layers(model, head) for v in layer.weights}
    for variable in model.trainable_variables:
        variable.trainable = id(variable) in kept


def _layers(model, names):
    return [layer for layer in model._flatten_layers() if layer.name in names]


def _methods(start):
    """`{name: (callable that readies a model, arguments of compile)}` of every row."""
    found = {"all weights": (lambda model: None, {})}
    if start.head:
        found["head alone"] = (lambda model: _freeze(model, start.head), {})

    def lora(model, rank):
        _freeze(model, start.head)
        start.add_lora(model, rank, start.head)

    def adapted(model, rank, mode):
        if mode:
            for layer in model._flatten_layers():
                known = isinstance(layer, (*_PROJECTIONS, keras.layers.Embedding))
                if known and layer.name not in start.head:
                    layer.quantize(mode)

        def is_head(layer):
            return layer.name in start.head

        return add_adapters(model, rank, MAX_RANK.value, exclude=is_head, trainable=is_head)

    budgets, of_lora = [int(one) for one in BUDGETS.value], []
    for rank in map(int, LORA.value):
        found[f"LoRA, rank {rank}"] = (lambda model, rank=rank: lora(model, rank), {})
        model = start.make()
        lora(model, rank)
        of_lora.append(sum(math.prod(v.shape) for v in model.trainable_variables if v.ndim > 1))
    steps = max(1, len(start.train[1]) // BATCH_SIZE.value * EPOCHS.value // 2)
    for mode in dict.fromkeys([None, QUANTIZE.value]):
        base = f" on {mode}" if mode else ""
        for tolerance in map(float, TOLERANCES.value):
            found[f"adapters{base}, tolerance {tolerance:g}"] = (
                lambda model, mode=mode: adapted(model, RANK.value, mode),
                {"truncation": tolerance},
            )
        for budget in budgets or of_lora:
            found[f"adapters{base}, budget {budget:,}"] = (
                # Under a budget ranks only fall: they start high.
                lambda model, mode=mode: adapted(model, MAX_RANK.value, mode),
                {"truncation": Budget(weights=budget, steps=steps)},
            )
    return found


def _fine_tune(start, prepare, options):
    """One row: a dict of what came out."""
    model = start.make()
    adapters = prepare(model)
    base = {id(v) for v in model.weights if "lora" not in v.name}
    for delta in adapters.deltas.values() if adapters else ():
        base -= {id(v) for v in delta.weights}
    compiled(model, **options)
    timer, epochs = results.EpochTimer(), EPOCHS.value
    model.fit(
        *start.train, batch_size=BATCH_SIZE.value, epochs=epochs, verbose=0, callbacks=[timer]
    )
    loss, accuracy = model.evaluate(*start.test, batch_size=256, verbose=0)
    sizes = [math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in model.weights if id(v) in base]
    return {
        "loss": loss,
        "accuracy": accuracy,
        "trained": adapters.report().trained if adapters else _trained_weights(model),
        "base_bytes": sum(sizes),
        "first_epoch": timer.seconds[0],
        "step_ms": 1000 * min(timer.seconds) / -(-len(start.train[1]) // BATCH_SIZE.value),
        "ranks": adapters.ranks if adapters else None,
    }


def _trained_weights(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


_KEYS = ("loss", "accuracy", "trained", "base_bytes", "step_ms", "first_epoch")


def _means(runs):
    """`{method: (means over its seeds, their number)}`."""
    found = {}
    for name in dict.fromkeys(run["method"] for run in runs):
        same = [run for run in runs if run["method"] == name]
        found[name] = {key: statistics.mean(run[key] for run in same) for key in _KEYS}, len(same)
    return found


def _rows(runs):
    """The lines of the table."""
    for name, (mean, count) in _means(runs).items():
        numbers = (f"{mean['loss']:.3f}", f"{mean['accuracy']:.1%}", f"{mean['trained']:,.0f}")
        times = (f"{mean['step_ms']:.1f}", f"{mean['first_epoch']:.1f}")
        yield (name, *numbers, f"{mean['base_bytes'] / 1000:,.0f}", *times, str(count))


def _plot(path, title, runs):
    """Writes the plot, in the format of the suffix: a point a row, a line a way to train."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = {}
    for name, (mean, _) in _means(runs).items():
        way, _, what = name.partition(", ")
        label = f"{way}, {what.split()[0]}" if what else way
        lines.setdefault(label, []).append((mean["trained"], mean["loss"]))
    for label, points in lines.items():
        axes.loglog(*zip(*sorted(points)), "o-", label=label)
    axes.set(title=title, xlabel="trained weights at the end", ylabel="test loss")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with results.new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120)
