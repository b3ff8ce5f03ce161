"""Fine-tuning of a small causal model: all weights, LoRA of fixed ranks, and adapters.

The model, a decoder of plain Keras layers, learns to count: sequences in which every token is the
one before and a step. It is then fine-tuned to sequences with two alternating steps. Both tasks are
generated, so nothing is downloaded. Each row trains from the same pretrained weights: all of them,
Keras's `enable_lora` of some ranks, and adapters whose ranks follow a tolerance, or a budget for
the weights that are trained.

    python examples/finetune_text.py                      # minutes
    python examples/finetune_text.py --seeds 3
    python examples/finetune_text.py --pretraining 2 --epochs 2 --train 500  # a short run

Writes out/finetune_text/counting.json with every run and the rank of every adapter.
"""

import pathlib
import statistics

import keras
import numpy as np
from absl import flags

import results
from keras_lowrank import Budget, add_adapters

TOKENS = flags.DEFINE_integer("tokens", 48, "Size of the vocabulary.", lower_bound=8)
LENGTH = flags.DEFINE_integer("length", 20, "Tokens of a sequence.", lower_bound=4)
WIDTH = flags.DEFINE_integer("width", 64, "Features of a token.", lower_bound=4)
HEADS = flags.DEFINE_integer("heads", 4, "Heads of attention.", lower_bound=1)
LAYERS = flags.DEFINE_integer("layers", 2, "Blocks of the decoder.", lower_bound=1)
TRAIN = flags.DEFINE_integer("train", 4_000, "Sequences to train on.", lower_bound=1)
TEST = flags.DEFINE_integer("test", 1_000, "Sequences to test on.", lower_bound=1)
PRETRAINING = flags.DEFINE_integer("pretraining", 10, "Epochs on the first task.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs on the second.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Sequences in a batch.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "That of Adam.", lower_bound=0.0)
LORA = flags.DEFINE_list("lora", ["2", "4", "8"], "Ranks of LoRA, separated by commas.")
TOLERANCES = flags.DEFINE_list("tolerances", ["0.1"], "Tolerances of adapters, likewise.")
RANK = flags.DEFINE_integer("rank", 4, "Rank that adapters start with.", lower_bound=1)
MAX_RANK = flags.DEFINE_integer("max_rank", 16, "Largest rank of an adapter.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of every row.", lower_bound=1)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/finetune_text", "Folder for the JSON.")
_SETTINGS = [
    flag.name
    for flag in (
        *(TOKENS, LENGTH, WIDTH, HEADS, LAYERS, TRAIN, TEST, PRETRAINING, EPOCHS, BATCH_SIZE),
        *(LEARNING_RATE, LORA, TOLERANCES, RANK, MAX_RANK, SEEDS),
    )
]


def sequences(count, steps, seed):
    """`(inputs, targets)`: tokens that go up by one or several steps in turn, from anywhere.

    The steps are drawn for each sequence, so that a model has to read them off its beginning.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, TOKENS.value // 2, (count, steps))
    moves = np.tile(drawn, (1, LENGTH.value // steps + 1))[:, : LENGTH.value]
    start = rng.integers(0, TOKENS.value, (count, 1))
    tokens = np.concatenate([start, start + np.cumsum(moves, axis=1)], axis=1) % TOKENS.value
    return tokens[:, :-1], tokens[:, 1:]


@keras.saving.register_keras_serializable("examples")
class Positions(keras.layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="uniform", name="table")

    def call(self, inputs):
        return inputs + self.table


def build():
    """The decoder: `tokens -> logits of the next`."""
    layers, width = keras.layers, WIDTH.value
    tokens = keras.Input((LENGTH.value,), dtype="int32")
    x = Positions()(layers.Embedding(TOKENS.value, width)(tokens))
    for i in range(LAYERS.value):
        y = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(HEADS.value, width // HEADS.value, name=f"self_{i}")
        x = layers.Add()([x, attention(y, y, use_causal_mask=True)])
        y = layers.Dense(4 * width, activation="gelu", name=f"wide_{i}")(
            layers.LayerNormalization()(x)
        )
        x = layers.Add()([x, layers.Dense(width, name=f"narrow_{i}")(y)])
    head = layers.Dense(TOKENS.value, name="head")
    return keras.Model(tokens, head(layers.LayerNormalization()(x)))


def compiled(model, **kwargs):
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE.value),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **kwargs,
    )
    return model


def trained_weights(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def add_lora(model, rank):
    """Freezes a model and gives every projection LoRA."""
    for variable in model.trainable_variables:
        variable.trainable = False
    for layer in model._flatten_layers():
        if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
            layer.enable_lora(rank)


def methods(lora_weights):
    """`{name: (callable that readies a model, arguments of compile)}` of every row.

    Args:
        lora_weights: list of int, the weights that LoRA trains: adapters get the same as budgets.
    """
    steps = TRAIN.value // BATCH_SIZE.value * EPOCHS.value
    found = {"all weights": (lambda model: None, {})}
    for rank in map(int, LORA.value):
        found[f"LoRA, rank {rank}"] = (lambda model, rank=rank: add_lora(model, rank), {})
    for tolerance in map(float, TOLERANCES.value):
        found[f"adapters, tolerance {tolerance:g}"] = (
            lambda model: add_adapters(model, RANK.value, MAX_RANK.value),
            {"truncation": tolerance},
        )
    for weights in lora_weights:
        found[f"adapters, budget {weights:,}"] = (
            # Under a budget ranks only fall: they start high.
            lambda model: add_adapters(model, MAX_RANK.value, MAX_RANK.value),
            {"truncation": Budget(weights=weights, steps=max(1, steps // 2))},
        )
    return found


def fine_tune(weights, prepare, options, train, test):
    """One row: a dict of what came out."""
    model = build()
    model.set_weights(weights)
    adapters = prepare(model)
    compiled(model, **options)
    timer = results.EpochTimer()
    model.fit(
        *train, batch_size=BATCH_SIZE.value, epochs=EPOCHS.value, verbose=0, callbacks=[timer]
    )
    loss, accuracy = model.evaluate(*test, batch_size=256, verbose=0)
    steps = -(-TRAIN.value // BATCH_SIZE.value)
    count = trained_weights(model) if adapters is None else adapters.report().trained
    return {
        "loss": loss,
        "accuracy": accuracy,
        "trained": count,
        "first_epoch": timer.seconds[0],
        "step_ms": 1000 * min(timer.seconds) / steps,
        "ranks": None if adapters is None else adapters.ranks,
    }


def lora_sizes():
    """The numbers of weights that LoRA trains, one for each of its ranks."""
    sizes = []
    for rank in map(int, LORA.value):
        model = build()
        add_lora(model, rank)
        sizes.append(trained_weights(model))
    return sizes


def rows(runs):
    """The lines of the table: means over the seeds."""
    for name in dict.fromkeys(run["method"] for run in runs):
        same = [run for run in runs if run["method"] == name]
        keys = ("loss", "accuracy", "trained", "step_ms", "first_epoch")
        loss, accuracy, trained, step, first = (statistics.mean(r[k] for r in same) for k in keys)
        numbers = (f"{loss:.3f}", f"{accuracy:.1%}", f"{trained:,.0f}", f"{step:.1f}")
        yield (name, *numbers, f"{first:.1f}", str(len(same)))


def main(_):
    path = pathlib.Path(OUTPUT_DIR.value) / "counting.json"
    settings = {flag: flags.FLAGS[flag].value for flag in _SETTINGS}
    head = {"name": "counting", "settings": settings, "versions": results.versions()}
    runs, ready = [], methods(lora_sizes())
    for seed in range(SEEDS.value):
        keras.utils.set_random_seed(seed)
        model = compiled(build())
        model.fit(
            *sequences(TRAIN.value, 1, seed),
            batch_size=BATCH_SIZE.value,
            epochs=PRETRAINING.value,
            verbose=0,
        )
        weights = model.get_weights()
        train, test = (
            sequences(count, 2, 1_000 + 2 * seed + i)
            for i, count in enumerate((TRAIN.value, TEST.value))
        )
        loss, accuracy = model.evaluate(*test, batch_size=256, verbose=0)
        results.say(f"seed {seed}, before fine-tuning: loss {loss:.3f}, accuracy {accuracy:.1%}")
        for name, (prepare, options) in ready.items():
            keras.utils.set_random_seed(seed)
            run = fine_tune(weights, prepare, options, train, test)
            runs.append({"method": name, "seed": seed, **run})
            # After every run: what is interrupted keeps the runs that it has.
            results.write_json(path, {**head, "runs": runs}, verbose=len(runs) == 1)
    header = ("method", "loss", "accuracy", "trained weights", "ms/step", "first epoch, s", "seeds")
    results.print_table("From one step to two in turn", header, list(rows(runs)))


if __name__ == "__main__":
    results.run(main)
