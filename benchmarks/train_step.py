"""How long is one training step: full-rank, two-factor and low-rank, in one process?

All networks train with SGD on one batch of random numbers. `--network` chooses one:
  dense          784-5120-5120-5120-5120-10, the default;
  conv           3 x 3 convolutions of 256 channels on 16 x 16 images; conv_spatial and conv_tucker
                 in the other forms; conv1d, conv3d and conv_transpose are like it;
  lenet5         the paper's LeNet5;
  attention      self-attention with 8 heads of 64 on 128 positions;
  embedding      a table of 200,000 x 512 and sequences of 32 indices;
  lstm           512 units on 64 vectors of 256.
The methods:
  full_rank      keras.layers, compiled with Keras's defaults;
  two_factor     plain Keras, two layers instead of one, at fixed rank;
  parallel, rank_adaptive, fixed_rank   this package, complete steps with all decisions on ranks.
The models take turns. Ratios are within a round, medians and quartiles over the rounds.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --widths 784,784,784,784 --ranks 8,32,128
    python benchmarks/train_step.py --network conv --batch 16 --ranks 32,64
    python benchmarks/train_step.py --network conv_spatial --batch 16 --ranks 53,107
    python benchmarks/train_step.py --network conv_tucker --batch 16 --ranks 71,110
    python benchmarks/train_step.py --network lenet5 --batch 128 --ranks 16,32,100
    python benchmarks/train_step.py --network attention --batch 16 --layers 1 --ranks 32
    python benchmarks/train_step.py --network embedding --ranks 64
    python benchmarks/train_step.py --network lstm --batch 64 --ranks 32,64
"""

import measuring
import networks
import reporting
from absl import flags

NETWORKS = ["dense", *networks.CONVOLUTIONS, "lenet5", "attention", "embedding", "lstm"]
NETWORK = flags.DEFINE_enum("network", "dense", NETWORKS, "What to train.")
WIDTHS = reporting.define_numbers("widths", ["5120"] * 4, "Neurons of the hidden dense layers.")
RANKS = reporting.define_numbers("ranks", ["32", "128"], "Ranks; each gives its own rows.")
LAYERS = flags.DEFINE_integer("layers", 2, "Convolutions, or attentions.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 256, "Rows in a batch.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 4, "Rounds; in each, every model once.", lower_bound=1)
# One step in 16 measures the orthonormality of the bases; a turn has it once.
STEPS = flags.DEFINE_integer("steps", 16, "Steps of a low-rank model in a round.", lower_bound=1)
METHODS = flags.DEFINE_multi_enum(
    "method", list(networks.METHODS), networks.METHODS, "What to measure beside full rank."
)


def build(method, rank):
    if NETWORK.value in networks.CONVOLUTIONS:
        return networks.conv(method, LAYERS.value, NETWORK.value, rank=rank)
    if NETWORK.value == "lenet5":
        return networks.lenet5(method, rank)
    if NETWORK.value == "attention":
        return networks.attention(method, LAYERS.value, rank=rank)
    if NETWORK.value == "embedding":
        return networks.embedding(method, rank)
    if NETWORK.value == "lstm":
        return networks.lstm(method, rank)
    return networks.dense(method, reporting.numbers(WIDTHS), rank)


def main(_):
    keys = [("full_rank", None)]
    keys += [(method, rank) for rank in reporting.numbers(RANKS) for method in METHODS.value]
    steps = {key: measuring.TrainingSteps(build(*key), BATCH.value) for key in keys}
    # Fewer steps of full rank, which take much longer.
    calls = {key: max(1, STEPS.value // 8) if key[1] is None else STEPS.value for key in keys}
    seconds = measuring.seconds_in_turns(steps, ROUNDS.value, calls)
    rows = []
    for method, rank in keys:
        measuring.check_ranks(steps[method, rank].model, rank)
        to_full = measuring.ratio(seconds, (method, rank), keys[0])
        row = {"method": method, "rank": rank, "ratio_to_full_rank": to_full[1]}
        row["ms_per_step"] = measuring.milliseconds(seconds, (method, rank))
        row["quartiles_to_full_rank"] = [to_full[0], to_full[2]]
        if ("two_factor", rank) in keys:
            to_two = measuring.ratio(seconds, (method, rank), ("two_factor", rank))
            row["ratio_to_two_factor"] = to_two[1]
            row["quartiles_to_two_factor"] = [to_two[0], to_two[2]]
        row["full_rank_over_it"] = 1.0 / to_full[1]
        row["ms_of_rounds"] = [1000.0 * second for second in seconds[method, rank]]
        rows.append(row)
    widths = "-".join(map(str, [networks.FEATURES, *reporting.numbers(WIDTHS), networks.CLASSES]))
    names = {
        "dense": widths,
        "lenet5": "LeNet5",
        "attention": f"{LAYERS.value} x attention, 8 heads of 64 on 128 x 512",
        "embedding": "an embedding of 200,000 x 512 on 32 indices",
        "lstm": "an LSTM of 512 units on 64 vectors of 256",
    }
    for name, (*_, extents) in networks.CONVOLUTIONS.items():
        size, on = "x".join("3" * len(extents)), "x".join(map(str, extents))
        names[name] = f"{LAYERS.value} x {name} {size}x256x256 on {on}"
    network = names[NETWORK.value]
    columns = {
        "method": "{}",
        "rank": "{}",
        "ms_per_step": "{:.1f}",
        "ratio_to_full_rank": "{:.3f}",
        "full_rank_over_it": "{:.1f}",
        "ratio_to_two_factor": "{:.2f}",
    }
    title = f"One training step of {network}, batch {BATCH.value}"
    settings = {"network": network, "batch": BATCH.value, "rounds": ROUNDS.value}
    name = f"train_step_{NETWORK.value}"
    reporting.report(name, title, rows, columns, steps=STEPS.value, **settings)


if __name__ == "__main__":
    reporting.run(main)
