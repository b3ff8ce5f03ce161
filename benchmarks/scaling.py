"""How does the cost of a training step grow with width, rank and batch?

One parameter at a time is doubled; the others stay at 2048, 64 and 256. The exponent is the slope
of a line through the logarithms of the median times. Beside it is that of a formula: a step of four
hidden layers of width n takes about this many multiply-adds:

    24 (3 b r n + 3 r^2 n) + 6 b n (784 / n + 10)      low-rank, at batch b and rank r,
    18 b n^2 + 6 b n (784 + 10)                         full-rank.

    python benchmarks/scaling.py
"""

import measuring
import networks
import numpy as np
import reporting
from absl import flags

ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; in each, every model once.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 5, "Steps of a model in a round.", lower_bound=1)

_BASE = {"width": 2048, "rank": 64, "batch": 256}
_VALUES = {
    "width": [1024, 2048, 4096],
    "rank": [32, 64, 128, 256],
    "batch": [64, 128, 256, 512],
}
_METHODS = ("full_rank", "two_factor", "parallel")


def flops(method, width, rank, batch):
    ends = 6 * batch * width * networks.CLASSES
    if method == "full_rank":
        return 18 * batch * width**2 + 6 * batch * width * networks.FEATURES + ends
    sides = 7 * width + networks.FEATURES
    bases = 0 if method == "two_factor" else 6 * rank**2 * sides
    return 6 * batch * rank * sides + bases + ends


def main(_):
    rows, lines = [], {}
    for parameter, values in _VALUES.items():
        steps = {}
        for value in values:
            point = {**_BASE, parameter: value}
            for method in _METHODS:
                if method == "full_rank" and parameter == "rank":
                    continue
                model = networks.dense(method, [point["width"]] * 4, point["rank"])
                steps[method, value] = measuring.TrainingSteps(model, point["batch"])
        seconds = measuring.seconds_in_turns(steps, ROUNDS.value, STEPS.value)
        for method in dict.fromkeys(method for method, _ in steps):
            times = [measuring.milliseconds(seconds, (method, value)) for value in values]
            counts = [flops(method, **{**_BASE, parameter: value}) for value in values]
            lines[f"{method}, {parameter}"] = (np.array(values) / _BASE[parameter], times)
            rows.append(
                {
                    "parameter": parameter,
                    "method": method,
                    "values": values,
                    "ms_per_step": times,
                    "exponent": _slope(values, times),
                    "exponent_of_formula": _slope(values, counts),
                }
            )
    columns = {"parameter": "{}", "method": "{}", "values": "{}"}
    columns |= {"exponent": "{:.2f}", "exponent_of_formula": "{:.2f}"}
    title = "Growth of the time of a step: exponents around width 2048, rank 64, batch 256"
    reporting.report("scaling", title, rows, columns, base=_BASE, rounds=ROUNDS.value)
    reporting.plot("scaling", title, lines, "parameter / its base value", "ms per step")


def _slope(values, costs):
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


if __name__ == "__main__":
    reporting.run(main)
