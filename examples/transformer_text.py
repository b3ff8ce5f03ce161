"""A transformer that turns one text into another, low-rank beside full rank.

The transformer of "Attention is all you need" (arXiv:1706.03762), with normalisation before each
block. The projections of attention and of the feed-forward blocks are low-rank; embeddings and the
last layer are not. The task is generated, so nothing is downloaded: sort the letters of a word,
reverse it, or add two numbers. No test text occurs in training. With --translate, it translates
Portuguese to English on TED talks, the set `ted_hrlr_translate/pt_to_en` of tensorflow-datasets,
and reports BLEU, of words in lower case without punctuation, the most likely one at a time.

    python examples/transformer_text.py                     # sorting, full rank and 75% saved
    python examples/transformer_text.py --task add --compression 0.6,0.75,0.85
    python examples/transformer_text.py --limit 2000 --epochs 2 --width 32  # a short run
    python examples/transformer_text.py --translate --width 128 --layers 4 --dropout 0.1 --epochs 20

Writes out/transformer_text/TASK.json, with every run and the rank of every projection.
"""

import math
import pathlib
import statistics
from typing import NamedTuple

import keras
import numpy as np
from absl import flags

import results
import text_pairs
from keras_lowrank import (
    Budget,
    LowRankDense,
    LowRankModel,
    LowRankMultiHeadAttention,
    find_low_rank_layers,
)

flags.adopt_module_key_flags(text_pairs)
TASK = flags.DEFINE_enum("task", "sort", text_pairs.TASKS, "What to learn.")
TRANSLATE = flags.DEFINE_bool("translate", False, "Learn to translate in place of --task.")
LENGTH = flags.DEFINE_integer("length", 12, "Characters of the longest text.", lower_bound=4)
TRAIN = flags.DEFINE_integer("train", 40_000, "Generated pairs to train on.", lower_bound=1)
TEST = flags.DEFINE_integer("test", 4_000, "Generated pairs to test on.", lower_bound=1)
LONGEST = flags.DEFINE_integer("longest", 40, "Words of the longest text to translate.")
VOCABULARY = flags.DEFINE_integer("vocabulary", 8_000, "Words of each language.", lower_bound=3)
LIMIT = flags.DEFINE_integer("limit", None, "Train on that many pairs only.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 64, "Features of a token.", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", 4, "Heads of attention.", lower_bound=1)
LAYERS = flags.DEFINE_integer("layers", 1, "Blocks of encoder and of decoder.", lower_bound=1)
DROPOUT = flags.DEFINE_float("dropout", 0.0, "Share that is dropped after each block.", 0.0, 1.0)
COMPRESSION = flags.DEFINE_list(
    "compression", ["0.75"], "Shares of the projections' weights to save, separated by commas."
)
PRUNING = flags.DEFINE_float("pruning", 0.25, "Share of the training after which it is met.", 0, 1)
INTEGRATOR = flags.DEFINE_enum(
    "integrator", "parallel", ["parallel", "rank_adaptive"], "How the factors move."
)
EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs of every run.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Pairs in a batch.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Highest one of Adam.", lower_bound=0.0)
DATA_SEED = flags.DEFINE_integer(
    "data_seed", 1, "What texts are generated from. The settings were chosen on those of 0."
)
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of every row.", lower_bound=1)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/transformer_text", "Folder for the JSON.")
flags.register_validator(
    COMPRESSION,
    lambda values: all(v.replace(".", "", 1).isdigit() and float(v) < 1 for v in values),
    "must be numbers in [0, 1), as 0.75 for 75%, separated by commas",
)


# The settings that all runs of a file share.
_SETTINGS = [
    flag.name
    for flag in (
        *(LENGTH, TRAIN, TEST, LIMIT, WIDTH, HEADS, LAYERS, DROPOUT, PRUNING, INTEGRATOR),
        *(EPOCHS, BATCH_SIZE, LEARNING_RATE, DATA_SEED, SEEDS, LONGEST, VOCABULARY),
    )
]


# What the table shows of a run: the name of a column, and its format.
_MEASURES = {
    "exact_match": ("exact match", ".2%"),
    "token_accuracy": ("tokens", ".2%"),
    "loss": ("loss", ".3f"),
    "bleu": ("BLEU", ".1f"),
}


@keras.saving.register_keras_serializable("examples")
class Positions(keras.layers.Layer):
    """Adds a learned vector for each position."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="uniform", name="table")

    def call(self, inputs):
        return inputs + self.table


class Method(NamedTuple):
    """The classes in which the full-rank and the low-rank network differ."""

    dense: type
    attention: type
    model: type


FULL_RANK = Method(keras.layers.Dense, keras.layers.MultiHeadAttention, keras.Model)
LOW_RANK = Method(LowRankDense, LowRankMultiHeadAttention, LowRankModel)


def build(method, corpus):
    """Returns the network `(source, inputs) -> logits of outputs`."""
    source = keras.Input((corpus.train.source.shape[1],), name="source")
    inputs = keras.Input((corpus.train.inputs.shape[1],), name="inputs")
    x = _embedded(source, len(corpus.source))
    for i in range(LAYERS.value):
        x = _attend(method, f"encoder_{i}_self", x)
        x = _feed_forward(method, f"encoder_{i}", x)
    memory = keras.layers.LayerNormalization()(x)
    x = _embedded(inputs, len(corpus.target))
    for i in range(LAYERS.value):
        x = _attend(method, f"decoder_{i}_self", x, use_causal_mask=True)
        x = _attend(method, f"decoder_{i}_cross", x, memory)
        x = _feed_forward(method, f"decoder_{i}", x)
    x = keras.layers.LayerNormalization()(x)
    head = keras.layers.Dense(len(corpus.target), name="head")
    return method.model([source, inputs], head(x))


def _embedded(tokens, count):
    # The mask of the padding also reaches attention and the loss.
    return Positions()(keras.layers.Embedding(count, WIDTH.value, mask_zero=True)(tokens))


def _attend(method, name, x, memory=None, **options):
    y = keras.layers.LayerNormalization()(x)
    attention = method.attention(HEADS.value, WIDTH.value // HEADS.value, name=name)
    return _residual(x, attention(y, y if memory is None else memory, **options))


def _feed_forward(method, name, x):
    y = keras.layers.LayerNormalization()(x)
    y = method.dense(4 * WIDTH.value, activation="relu", name=f"{name}_wide")(y)
    return _residual(x, method.dense(WIDTH.value, name=f"{name}_narrow")(y))


def _residual(x, y):
    return keras.layers.Add()([x, keras.layers.Dropout(DROPOUT.value)(y)])


def accuracy(model, pairs):
    """Returns the shares of targets and tokens that the model predicts correctly, and the loss.

    The model reads the true tokens before each. A target that is correct then is also correct if
    the model reads its own predictions, because both agree up to the first error.
    """
    exact, right, tokens, loss = 0, 0, 0, 0.0
    for batch in pairs.batches():
        logits = model.predict_on_batch([batch.source, batch.inputs])
        there = batch.outputs != 0
        hits = (logits.argmax(axis=-1) == batch.outputs) & there
        losses = keras.losses.sparse_categorical_crossentropy(batch.outputs, logits, True)
        loss += np.sum(losses, where=there)
        exact += np.sum(hits.sum(axis=1) == there.sum(axis=1))
        right, tokens = right + hits.sum(), tokens + there.sum()
    return {
        "exact_match": exact / len(pairs),
        "token_accuracy": right / tokens,
        "loss": float(loss / tokens),
    }


def answer(model, source, start):
    """Predicts the numbers one by one, each time the most likely."""
    inputs = np.zeros((len(source), model.inputs[1].shape[1]), "int32")
    inputs[:, 0] = start
    for position in range(inputs.shape[1]):
        said = model.predict_on_batch([source, inputs])[:, position].argmax(axis=-1)
        if position + 1 == inputs.shape[1]:
            return np.column_stack([inputs[:, 1:], said])
        inputs[:, position + 1] = said


def bleu(model, corpus):
    """BLEU of the model's own answers to the test pairs."""
    batches = list(corpus.test.batches())
    said = [answer(model, batch.source, corpus.target.start) for batch in batches]
    said, true = (
        [corpus.target.sentence(row) for rows in sides for row in rows]
        for sides in (said, [batch.outputs for batch in batches])
    )
    # An unknown word is never right: an answer does not say which one it is.
    unknown = corpus.target.tokens[1]
    said = [[None if word == unknown else word for word in words] for words in said]
    return text_pairs.bleu(true, said)


def weights(model):
    """Counts the weights of the projections at full rank and as factors, and of the model."""
    factors = [one.factors for one in find_low_rank_layers(model).values()]
    full = sum(one.n * one.m for one in factors)
    if not factors:
        kernels = [v for v in model.weights if v.name == "kernel" and v.path != "head/kernel"]
        full = sum(math.prod(kernel.shape) for kernel in kernels)
    saved = sum(one.n * one.m - one.rank * (one.n + one.m) for one in factors)
    # Counts the pair U S and V, as in `Compression.factored`.
    folded = sum(one.rank**2 for one in factors)
    return {
        "full": full,
        "projections": full - saved,
        "model": sum(math.prod(v.shape) for v in model.trainable_weights) - folded,
    }


def train(method, corpus, seed, name, compression=None):
    """Trains one network; returns it and its measurements."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = build(method, corpus)
    batches = corpus.train.training_batches(BATCH_SIZE.value, seed)
    steps = EPOCHS.value * len(batches)
    warmup = max(1, min(steps // 10, 400))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=LEARNING_RATE.value, warmup_steps=warmup
    )
    options = {}
    if compression is not None:
        options = {"integrator": INTEGRATOR.value, "truncation": _budget(model, compression, steps)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, **options)
    timer = results.EpochTimer()
    bar = results.progress_bar(f"{name}, seed {seed}", len(corpus.train), BATCH_SIZE.value)
    fitted = model.fit(
        batches, epochs=EPOCHS.value, verbose=0, shuffle=False, callbacks=[timer, bar]
    )
    return model, {
        "seed": seed,
        "compression": compression,
        **accuracy(model, corpus.test),
        **({"bleu": bleu(model, corpus)} if TRANSLATE.value else {}),
        "weights": weights(model),
        "ranks": getattr(model, "ranks", {}),
        "seconds_per_epoch": timer.typical,
        "loss_by_epoch": fitted.history["loss"],
    }


def _budget(model, compression, steps):
    full = weights(model)["full"]
    others = model.compression().full - full
    left = others + round(full * (1.0 - compression))
    return Budget(weights=left, steps=max(1, round(PRUNING.value * steps)))


def load():
    if TRANSLATE.value:
        train_pairs, test_pairs = text_pairs.translations()
        train_pairs = train_pairs[: LIMIT.value]
        return text_pairs.corpus(
            train_pairs, test_pairs, words=True, size=VOCABULARY.value, longest=LONGEST.value
        )
    # All seeds share one split, so that all runs are tested on the same texts.
    count = TRAIN.value
    drawn = text_pairs.generate(TASK.value, count + TEST.value, LENGTH.value, seed=DATA_SEED.value)
    return text_pairs.corpus(drawn[:count][: LIMIT.value], drawn[count:], words=False)


def rows(runs):
    """The rows of the table, means over the seeds."""
    for share in dict.fromkeys(run["compression"] for run in runs):
        same = [run for run in runs if run["compression"] == share]
        seconds = statistics.mean(run["seconds_per_epoch"] for run in same)
        full, kept, whole = (
            statistics.mean(run["weights"][key] for run in same)
            for key in ("full", "projections", "model")
        )
        yield (
            "full rank" if share is None else f"low-rank, {100 * share:g}%",
            *(
                format(statistics.mean(run[key] for run in same), style)
                for key, (_, style) in _MEASURES.items()
                if key in runs[0]
            ),
            f"{kept:,.0f}",
            f"{1 - kept / full:.1%}",
            f"{whole:,.0f}",
            f"{seconds:.1f}",
            str(len(same)),
        )


def main(_):
    name = text_pairs.TRANSLATION.replace("/", "_") if TRANSLATE.value else TASK.value
    path = pathlib.Path(OUTPUT_DIR.value) / f"{name}.json"
    settings = {flag: flags.FLAGS[flag].value for flag in _SETTINGS}
    head = {"name": name, "settings": settings, "versions": results.versions()}
    corpus, runs = load(), []
    for seed in range(SEEDS.value):
        for share in (None, *map(float, COMPRESSION.value)):
            title = "full rank" if share is None else f"low-rank, {100 * share:g}% saved"
            method = FULL_RANK if share is None else LOW_RANK
            model, run = train(method, corpus, seed, title, share)
            runs.append(run)
            # After every run, so that an interruption loses at most one.
            results.write_json(path, {**head, "runs": runs}, verbose=len(runs) == 1)
    measures = [name for key, (name, _) in _MEASURES.items() if key in runs[0]]
    header = ("method", *measures, "projections", "saved", "weights", "s/epoch")
    title = f"Transformer, {name}: {len(corpus.test):,} test pairs"
    results.print_table(title, (*header, "seeds"), list(rows(runs)))
    kernels = find_low_rank_layers(model).items()
    ranks = [(path, f"{one.factors.n} x {one.factors.m}", str(one.rank)) for path, one in kernels]
    if ranks:
        results.print_table(
            f"Ranks of the last run, {title}", ("projection", "n x m", "rank"), ranks
        )
    some = next(corpus.test.batches(5))
    said = answer(model, some.source, corpus.target.start)
    told = zip(some.source, some.outputs, said)
    lines = [
        (corpus.source.text(source), corpus.target.text(true), corpus.target.text(own))
        for source, true, own in told
    ]
    results.print_table("What it says", ("source", "target", "answer"), lines)


if __name__ == "__main__":
    results.run(main)
