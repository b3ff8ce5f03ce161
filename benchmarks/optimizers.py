"""What do momentum and Adam cost beside plain SGD?

784-5120-5120-5120-5120-10 by default, or with `--network embedding` a table of 200,000 x 512 and
sequences of 32 indices, on one batch of random numbers. Two Keras factors and `parallel` train with
plain SGD, SGD with momentum 0.9, and Adam. The models take turns. Ratios are to the plain step of
the same method within a round, medians over the rounds.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --widths 784,784,784,784 --ranks 128
    python benchmarks/optimizers.py --network embedding --ranks 64
    python benchmarks/optimizers.py --network embedding --vocabulary 32000 --ranks 64
"""

import keras
import measuring
import networks
import reporting
from absl import flags

NETWORK = flags.DEFINE_enum("network", "dense", ["dense", "embedding"], "What to train.")
VOCABULARY = flags.DEFINE_integer("vocabulary", 200_000, "Rows of that table.", lower_bound=1)
WIDTHS = reporting.define_numbers("widths", ["5120"] * 4, "Neurons of the hidden dense layers.")
RANKS = reporting.define_numbers("ranks", ["32"], "Ranks; each gives its own rows.")
BATCH = flags.DEFINE_integer("batch", 256, "Rows in a batch.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 8, "Rounds; in each, every model once.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 16, "Steps of a model in a round.", lower_bound=1)

# Small, so that most steps stay in the chart, as in real training.
_OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(1e-3),
    "momentum": lambda: keras.optimizers.SGD(1e-4, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(1e-5),
}


def _build(method, rank, optimizer):
    if NETWORK.value == "embedding":
        return networks.embedding(method, rank, VOCABULARY.value, optimizer=optimizer)
    return networks.dense(method, reporting.numbers(WIDTHS), rank, optimizer)


def main(_):
    keys = [
        (method, rank, optimizer)
        for rank in reporting.numbers(RANKS)
        for method in ("two_factor", "parallel")
        for optimizer in _OPTIMIZERS
    ]
    steps = {}
    for method, rank, optimizer in keys:
        model = _build(method, rank, _OPTIMIZERS[optimizer]())
        steps[method, rank, optimizer] = measuring.TrainingSteps(model, BATCH.value)
    seconds = measuring.seconds_in_turns(steps, ROUNDS.value, STEPS.value)
    rows = []
    for method, rank, optimizer in keys:
        key = (method, rank, optimizer)
        measuring.check_ranks(steps[key].model, rank)
        rows.append(
            {
                "method": method,
                "rank": rank,
                "optimizer": optimizer,
                "ms_per_step": measuring.milliseconds(seconds, key),
                "ratio_to_sgd": measuring.ratio(seconds, key, (method, rank, "sgd"))[1],
                "ratio_to_two_factor": measuring.ratio(
                    seconds, key, ("two_factor", rank, optimizer)
                )[1],
                "ms_of_rounds": [1000.0 * second for second in seconds[key]],
            }
        )
    columns = {
        "method": "{}",
        "rank": "{}",
        "optimizer": "{}",
        "ms_per_step": "{:.1f}",
        "ratio_to_sgd": "{:.2f}",
        "ratio_to_two_factor": "{:.2f}",
    }
    name = "optimizers" if NETWORK.value == "dense" else f"optimizers_{NETWORK.value}"
    title = f"A training step by optimizer, batch {BATCH.value}"
    settings = {"batch": BATCH.value, "rounds": ROUNDS.value, "steps": STEPS.value}
    if NETWORK.value == "dense":
        settings["widths"] = reporting.numbers(WIDTHS)
    else:
        settings["vocabulary"] = VOCABULARY.value
    reporting.report(name, title, rows, columns, **settings)


if __name__ == "__main__":
    reporting.run(main)
