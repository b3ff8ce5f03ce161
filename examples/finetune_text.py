"""Fine-tuning of a small transformer for text: all weights, LoRA of fixed ranks, and adapters.

The tokens of a sequence go up by a step. A causal model learns to count on, or a classifier to name
the step. Each is then fine-tuned to sequences with two alternating steps: to count on, or to name
the larger one. All of it is generated, so nothing is downloaded. Every row trains from the same
pretrained weights: all of them, Keras's `enable_lora` of some ranks, and adapters whose ranks
follow a tolerance, or a budget for the weights that are trained.

    python examples/finetune_text.py                      # minutes
    python examples/finetune_text.py --task=classify --seeds=3 --plot=loss.png
    python examples/finetune_text.py --quantize=int8      # adapters on an int8 base, too
    python examples/finetune_text.py --pretraining=2 --epochs=2 --train=500  # a short run

With a network, a preset of KerasHub (`pip install -e '.[hub]'`) is fine-tuned to a task of GLUE:

    python examples/finetune_text.py --preset=bert_tiny_en_uncased --glue=sst2 --learning_rate=1e-3

Writes out/finetune_text/TASK.json with every run and the rank of every adapter.
"""

import functools
import pathlib

import keras
import numpy as np
import tensorflow_datasets as tfds
from absl import flags

import finetuning
import image_data
import results

flags.adopt_module_key_flags(finetuning)
flags.adopt_module_key_flags(image_data)
TASK = flags.DEFINE_enum("task", "count", ["count", "classify"], "What the model learns.")
TOKENS = flags.DEFINE_integer("tokens", 48, "Size of the vocabulary.", lower_bound=8)
LENGTH = flags.DEFINE_integer("length", 20, "Tokens of a sequence.", lower_bound=4)
WIDTH = flags.DEFINE_integer("width", 64, "Features of a token.", lower_bound=4)
HEADS = flags.DEFINE_integer("heads", 4, "Heads of attention.", lower_bound=1)
LAYERS = flags.DEFINE_integer("layers", 2, "Blocks of the transformer.", lower_bound=1)
TRAIN = flags.DEFINE_integer("train", 4_000, "Sequences to train on.", lower_bound=1)
TEST = flags.DEFINE_integer("test", 1_000, "Sequences to test on.", lower_bound=1)
PRETRAINING = flags.DEFINE_integer("pretraining", 10, "Epochs on the first task.", lower_bound=1)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/finetune_text", "Folder for the JSON.")
PRESET = flags.DEFINE_string("preset", None, "A preset of KerasHub: its name, or a folder.")
GLUE = flags.DEFINE_enum(
    "glue",
    None,
    ["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"],
    "The task of GLUE, by its name in tensorflow-datasets.",
)
flags.register_multi_flags_validator(
    ["preset", "glue"],
    lambda values: (values["preset"] is None) == (values["glue"] is None),
    "go together",
)
_SETTINGS = (TASK, TOKENS, LENGTH, WIDTH, HEADS, LAYERS, TRAIN, TEST, PRETRAINING, PRESET, GLUE)


def sequences(count, steps, seed):
    """`(tokens, steps)`: tokens that go up by one or several steps in turn, from anywhere.

    The steps are drawn for each sequence, so that a model has to read them off its beginning.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, TOKENS.value // 2, (count, steps))
    moves = np.tile(drawn, (1, LENGTH.value // steps + 1))[:, : LENGTH.value]
    start = rng.integers(0, TOKENS.value, (count, 1))
    return np.concatenate([start, start + np.cumsum(moves, axis=1)], axis=1) % TOKENS.value, drawn


def examples(count, steps, seed):
    """`(inputs, labels)`: the next tokens, or the largest step."""
    tokens, drawn = sequences(count, steps, seed)
    return tokens[:, :-1], tokens[:, 1:] if TASK.value == "count" else drawn.max(axis=1)


@keras.saving.register_keras_serializable("examples")
class Positions(keras.layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="uniform", name="table")

    def call(self, inputs):
        return inputs + self.table


def build():
    """The transformer: `tokens -> logits`, of the next token, or of the step."""
    layers, width, causal = keras.layers, WIDTH.value, TASK.value == "count"
    tokens = keras.Input((LENGTH.value,), dtype="int32")
    x = Positions()(layers.Embedding(TOKENS.value, width)(tokens))
    for i in range(LAYERS.value):
        y = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(HEADS.value, width // HEADS.value, name=f"self_{i}")
        x = layers.Add()([x, attention(y, y, use_causal_mask=causal)])
        y = layers.Dense(4 * width, activation="gelu", name=f"wide_{i}")(
            layers.LayerNormalization()(x)
        )
        x = layers.Add()([x, layers.Dense(width, name=f"narrow_{i}")(y)])
    x = layers.LayerNormalization()(x)
    if not causal:
        x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(TOKENS.value, name="head")(x))


def pretrained(weights):
    model = build()
    model.set_weights(weights)
    return model


def generated_starts():
    """A `Start` for each seed: trained on one step, with data of two."""
    for seed in range(finetuning.SEEDS.value):
        keras.utils.set_random_seed(seed)
        model = finetuning.compiled(build())
        model.fit(
            *examples(TRAIN.value, 1, seed),
            batch_size=finetuning.BATCH_SIZE.value,
            epochs=PRETRAINING.value,
            verbose=0,
        )
        train, test = (
            examples(count, 2, 1_000 + 2 * seed + i)
            for i, count in enumerate((TRAIN.value, TEST.value))
        )
        make = functools.partial(pretrained, model.get_weights())
        yield finetuning.Start(make, train, test, head=[])


def glue_data():
    """`(train, validation, number of classes)` of a task of GLUE; texts as tuples of arrays."""
    builder = tfds.builder(f"glue/{GLUE.value}")
    image_data.prepare(builder)
    held_out = next(name for name in builder.info.splits if name.startswith("validation"))
    parts = []
    for split, count in (("train", TRAIN.value), (held_out, TEST.value)):
        columns = next(iter(tfds.as_numpy(builder.as_dataset(split=split).batch(count))))
        texts = [values for name, values in sorted(columns.items()) if name not in ("idx", "label")]
        parts.append((texts[0] if len(texts) == 1 else tuple(texts), columns["label"]))
    return *parts, builder.info.features["label"].num_classes


def preset_starts():
    """A `Start` for each seed: a classifier from a preset, with a head that is new."""
    import keras_hub

    train, test, classes = glue_data()

    def make(seed):
        keras.utils.set_random_seed(seed)
        return keras_hub.models.TextClassifier.from_preset(PRESET.value, num_classes=classes)

    def add_lora(model, rank, head):
        model.backbone.enable_lora(rank)

    model = make(0)
    head = [one.name for one in model.layers if one.weights and one is not model.backbone]
    for seed in range(finetuning.SEEDS.value):
        yield finetuning.Start(functools.partial(make, seed), train, test, head, add_lora)


def main(_):
    name, title = TASK.value, "From one step to two in turn"
    starts = preset_starts if PRESET.value else generated_starts
    if PRESET.value:
        name = f"{pathlib.Path(PRESET.value).name}_{GLUE.value}"
        title = f"{PRESET.value} on GLUE's {GLUE.value}"
    path = pathlib.Path(OUTPUT_DIR.value, f"{name}.json")
    finetuning.compare(title, path, starts(), _SETTINGS)


if __name__ == "__main__":
    results.run(main)
