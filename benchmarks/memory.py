"""How much memory do training and inference take: full-rank, two-factor and low-rank?

Every row is one process that builds 784-5120-5120-5120-5120-10, or with `--network embedding` a
table of 200,000 x 512, and trains it for some steps or predicts with it. The figure is its peak
resident memory minus that of the same process with hidden layers of 8 neurons, or a table of 8 x 8,
which is what Python, TensorFlow and a trace take.

    python benchmarks/memory.py
    python benchmarks/memory.py --network embedding --ranks 64
"""

import json
import multiprocessing.pool

import keras
import measuring
import networks
import numpy as np
import reporting
from absl import flags

NETWORK = flags.DEFINE_enum("network", "dense", ["dense", "embedding"], "What to measure.")
WIDTHS = reporting.define_numbers("widths", ["5120"] * 4, "Neurons of the hidden dense layers.")
RANKS = reporting.define_numbers("ranks", ["32", "128"], "Ranks; each gives its own rows.")
BATCH = flags.DEFINE_integer("batch", 256, "Rows in a batch.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 5, "Steps, or predictions.", lower_bound=1)
METHODS = flags.DEFINE_multi_enum(
    "method",
    ["two_factor", "parallel"],
    networks.METHODS,
    "What to measure beside full rank.",
)
_CHILD = flags.DEFINE_string("child", None, "For its own processes: what to measure, as JSON.")


def build(method, rank, sizes, optimizer):
    if NETWORK.value == "embedding":
        return networks.embedding(method, rank, *sizes, optimizer=optimizer)
    return networks.dense(method, sizes, rank, optimizer)


def measure_here(task, method, rank, optimizer, sizes):
    """Does the task and prints this process's peak memory in MB."""
    # A small learning rate, so that random data do not change the ranks.
    optimizers = {"adam": keras.optimizers.Adam(1e-5), "sgd": keras.optimizers.SGD(1e-3)}
    model = build(method, rank, sizes, optimizers.get(optimizer))
    if task == "training":
        step = measuring.TrainingSteps(model, BATCH.value)
        for _ in range(STEPS.value):
            step()
        measuring.check_ranks(model, rank)
    else:
        rows = np.zeros((BATCH.value, *model.input_shape[1:]), model.inputs[0].dtype)
        for _ in range(STEPS.value):
            model.predict_on_batch(rows)
    print(measuring.peak_megabytes())


def measure(*what):
    """Runs `measure_here` in its own process."""
    flags = f"--network={NETWORK.value}", f"--batch={BATCH.value}", f"--steps={STEPS.value}"
    return measuring.in_a_process(__file__, what, *flags)


def main(_):
    if _CHILD.value:
        measure_here(*json.loads(_CHILD.value))
        return
    sizes = reporting.numbers(WIDTHS) if NETWORK.value == "dense" else [200_000, 512]
    models = [("full_rank", None)]
    models += [(m, rank) for rank in reporting.numbers(RANKS) for m in METHODS.value]
    cases = [("training", *model, optimizer) for optimizer in ("sgd", "adam") for model in models]
    cases += [("inference", *model, None) for model in models]
    bare = {
        (task, method, optimizer): (task, method, rank and 4, optimizer, [8] * len(sizes))
        for task, method, rank, optimizer in cases
    }
    # Two at a time: most of the time is the start of Python.
    with multiprocessing.pool.ThreadPool(2) as pool, measuring.progress() as bar:
        jobs = [*bare.values(), *((*case, sizes) for case in cases)]
        results = pool.imap(lambda job: measure(*job), jobs)
        megabytes = list(bar.track(results, total=len(jobs), description="processes"))
    bare = dict(zip(bare, megabytes))
    full_rank, rows = {}, []
    for (task, method, rank, optimizer), total in zip(cases, megabytes[len(bare) :]):
        above = total - bare[task, method, optimizer]
        # The first row of each task and optimizer is full rank.
        full = full_rank.setdefault((task, optimizer), above)
        rows.append(
            {
                "task": task,
                "optimizer": optimizer,
                "method": method,
                "rank": rank,
                "megabytes": above,
                "megabytes_of_process": total,
                "full_rank_over_it": full / above,
            }
        )
    columns = dict.fromkeys(("task", "optimizer", "method", "rank"), "{}")
    columns |= {"megabytes": "{:.0f}", "megabytes_of_process": "{:.0f}"}
    columns |= {"full_rank_over_it": "{:.1f}"}
    what = {"dense": "hidden layers", "embedding": "a table of"}[NETWORK.value]
    title = f"Peak memory above the bare process, batch {BATCH.value}, {what} {sizes}"
    name = "memory" if NETWORK.value == "dense" else f"memory_{NETWORK.value}"
    reporting.report(name, title, rows, columns, batch=BATCH.value, sizes=sizes)


if __name__ == "__main__":
    keras.utils.disable_interactive_logging()
    reporting.run(main)
