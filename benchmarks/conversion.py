"""How much time and memory does conversion take, and how good is the decomposition?

First, `from_keras` on networks of keras.applications with random weights, by an energy and by a
rank, each in its own process. The time excludes the start of Python and building the network; the
peak memory includes both. The processor time is that of all cores together.

Then single kernels, in turns with NumPy's full SVD: the eigenvectors of the Gram matrix, for every
rank, and the randomised decomposition, for one rank. The error is that of the approximation, beside
the least possible one at that rank.

    python benchmarks/conversion.py
    python benchmarks/conversion.py --networks= --shapes 4096x4096 --ranks 32,128,512
"""

import json
import time

import keras
import measuring
import numpy as np
import reporting
from absl import flags

import keras_lowrank
from keras_lowrank.convert import Decomposition

NETWORKS = flags.DEFINE_list("networks", ["ResNet50", "VGG16"], "Of keras.applications, or none.")
ENERGY = flags.DEFINE_float("energy", 0.9, "The share of each squared norm to keep.", 0.0, 1.0)
BY_RANK = flags.DEFINE_integer("by_rank", 32, "The rank to convert to.", lower_bound=1)
SHAPES = flags.DEFINE_list("shapes", ["2048x2048", "4608x512"], "Kernels to decompose, or none.")
RANKS = reporting.define_numbers("ranks", ["16", "64", "256"], "Ranks; each gives its own rows.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; in each, all once.", lower_bound=1)
_CHILD = flags.DEFINE_string("child", None, "For its own processes: what to measure, as JSON.")

# Singular values i^-decay; without a decay, independent entries as from initializers.
_DECAYS = {"random": None, "1 / sqrt(i)": 0.5, "1 / i": 1.0}


def convert_here(network, rule):
    """Converts a network and prints the time and memory."""
    model = getattr(keras.applications, network)(weights=None)
    seconds, processors = time.perf_counter(), time.process_time()
    low_rank = keras_lowrank.from_keras(model, **rule)
    measured = {
        "seconds": time.perf_counter() - seconds,
        "processor_seconds": time.process_time() - processors,
        "megabytes": measuring.peak_megabytes(),
        "weights": low_rank.compression().full,
        "weights_left": low_rank.compression().factored,
    }
    print(json.dumps(measured))


def conversions():
    rows = []
    for network in NETWORKS.value:
        for rule in ({"energy": ENERGY.value}, {"rank": BY_RANK.value}):
            (name, value), *_ = rule.items()
            measured = measuring.in_a_process(__file__, (network, rule))
            rows.append({"network": network, "rule": f"{name} {value}", **measured})
    columns = {"network": "{}", "rule": "{}", "seconds": "{:.1f}", "processor_seconds": "{:.1f}"}
    columns |= {"megabytes": "{:.0f}", "weights": "{:,}", "weights_left": "{:,}"}
    reporting.report("conversion", "from_keras on random weights", rows, columns)


def kernel(shape, decay):
    """A matrix of norm 1 in float32."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal(shape)
    if decay is not None:
        left, right = (np.linalg.qr(part)[0] for part in (matrix, random.standard_normal(shape).T))
        values = np.arange(1.0, min(shape) + 1.0) ** -decay
        matrix = left[:, : len(values)] * values @ right[:, : len(values)].T
    return (matrix / np.linalg.norm(matrix)).astype("float32")


def decompositions():
    rows = []
    for shape in (tuple(map(int, text.split("x"))) for text in SHAPES.value):
        for spectrum, decay in _DECAYS.items():
            matrix = kernel(shape, decay)
            ranks = [rank for rank in reporting.numbers(RANKS) if rank < min(shape)]
            tasks = {"numpy": lambda w=matrix: np.linalg.svd(w, full_matrices=False)}
            for rank in ranks:
                tasks["gram", rank] = lambda w=matrix, r=rank: Decomposition(w).factors(r)
                tasks["by rank", rank] = lambda w=matrix, r=rank: Decomposition(w, rank=r).factors(
                    r
                )
            seconds = measuring.seconds_in_turns(tasks, ROUNDS.value, 1)
            values = np.linalg.svd(matrix.astype("float64"), compute_uv=False)
            for method, rank in (key for key in tasks if key != "numpy"):
                u, s, v = tasks[method, rank]()
                least = np.linalg.norm(values[rank:])
                rows.append(
                    {
                        "shape": "x".join(map(str, shape)),
                        "spectrum": spectrum,
                        "rank": rank,
                        "method": method,
                        "ms": measuring.milliseconds(seconds, (method, rank)),
                        "ms_of_numpy": measuring.milliseconds(seconds, "numpy"),
                        "numpy_over_it": 1 / measuring.ratio(seconds, (method, rank), "numpy")[1],
                        "error": np.linalg.norm(matrix - u @ s @ v.T).item(),
                        "error_over_least": np.linalg.norm(matrix - u @ s @ v.T).item() / least,
                    }
                )
    columns = dict.fromkeys(("shape", "spectrum", "rank", "method"), "{}")
    columns |= {"ms": "{:.0f}", "ms_of_numpy": "{:.0f}", "numpy_over_it": "{:.1f}"}
    columns |= {"error": "{:.4f}", "error_over_least": "{:.5f}"}
    title = "One kernel, beside numpy.linalg.svd"
    reporting.report("decomposition", title, rows, columns, rounds=ROUNDS.value)


def main(_):
    if _CHILD.value:
        convert_here(*json.loads(_CHILD.value))
        return
    if NETWORKS.value:
        conversions()
    if SHAPES.value:
        decompositions()


if __name__ == "__main__":
    reporting.run(main)
