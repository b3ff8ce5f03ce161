"""What does a training step with adapters take, over one of Keras's LoRA at the same rank?

The network is an encoder as in BERT (6 layers of width 256 on 128 positions) with a frozen base.
LoRA and adapters are in the same layers, all projections. Adapters are measured with ranks that
follow a tolerance, and with frozen ranks. The first step is a first `fit` of two steps with new
models in every round; ratios are within a round.

    python benchmarks/adapters.py
    python benchmarks/adapters.py --rank=4 --length=64 --optimizer=sgd
"""

import gc
import time

import keras
import measuring
import networks
import numpy as np
import reporting
from absl import flags

import keras_lowrank

_OPTIMIZERS = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
RANK = flags.DEFINE_integer("rank", 8, "The rank of LoRA, and of adapters.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 256, "Width of the encoder.", lower_bound=4)
LENGTH = flags.DEFINE_integer("length", 128, "Positions.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 16, "Sequences in a batch.", lower_bound=1)
OPTIMIZER = flags.DEFINE_enum("optimizer", "adam", list(_OPTIMIZERS), "By its name in Keras.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; in each, every model once.", lower_bound=1)
FIRST = flags.DEFINE_integer("first_rounds", 3, "Rounds of first steps.", lower_bound=0)
CALLS = flags.DEFINE_integer("calls", 16, "Steps of a model in a round.", lower_bound=1)


def lora():
    model = _base()
    for variable in model.trainable_variables:
        variable.trainable = False
    for layer in model._flatten_layers():
        if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
            layer.enable_lora(RANK.value)
    return _compiled(model)


def adapters(frozen):
    model = _base()
    keras_lowrank.add_adapters(model, rank=RANK.value, max_rank=RANK.value)
    if frozen:
        model.freeze_ranks()
    return _compiled(model, truncation=0.0)  # the ranks that it starts with


METHODS = {
    "LoRA": lora,
    "adapters": lambda: adapters(False),
    "adapters, frozen ranks": lambda: adapters(True),
}


def _base():
    keras.utils.set_random_seed(0)
    return networks.bert(width=WIDTH.value, length=LENGTH.value)


def _compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(_OPTIMIZERS[OPTIMIZER.value](), loss, **options)
    return model


def seconds_to_first_step(make):
    keras.utils.clear_session()
    gc.collect()
    model = make()
    begin = time.perf_counter()
    measuring.TrainingSteps(model, BATCH.value)
    return time.perf_counter() - begin


def main(_):
    steps = {name: measuring.TrainingSteps(make(), BATCH.value) for name, make in METHODS.items()}
    seconds = measuring.seconds_in_turns(steps, ROUNDS.value, CALLS.value)
    for name, step in steps.items():
        measuring.check_ranks(step.model, RANK.value)
        trained = sum(np.prod(v.shape) for v in step.model.trainable_variables)
        print(f"{name}: {trained:,} trained weights")
    del steps
    first = {name: [] for name in METHODS}
    for _ in range(FIRST.value):
        for name, make in METHODS.items():
            first[name].append(seconds_to_first_step(make))
    rows = []
    for name in METHODS:
        low, ratio, high = measuring.ratio(seconds, name, "LoRA")
        row = {"method": name, "ms_a_step": measuring.milliseconds(seconds, name)}
        row |= {"over_LoRA": ratio, "from": low, "to": high}
        if first[name]:
            row |= {"first_step_s": float(np.median(first[name]))}
            row |= {"first_over_LoRA": measuring.ratio(first, name, "LoRA")[1]}
        rows.append(row)
    columns = {"method": "{}", "ms_a_step": "{:.1f}", "over_LoRA": "{:.2f}", "from": "{:.2f}"}
    columns |= {"to": "{:.2f}", "first_step_s": "{:.1f}", "first_over_LoRA": "{:.2f}"}
    settings = {"rank": RANK.value, "width": WIDTH.value, "length": LENGTH.value}
    settings |= {"batch": BATCH.value, "optimizer": OPTIMIZER.value}
    reporting.report("adapters", "A step over LoRA's", rows, columns, **settings)


if __name__ == "__main__":
    reporting.run(main)
