"""How long does `fit` take to its first step?

TensorFlow traces a step and optimises its graph before it runs for the first time. Networks of 4
and of 16 hidden layers, 256 neurons each, at full rank, with two plain factors and by two
integrators: the seconds of a first `fit` of two steps, models made anew in every round, medians.

    python benchmarks/first_step.py
"""

import statistics
import time

import keras
import measuring
import networks
import reporting
from absl import flags

LAYERS = reporting.define_numbers("layers", ["4", "16"], "Hidden layers; each gives its own rows.")
RANK = flags.DEFINE_integer("rank", 32, "Rank of all hidden layers.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; in each, every network once.", lower_bound=1)

_METHODS = ("full_rank", "two_factor", "parallel", "rank_adaptive")
_WIDTH, _BATCH = 256, 64


def seconds_to_first_step(method, layers):
    keras.utils.clear_session()
    model = networks.dense(method, [_WIDTH] * layers, RANK.value)
    begin = time.perf_counter()
    measuring.TrainingSteps(model, _BATCH)
    return time.perf_counter() - begin


def main(_):
    seconds_to_first_step("full_rank", 1)  # what TensorFlow does once in a process
    keys = [(layers, method) for layers in reporting.numbers(LAYERS) for method in _METHODS]
    seconds = {key: [] for key in keys}
    for _ in range(ROUNDS.value):
        for layers, method in keys:
            seconds[layers, method].append(seconds_to_first_step(method, layers))
    rows = [
        {
            "layers": layers,
            "method": method,
            "seconds": statistics.median(seconds[layers, method]),
            "seconds_of_rounds": seconds[layers, method],
        }
        for layers, method in keys
    ]
    columns = {"layers": "{}", "method": "{}", "seconds": "{:.2f}"}
    settings = {"rank": RANK.value, "width": _WIDTH, "batch": _BATCH}
    reporting.report("first_step", "Seconds to the first step", rows, columns, **settings)


if __name__ == "__main__":
    reporting.run(main)
