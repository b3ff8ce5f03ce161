"""Up to which rank is low-rank faster, in training and in inference?

A network with four hidden layers of equal width. A training step of `parallel` and a prediction of
Keras are compared with full rank. The break-even rank is where the ratio crosses 1, interpolated in
the logarithms. The numbers of weights cross at half the width.

    python benchmarks/breakeven.py
"""

import measuring
import networks
import numpy as np
import reporting
from absl import flags

WIDTH = flags.DEFINE_integer("width", 2048, "Neurons of each hidden layer.", lower_bound=8)
RANKS = reporting.define_numbers("ranks", ["64", "128", "256", "512", "768"], "Ranks, ascending.")
BATCH = flags.DEFINE_integer("batch", 256, "Rows in a batch.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; in each, every model once.", lower_bound=1)
CALLS = flags.DEFINE_integer("calls", 3, "Steps of a model in a round.", lower_bound=1)


def main(_):
    widths, ranks = [WIDTH.value] * 4, reporting.numbers(RANKS)
    models = {None: networks.dense("full_rank", widths)}
    models |= {rank: networks.dense("parallel", widths, rank) for rank in ranks}
    data = np.zeros((BATCH.value, networks.FEATURES), "float32")
    tasks = {
        "training": {k: measuring.TrainingSteps(m, BATCH.value) for k, m in models.items()},
        "inference": {k: (lambda m=m: m.predict_on_batch(data)) for k, m in models.items()},
    }
    rows, lines = [], {}
    for task, candidates in tasks.items():
        seconds = measuring.seconds_in_turns(candidates, ROUNDS.value, CALLS.value)
        ratios = [measuring.ratio(seconds, rank, None)[1] for rank in ranks]
        lines[task] = (ranks, ratios)
        rows.append({"task": task, "break_even_rank": _crossing(ranks, ratios)})
        rows[-1] |= {f"rank_{rank}": ratio for rank, ratio in zip(ranks, ratios)}
    columns = {"task": "{}"} | {f"rank_{rank}": "{:.2f}" for rank in ranks}
    columns["break_even_rank"] = "{}"
    title = f"Time over that of full rank, four hidden layers of {WIDTH.value}"
    reporting.report("breakeven", title, rows, columns, width=WIDTH.value, batch=BATCH.value)
    reporting.plot("breakeven", title, lines, "rank", "time / full rank", level=1.0)


def _crossing(ranks, ratios):
    """The rank where the ratio first reaches 1, or a text if it never does."""
    if ratios[0] >= 1:
        return f"below {ranks[0]}"
    for i in range(1, len(ranks)):
        if ratios[i] >= 1:
            logs = np.log(ratios[i - 1 : i + 1])
            return round(float(np.exp(np.interp(0.0, logs, np.log(ranks[i - 1 : i + 1])))))
    return f"above {ranks[-1]}"


if __name__ == "__main__":
    reporting.run(main)
