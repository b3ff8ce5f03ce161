"""A language model of bytes, trained from scratch: low-rank beside full rank, thin and two factors.

A decoder as in GPT-2, normalised before each block, on text that every machine has: the sources of
Python's standard library, every tenth file held out. Low-rank are all matrices: the embedding, the
projections of attention and of the feed-forward blocks, and the last layer. Beside it, trained as
long: the same network at full rank, in two plain factors of the ranks that ours ends with, and a
thinner one of about as many weights.

    python examples/language_model.py                     # 50% and 70% fewer weights
    python examples/language_model.py --compression 0.7 --seeds 3
    python examples/language_model.py --text 'notes/*.txt' --width 128 --blocks 2 --steps 500

Writes out/language_model/language_model.json with every run: bits a byte of the held-out files, the
weights, ranks, numbers that training holds, seconds a step, and a sample.
"""

import glob
import itertools
import math
import pathlib
import statistics
import sys
import sysconfig
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import results
from keras_lowrank import Budget, LowRankEmbedding, count_weights
from keras_lowrank.optimizers import StiefelAdam
from methods import FullRank, LowRank, TwoFactor

TEXT = flags.DEFINE_string(
    "text", None, "Pattern of the files to read; the sources of Python's library if not given."
)
BLOCKS = flags.DEFINE_integer("blocks", 4, "Blocks of the decoder.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 256, "Features of a byte.", lower_bound=2)
HEADS = flags.DEFINE_integer("heads", 4, "Heads of attention.", lower_bound=1)
CONTEXT = flags.DEFINE_integer("context", 128, "Bytes that the model sees.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 2000, "Steps of every run.", lower_bound=2)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Texts in a batch.", lower_bound=1)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer", "muon", ["adamw", "muon", "stiefel_adam"], "The optimizer."
)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-2, "Its highest rate.", lower_bound=0.0)
ADAM_LR_RATIO = flags.DEFINE_float(
    "adam_lr_ratio", 0.3, "The rate of what muon leaves to AdamW, as a share of the learning rate."
)
WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.1, "Its weight decay.", lower_bound=0.0)
COMPRESSION = flags.DEFINE_list(
    "compression", ["0.5", "0.7"], "Shares of the weights to save, separated by commas."
)
flags.register_validator(
    COMPRESSION,
    lambda values: all(v.replace(".", "", 1).isdigit() and float(v) < 1 for v in values),
    "must be numbers in [0, 1), as 0.7 for 70%, separated by commas",
)
PRUNING = flags.DEFINE_float(
    "pruning", 0.6, "Share of the training after which they are saved.", 0.0, 1.0
)
START = flags.DEFINE_float(
    "start", 0.75, "Share of the weights that ranks start with; 0 for the defaults.", 0.0, 1.0
)
EMBEDDING_RANK = flags.DEFINE_integer(
    "embedding_rank", 64, "Least rank of the embedding, which a budget leaves.", lower_bound=1
)
INTEGRATOR = flags.DEFINE_enum(
    "integrator", "rank_adaptive", ["parallel", "rank_adaptive"], "How the factors move."
)
BASELINES = flags.DEFINE_list(
    "baselines", ["two_factor", "thin"], "What else is trained at each size: two_factor, thin."
)
flags.register_validator(
    BASELINES, lambda names: set(names) <= {"two_factor", "thin"}, "must be among two_factor, thin"
)
TEST = flags.DEFINE_integer("test", 200, "Batches of held-out text to test on.", lower_bound=1)
SAMPLE = flags.DEFINE_integer("sample", 200, "Bytes of the sample.", lower_bound=0)
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of every row.", lower_bound=1)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/language_model", "Folder for the JSON.")

_SETTINGS = (
    *(TEXT, BLOCKS, WIDTH, HEADS, CONTEXT, STEPS, BATCH_SIZE, OPTIMIZER, LEARNING_RATE),
    *(ADAM_LR_RATIO, WEIGHT_DECAY, PRUNING, START, EMBEDDING_RANK, INTEGRATOR, TEST),
)

_BYTES = 256


@keras.saving.register_keras_serializable("examples")
class Positions(keras.layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="uniform", name="table")

    def call(self, inputs):
        return inputs + self.table


@keras.saving.register_keras_serializable("examples")
class CausalAttention(keras.layers.Layer):
    """Attention of each position to those before it: what has no weights."""

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads

    def call(self, query, key, value):
        split = [self._split(one) for one in (query, key, value)]
        outputs = keras.ops.dot_product_attention(*split, is_causal=True)
        return keras.ops.reshape(outputs, (-1, *query.shape[1:]))

    def compute_output_shape(self, query_shape, *others):
        return query_shape

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}

    def _split(self, inputs):
        _, length, width = inputs.shape
        return keras.ops.reshape(inputs, (-1, length, self.heads, width // self.heads))


class Ours(LowRank):
    """Low-rank layers. A budget keeps the directions with the most energy, and few bytes have most
    of that of the embedding, but all need theirs.
    """

    def __init__(self, width):
        share, narrow = START.value, _even_rank(width, width)
        wide, ends = _even_rank(width, 4 * width), _even_rank(_BYTES, width)
        block = [narrow] * 4 + [wide] * 2
        ranks = [ends, *(block * BLOCKS.value), ends]
        super().__init__([max(1, round(share * rank)) for rank in ranks] if share else [])

    def embedding(self, count, width):
        least = min(EMBEDDING_RANK.value, count, width)
        rank = self._next_rank()
        rank = rank and max(rank, least)
        return LowRankEmbedding(count, width, rank=rank, min_rank=least, name=self._name())


def _even_rank(n, m):
    """The rank with as many weights as the kernel, not rounded."""
    return n * m / (n + m)


def build(layers, width):
    """The network, its matrices made by one of `methods`: bytes to logits of the next ones."""
    inputs = keras.Input((CONTEXT.value,), dtype="int32")
    x = Positions()(layers.embedding(_BYTES, width)(inputs))
    for _ in range(BLOCKS.value):
        y = keras.layers.LayerNormalization()(x)
        y = CausalAttention(HEADS.value)(*(layers.dense(width)(y) for _ in range(3)))
        x = keras.layers.Add()([x, layers.dense(width)(y)])
        y = keras.layers.LayerNormalization()(x)
        y = layers.dense(width)(layers.dense(4 * width, activation="gelu")(y))
        x = keras.layers.Add()([x, y])
    return layers.model(inputs, layers.dense(_BYTES)(keras.layers.LayerNormalization()(x)))


def texts():
    """`(train, test)`, byte arrays: every tenth file is held out."""
    if TEXT.value:
        files = sorted(glob.glob(TEXT.value, recursive=True))
    else:
        files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = files[::10]
    parts = [[f for f in files if f not in set(held_out)], held_out]
    train, test = (
        np.frombuffer(b"".join(pathlib.Path(one).read_bytes() for one in part), "uint8")
        for part in parts
    )
    if min(len(train), len(test)) <= CONTEXT.value:
        raise ValueError(
            "The texts must hold more bytes than --context, in two files or more. Received: "
            f"{len(train):,} bytes to train on and {len(test):,} held out"
        )
    return train, test


def batches(text, count, seed):
    """`count` batches `(bytes, next bytes)`, drawn anywhere in the text."""
    generator, length = np.random.default_rng(seed), CONTEXT.value
    places = generator.integers(len(text) - length, size=(count, BATCH_SIZE.value))
    pieces = text[places[..., None] + np.arange(length + 1)].astype("int32")
    return tf.data.Dataset.from_tensor_slices((pieces[..., :-1], pieces[..., 1:]))


def bits(model, test):
    """Mean bits a byte of held-out text."""
    return model.evaluate(batches(test, TEST.value, seed=0), verbose=0, return_dict=True)[
        "loss"
    ] / math.log(2)


def sample(model, prompt, count, seed=0):
    """A text that begins with `prompt`, its bytes drawn one by one at the temperature 0.8."""
    generator, text = np.random.default_rng(seed), list(prompt.encode())
    for _ in range(count):
        seen = text[-CONTEXT.value :]
        padded = np.array([seen + [0] * (CONTEXT.value - len(seen))], "int32")
        logits = model.predict_on_batch(padded)[0, len(seen) - 1].astype("float64") / 0.8
        shares = np.exp(logits - logits.max())
        text.append(int(generator.choice(_BYTES, p=shares / shares.sum())))
    return bytes(text).decode(errors="replace")


class StepTimer(keras.callbacks.Callback):
    """Seconds of each step."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._begin)


def make_optimizer(rate):
    shared = {"weight_decay": WEIGHT_DECAY.value, "clipnorm": 1.0}
    if OPTIMIZER.value == "muon":
        return keras.optimizers.Muon(rate, adam_lr_ratio=ADAM_LR_RATIO.value, **shared)
    kinds = {"adamw": keras.optimizers.AdamW, "stiefel_adam": StiefelAdam}
    return kinds[OPTIMIZER.value](rate, **shared)


def train(name, layers, width, data, seed, compression=None):
    """Trains one network; returns what is measured."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = build(layers, width)
    steps, rising = STEPS.value, max(1, STEPS.value // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - rising, warmup_target=LEARNING_RATE.value, warmup_steps=rising
    )
    options = {}
    if compression is not None:
        met = max(1, round(PRUNING.value * steps))
        truncation = Budget(compression=compression, steps=met)
        options = {"integrator": INTEGRATOR.value, "truncation": truncation}
    optimizer = make_optimizer(rate)
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options
    )
    timer = StepTimer()
    bar = results.progress_bar(f"{name}, seed {seed}", steps * BATCH_SIZE.value, BATCH_SIZE.value)
    drawn = batches(data[0], steps, seed + 1).prefetch(2)
    model.fit(drawn, shuffle=False, verbose=0, callbacks=[timer, bar])
    weights = count_weights(model)
    return {
        "method": name,
        "compression": compression,
        "seed": seed,
        "bits": bits(model, data[1]),
        "weights": weights.factored,
        "full": weights.full,
        "ranks": list(getattr(model, "ranks", {}).values()),
        "width": width,
        "seconds_per_step": statistics.median(timer.seconds[1:]),
        "numbers_in_training": weights.training,
        "sample": sample(model, "def ", SAMPLE.value),
    }


def thin_width(weights):
    """The width of the full-rank network with about that many weights, a multiple of the heads."""
    choices = range(HEADS.value, WIDTH.value + 1, HEADS.value)
    return min(choices, key=lambda width: abs(_weights_at(width) - weights))


def _weights_at(width):
    return 2 * _BYTES * width + CONTEXT.value * width + 12 * BLOCKS.value * width**2


def rows(runs):
    keys = dict.fromkeys((run["method"], run["compression"]) for run in runs)
    full = statistics.mean(run["bits"] for run in runs if run["method"] == "full rank")
    for method, share in keys:
        same = [run for run in runs if (run["method"], run["compression"]) == (method, share)]
        mean = {k: statistics.mean(run[k] for run in same) for k in ("bits", "weights", "full")}
        step = statistics.median(run["seconds_per_step"] for run in same)
        yield (
            method if share is None else f"{method}, {share:.0%}",
            f"{mean['bits']:.3f}",
            f"{2 ** (mean['bits'] - full) - 1:+.1%}",
            f"{mean['weights']:,.0f}",
            f"{1000 * step:.0f}",
            str(len(same)),
        )


def main(_):
    path, runs, data = pathlib.Path(OUTPUT_DIR.value) / "language_model.json", [], texts()
    settings = {flag.name: flag.value for flag in _SETTINGS}
    head = {"settings": settings, "versions": results.versions()}

    def add(*arguments):
        runs.append(train(*arguments))
        # After every run: what is interrupted keeps the runs that it has.
        results.write_json(path, {**head, "runs": runs}, verbose=len(runs) == 1)
        return runs[-1]

    shares = list(map(float, COMPRESSION.value))
    for seed, share in itertools.product(range(SEEDS.value), (None, *shares)):
        if share is None:
            add("full rank", FullRank(), WIDTH.value, data, seed)
            continue
        ours = add("low-rank", Ours(WIDTH.value), WIDTH.value, data, seed, share)
        if "two_factor" in BASELINES.value:
            run = add("two factors", TwoFactor(ours["ranks"]), WIDTH.value, data, seed)
            run["compression"] = share
        if "thin" in BASELINES.value:
            run = add("thin", FullRank(), thin_width(ours["weights"]), data, seed)
            run["compression"] = share
        results.write_json(path, {**head, "runs": runs}, verbose=False)
    header = ("method", "bits a byte", "perplexity", "weights", "ms a step", "seeds")
    results.print_table("A language model of bytes", header, list(rows(runs)))
    for run in runs[-3:]:
        print(f"--- {run['method']}\n{run['sample']}", file=sys.stderr)


if __name__ == "__main__":
    results.run(main)
