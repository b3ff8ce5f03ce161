"""Accuracy under attack: full rank, low-rank, and low-rank with a penalty on the condition.

LeNet5 on MNIST, attacked by the fast gradient sign method (arXiv:1412.6572): each pixel moves by
epsilon in the direction in which the loss rises. The last rows train with `Conditioning`, which
draws the singular values of every kernel together, after "Dynamical low-rank compression of neural
networks with robustness under adversarial attacks" (Schotthoefer, Yang, Schnake, NeurIPS 2025).

    python examples/adversarial.py                         # 94% fewer weights
    python examples/adversarial.py --compression 0.9 --strengths 0.01,0.1 --seeds 3

Writes out/adversarial/adversarial.json with every run.
"""

import pathlib
import statistics

import keras
import tensorflow as tf
from absl import flags

import image_data
import results
from keras_lowrank import Budget, Conditioning, count_weights
from methods import FullRank, LowRank

flags.adopt_module_key_flags(image_data)
COMPRESSION = flags.DEFINE_float(
    "compression", 0.94, "The share of the weights to save.", 0.0, 0.99
)
STRENGTHS = flags.DEFINE_list(
    "strengths", ["0.003", "0.01", "0.03"], "Strengths of the penalty, separated by commas."
)
EPSILONS = flags.DEFINE_list(
    "epsilons", ["0", "0.05", "0.1", "0.3"], "What a pixel in [0, 1] moves by, with commas."
)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of every run.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Highest one of SGD.", lower_bound=0.0)
LIMIT = flags.DEFINE_integer("limit", 60000, "Training images.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of every row: seeds 0, 1, ...", lower_bound=1)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/adversarial", "Folder for the JSON.")


def build(layers, **options):
    inputs = keras.Input((28, 28, 1))
    x = layers.conv(20, 5, activation="relu", **options)(inputs)
    x = keras.layers.MaxPooling2D()(x)
    x = layers.conv(50, 5, activation="relu", **options)(x)
    x = keras.layers.MaxPooling2D()(x)
    x = layers.dense(500, activation="relu", **options)(keras.layers.Flatten()(x))
    return layers.model(inputs, layers.dense(10, **options)(x))


def attacked(model, images, labels, epsilon):
    """The images after one step of the fast gradient sign method, still in [0, 1]."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = keras.losses.sparse_categorical_crossentropy(labels, model(images), from_logits=True)
    step = epsilon * tf.sign(tape.gradient(loss, images))
    return tf.clip_by_value(images + step, 0.0, 1.0)


def accuracies(model, batches, epsilons):
    """The share of images that are classified right, for each epsilon."""

    @tf.function
    def hits(images, labels):
        return [
            tf.reduce_sum(tf.cast(tf.equal(tf.argmax(logits, axis=-1), labels), tf.float32))
            for logits in (model(attacked(model, images, labels, one)) for one in epsilons)
        ]

    right, count = [0.0] * len(epsilons), 0
    for images, labels in batches:
        found = hits(images, tf.cast(labels, tf.int64))
        right = [total + float(one) for total, one in zip(right, found)]
        count += len(labels)
    return [total / count for total in right]


def train(method, strength, seed, train_split, test_batches):
    """One run; returns what was measured."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    low_rank = method == "low_rank"
    options = {"kernel_regularizer": Conditioning(strength)} if strength else {}
    model = build(LowRank([20, 50, 100, 10]) if low_rank else FullRank(), **options)
    batches = train_split.training_batches(BATCH_SIZE.value, seed)
    steps = EPOCHS.value * len(batches)
    rate = keras.optimizers.schedules.CosineDecay(
        0.1 * LEARNING_RATE.value,
        steps - steps // 5,
        warmup_target=LEARNING_RATE.value,
        warmup_steps=steps // 5,
    )
    budget = Budget(compression=COMPRESSION.value, steps=max(1, steps // 4))
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **({"truncation": budget} if low_rank else {}),
    )
    bar = results.progress_bar(f"{method}, {strength:g}, seed {seed}", len(train_split.labels), 128)
    model.fit(batches, epochs=EPOCHS.value, verbose=0, shuffle=False, callbacks=[bar])
    return {
        "method": method,
        "strength": strength,
        "seed": seed,
        "accuracies": accuracies(model, test_batches, list(map(float, EPSILONS.value))),
        "weights": count_weights(model).factored,
        "ranks": list(getattr(model, "ranks", {}).values()),
    }


def rows(runs):
    for key in dict.fromkeys((run["method"], run["strength"]) for run in runs):
        same = [run for run in runs if (run["method"], run["strength"]) == key]
        means = map(statistics.mean, zip(*(run["accuracies"] for run in same)))
        yield (
            "full rank" if key[0] == "full_rank" else "low-rank",
            f"{key[1]:g}",
            *(f"{mean:.2%}" for mean in means),
            f"{statistics.mean(run['weights'] for run in same):,.0f}",
            str(len(same)),
        )


def main(_):
    path, runs = pathlib.Path(OUTPUT_DIR.value) / "adversarial.json", []
    train_split, test = image_data.load("mnist")
    settings = {"compression": COMPRESSION.value, "epochs": EPOCHS.value}
    head = {"settings": settings, "versions": results.versions()}
    strengths = (0.0, *map(float, STRENGTHS.value))
    wanted = [("full_rank", 0.0), *(("low_rank", strength) for strength in strengths)]
    for seed in range(SEEDS.value):
        for method, strength in wanted:
            split = train_split.take(LIMIT.value)
            runs.append(train(method, strength, seed, split, test.test_batches()))
            # After every run: what is interrupted keeps the runs that it has.
            results.write_json(path, {**head, "runs": runs}, verbose=len(runs) == 1)
    header = ("method", "penalty", *(f"epsilon {one}" for one in EPSILONS.value), "weights")
    results.print_table("LeNet5 on MNIST under attack", (*header, "seeds"), list(rows(runs)))


if __name__ == "__main__":
    results.run(main)
