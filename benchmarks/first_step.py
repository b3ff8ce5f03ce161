"""How long does `fit` take to its first step, and how many operations has a step?

TensorFlow traces a step and optimises its graph before the first run. The networks are ResNet20 on
32 x 32 images, ResNet50 on 64 x 64, an encoder as in BERT (6 layers of width 256 on 128 positions)
and 4 x 2048 dense layers, each as plain Keras and after `from_keras(rank=...)`. The seconds are the
medians of a first `fit` of two steps with new models in every round; ratios are within a round.
Operations are those of the traced step and of the functions that it calls.

    python benchmarks/first_step.py
    python benchmarks/first_step.py --optimizer adam --network bert,resnet20
    python benchmarks/first_step.py --jit --network dense,resnet20
"""

import gc
import statistics
import time

import keras
import measuring
import networks
import numpy as np
import reporting
import tensorflow as tf
from absl import flags

import keras_lowrank

_OPTIMIZERS = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
NETWORKS = flags.DEFINE_list("network", list(networks.WHOLE), "What to train.")
OPTIMIZER = flags.DEFINE_enum("optimizer", "sgd", list(_OPTIMIZERS), "By its name in Keras.")
RANK = flags.DEFINE_integer("rank", 64, "The largest rank of all layers.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; in each, every network once.", lower_bound=1)
JIT = flags.DEFINE_bool("jit", False, "Compile the step by XLA, with frozen ranks.")


def compiled(name, low_rank):
    model = networks.WHOLE[name]()
    if low_rank:
        model = keras_lowrank.from_keras(model, rank=RANK.value, only_smaller=False)
        if JIT.value:
            model.freeze_ranks()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(_OPTIMIZERS[OPTIMIZER.value](), loss, jit_compile=JIT.value)
    return model


def seconds_to_first_step(name, low_rank):
    """Builds and fits one model; returns `(seconds, model)`."""
    keras.utils.clear_session()
    gc.collect()
    model = compiled(name, low_rank)
    begin = time.perf_counter()
    measuring.TrainingSteps(model, _BATCH)
    return time.perf_counter() - begin, model


def operations(model):
    """The operations of a traced step, including the functions that it calls."""
    shape = (_BATCH, *model.input_shape[1:])
    batch = tf.zeros(shape, model.inputs[0].dtype), tf.zeros(_BATCH, "int64")
    graph = (
        tf.function(model.train_step, autograph=False)
        .get_concrete_function(batch)
        .graph.as_graph_def()
    )
    return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


def main(_):
    seconds_to_first_step("dense", False)  # warms up TensorFlow
    keys = [(name, low_rank) for name in NETWORKS.value for low_rank in (False, True)]
    seconds, counts = {key: [] for key in keys}, {}
    for _ in range(ROUNDS.value):
        for key in keys:
            taken, model = seconds_to_first_step(*key)
            seconds[key].append(taken)
            counts[key] = counts.get(key) or operations(model)
    rows = []
    for name in NETWORKS.value:
        plain, ours = (np.array(seconds[name, low_rank]) for low_rank in (False, True))
        row = {"network": name, "full_rank": statistics.median(plain)}
        row |= {"low_rank": statistics.median(ours), "ratio": float(np.median(ours / plain))}
        row |= {"full_rank_operations": counts[name, False]}
        row |= {"low_rank_operations": counts[name, True], "seconds_of_rounds": ours.tolist()}
        rows.append(row)
    seconds_as = dict.fromkeys(("full_rank", "low_rank", "ratio"), "{:.2f}")
    columns = {"network": "{}", **seconds_as}
    columns |= dict.fromkeys(("full_rank_operations", "low_rank_operations"), "{:,}")
    settings = {"rank": RANK.value, "batch": _BATCH, "optimizer": OPTIMIZER.value}
    title = "Seconds to the first step"
    reporting.report("first_step", title, rows, columns, jit=JIT.value, **settings)


_BATCH = 16

if __name__ == "__main__":
    reporting.run(main)
