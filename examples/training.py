"""Trains one network on images with several methods, goals and seeds. Shared by the examples.

All methods have the same number of epochs, optimizer, schedule, and batches in the same order. The
baselines have the final ranks of the low-rank run with the same row and seed, and so the same
number of parameters:

- `two_factor`: two Keras layers instead of one, or three for a Tucker-2 kernel, from the SVD of
  Keras's initial kernel;
- `svd_finetune`: full rank for the fraction `--pruning` of the epochs, until budgets are met, and
  then two factors from the SVD of the trained kernel. The schedule continues; momentum restarts
  with the factors.

The accuracy is that after the last epoch. Nothing else uses the test images.

A module of the examples, not a program.
"""

import functools
import json
import pathlib
from typing import NamedTuple

import keras
from absl import flags

import frontier
import keras_lowrank
import results
from keras_lowrank import count_weights
from methods import FullRank, LowRank, TwoFactor, weights_by_name


def _integrator():
    integrator = keras_lowrank.integrators.get(INTEGRATOR.value)
    every = ADAPT_EVERY.value
    return type(integrator)(adapt_every=every) if every else integrator


def _numbers(strings, kind, low, high):
    """Whether all strings are numbers of this type in `[low, high)`."""
    try:
        return all(low <= kind(string) < high for string in strings)
    except ValueError:
        return False


TOLERANCE = flags.DEFINE_list(
    "tolerance",
    ["0.1", "0.15", "0.2", "0.3"],
    "Truncation tolerances to train with, relative to the norm of each kernel, separated by "
    "commas. A higher one means smaller ranks.",
)
flags.register_validator(
    TOLERANCE,
    lambda values: _numbers(values, float, 0.0, 1.0),
    "must be numbers in [0, 1), separated by commas",
)
COMPRESSION = flags.DEFINE_list(
    "compression",
    [],
    "In place of tolerances: shares of the full-rank weights to save, separated by commas, as "
    "0.9,0.95; met after --pruning of the training.",
)
flags.register_validator(
    COMPRESSION,
    lambda values: _numbers(values, float, 0.0, 1.0),
    "must be numbers in [0, 1), as 0.95 for 95%, separated by commas",
)
PRUNING = flags.DEFINE_float(
    "pruning",
    0.25,
    "The share of the training after which a budget is met, and full rank left for two factors.",
    0.0,
    1.0,
)
BASELINES = flags.DEFINE_list(
    "baselines",
    [],
    "Also train these at the ranks of every row: two_factor, svd_finetune, or both with a comma.",
)
flags.register_validator(
    BASELINES,
    lambda values: set(values) <= {"two_factor", "svd_finetune"},
    "must be among two_factor, svd_finetune",
)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of every run.", lower_bound=1)
flags.register_multi_flags_validator(
    ["baselines", "epochs"],
    lambda values: "svd_finetune" not in values["baselines"] or values["epochs"] > 1,
    "svd_finetune needs two epochs or more: some at full rank, and some after",
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every row.", lower_bound=1)
SEED_START = flags.DEFINE_integer("seed_start", 0, "The first seed of them.", lower_bound=0)
INTEGRATOR = flags.DEFINE_enum(
    "integrator",
    "parallel",
    ["parallel", "rank_adaptive", "fixed_rank"],
    "How the factors move: parallel and rank_adaptive find the ranks, fixed_rank keeps --ranks.",
)
FACTORIZATION = flags.DEFINE_enum(
    "factorization",
    "matrix",
    ["matrix", "spatial", "tucker"],
    "The form of the kernels of convolutions: (kh kw c, f), (kh c, kw f), or Tucker-2 tensors.",
)
RANKS = flags.DEFINE_list("ranks", [], "Ranks to start with, one a layer, separated by commas.")
flags.register_validator(
    RANKS,
    lambda values: _numbers(values, int, 1, float("inf")),
    "must be positive integers, separated by commas",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer",
    "sgd",
    ["sgd", "adam", "stiefel_adam", "muon"],
    "The optimizer. By muon low-rank convolutions move as matrices, those of Keras by AdamW.",
)
flags.register_validator(
    OPTIMIZER,
    lambda name: name != "muon" or tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 13),
    "muon needs Keras 3.13 or later",
)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Its learning rate.", lower_bound=0.0)
ADAM_LR_RATIO = flags.DEFINE_float(
    "adam_lr_ratio",
    1.0,
    "The rate of what muon leaves to AdamW, as a share of the learning rate.",
    lower_bound=0.0,
)
MOMENTUM = flags.DEFINE_float(
    "momentum", None, "Momentum of SGD, 0 if not given, or of Muon, 0.95 if not given.", 0.0, 1.0
)
WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.0, "Its weight decay.", lower_bound=0.0)
SCHEDULE = flags.DEFINE_enum(
    "schedule", "constant", ["constant", "cosine"], "The learning rate over the training."
)
WARMUP = flags.DEFINE_float(
    "warmup",
    0.0,
    "The share of the training in which a cosine schedule rises, from a tenth of the rate.",
    0.0,
    0.9,
)
LIMIT = flags.DEFINE_integer(
    "limit", None, "Train on that many images only, for a short run.", lower_bound=1
)
VALIDATION = flags.DEFINE_bool(
    "validation", False, "Hold the last tenth of the training images out, and report on it."
)
FULL_RANK = flags.DEFINE_bool(
    "full_rank", False, "Also train the same network of keras.layers, for comparison."
)
KEEP = flags.DEFINE_bool(
    "keep", False, "Keep the runs that the JSON in --output_dir has, and make what is missing."
)
ADAPT_EVERY = flags.DEFINE_integer(
    "adapt_every", None, "Steps from one full step to the next; the package's by default.", 1
)


def start_ranks():
    return [int(rank) for rank in RANKS.value]


def run_experiment(name, title, build, splits, augment=None, top5=False):
    """Trains all rows of the table, writes it after every run, and plots and prints it at the end.

    Args:
        name: str, the name of the files.
        title: str, the headline of the table.
        build: callable `layers -> model` that returns the uncompiled network, with the layers of
            one of `methods`.
        splits: the `image_data.Split`s, or others with their methods, for training and for test.
        augment: callable of their `training_batches`, or None.
        top5: bool. Also report how often the right class is among the five most likely.
    """
    folder = pathlib.Path(frontier.OUTPUT_DIR.value or f"out/{name}")
    path = folder / f"{name}.json"
    head = {"name": name, "title": title, "settings": _settings(), "versions": results.versions()}
    experiment = _Experiment(build, augment, top5, *_chosen(*splits))
    runs = _kept(path, head) if KEEP.value else {}

    def make(method, goal, seed, train):
        run = {"method": method, **goal._asdict(), "seed": seed}
        key = frontier.key(run)
        if key not in runs:
            runs[key] = {**run, **train()}
            # After every run, so that an interruption loses at most one.
            report = frontier.merge([{**head, "runs": list(runs.values())}])
            frontier.write(folder, report, verbose=len(runs) == 1)
        return runs[key]

    seeds = range(SEED_START.value, SEED_START.value + SEEDS.value)
    for seed in seeds if FULL_RANK.value else []:
        make("full_rank", _Goal(), seed, functools.partial(experiment.full_rank, seed))
    for goal in _goals():
        for seed in seeds:
            train = functools.partial(experiment.low_rank, goal, seed)
            ours = make(INTEGRATOR.value, goal, seed, train)
            for method in BASELINES.value:
                make(method, goal, seed, functools.partial(getattr(experiment, method), ours))
    report = frontier.merge([{**head, "runs": list(runs.values())}])
    frontier.draw(folder, report)
    frontier.print_table(report)


_TOP5 = "sparse_top_k_categorical_accuracy"


class _Goal(NamedTuple):
    """A row's tolerance or compression; neither means full rank."""

    tolerance: float | None = None
    compression: float | None = None

    def truncation(self, steps):
        if INTEGRATOR.value == "fixed_rank":
            return keras_lowrank.KeepRank()
        if self.compression is None:
            return keras_lowrank.Tolerance(self.tolerance)
        return keras_lowrank.Budget(
            compression=self.compression, steps=max(1, round(PRUNING.value * steps))
        )

    def __str__(self):
        return f"{self.tolerance}" if self.compression is None else f"{self.compression:.1%}"


def _goals():
    if COMPRESSION.value:
        return [_Goal(compression=float(share)) for share in COMPRESSION.value]
    return [_Goal(tolerance=float(tolerance)) for tolerance in TOLERANCE.value]


class _Experiment:
    """One network and its data. Every public method is one run and returns its measurements."""

    def __init__(self, build, augment, top5, train, test):
        self._build, self._augment, self._train, self._test = build, augment, train, test
        self._metrics = ["accuracy"] + [_TOP5] * top5
        self._switch = min(max(1, round(PRUNING.value * EPOCHS.value)), EPOCHS.value - 1)
        self._halfway = {}  # by seed: the full-rank network at that epoch

    def full_rank(self, seed):
        model, measured = self._fit(FullRank(), seed, "full rank", watch=self._keep_halfway(seed))
        return {**measured, "ranks": [], "weights": count_weights(model)._asdict()}

    def low_rank(self, goal, seed):
        watch, name = keras_lowrank.callbacks.RankHistory(), f"{INTEGRATOR.value}, {goal}"
        model, measured = self._fit(
            LowRank(start_ranks(), FACTORIZATION.value, *goal), seed, name, watch=watch, goal=goal
        )
        return {
            **measured,
            "ranks": list(model.ranks.values()),
            "weights": count_weights(model)._asdict(),
            "ranks_by_epoch": watch.ranks,
        }

    def two_factor(self, ours):
        layers = TwoFactor(ours["ranks"], factorization=FACTORIZATION.value)
        model, measured = self._fit(layers, ours["seed"], "two factors")
        return {**measured, **_at_ranks_of(ours, model)}

    def svd_finetune(self, ours):
        seed = ours["seed"]
        if seed not in self._halfway:
            watch = self._keep_halfway(seed)
            self._fit(FullRank(), seed, "full rank, then SVD", watch=watch, epochs=self._switch)
        weights, held = self._halfway[seed]
        layers = TwoFactor(ours["ranks"], weights, FACTORIZATION.value)
        model, measured = self._fit(layers, seed, "fine-tuning", first_epoch=self._switch)
        run = {**measured, **_at_ranks_of(ours, model)}
        run["weights"]["training"] = held  # the largest number: at full rank
        return run

    def _keep_halfway(self, seed):
        def keep(epoch, logs):
            if epoch + 1 == self._switch and "svd_finetune" in BASELINES.value:
                model = callback.model
                self._halfway[seed] = weights_by_name(model), count_weights(model).training

        callback = keras.callbacks.LambdaCallback(on_epoch_end=keep)
        return callback

    def _fit(self, layers, seed, name, goal=None, watch=None, first_epoch=0, epochs=None):
        """Builds and trains a network; returns it and its measurements."""
        keras.utils.clear_session()  # frees the last model, and resets layer names
        keras.utils.set_random_seed(seed)
        model = self._build(layers)
        batches = self._train.training_batches(BATCH_SIZE.value, seed, self._augment, first_epoch)
        steps = EPOCHS.value * len(batches)
        low_rank = {} if goal is None else {"truncation": goal.truncation(steps)}
        model.compile(
            optimizer=_optimizer(steps, model),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=self._metrics,
            **(low_rank and {"integrator": _integrator(), **low_rank}),
        )
        model.optimizer.iterations.assign(first_epoch * len(batches))  # continues the schedule
        # Builds the metrics: in the first step, that would make Keras trace it twice.
        model.evaluate(self._train.take(1).test_batches(), verbose=0)
        traces, timer = results.count_traces(model), results.EpochTimer()
        bar = results.progress_bar(f"{name}, seed {seed}", self._train.size, BATCH_SIZE.value)
        history = model.fit(
            batches,
            validation_data=self._test.test_batches() if VALIDATION.value else None,
            initial_epoch=first_epoch,
            epochs=epochs or EPOCHS.value,
            verbose=0,
            shuffle=False,  # the data set shuffles; Keras would warn
            callbacks=[timer, bar] + [watch] * (watch is not None),
        ).history
        measured = model.evaluate(self._test.test_batches(), verbose=0, return_dict=True)
        return model, {
            "accuracy": measured["accuracy"],
            **({"top5_accuracy": measured[_TOP5]} if _TOP5 in measured else {}),
            "seconds_per_epoch": timer.typical,
            "traces": len(traces),
            "training_accuracy_by_epoch": history["accuracy"],
            "validation_accuracy_by_epoch": history.get("val_accuracy", []),
        }


def _optimizer(steps, model):
    rate = LEARNING_RATE.value
    if SCHEDULE.value == "cosine":
        rising = round(WARMUP.value * steps)
        start, peak = (rate / 10.0, rate) if rising else (rate, None)
        rate = keras.optimizers.schedules.CosineDecay(
            start, steps - rising, warmup_target=peak, warmup_steps=rising
        )
    decay = WEIGHT_DECAY.value or None
    if OPTIMIZER.value == "adam":
        return keras.optimizers.Adam(rate, weight_decay=decay)
    if OPTIMIZER.value == "stiefel_adam":
        return keras_lowrank.optimizers.StiefelAdam(rate, weight_decay=decay)
    if OPTIMIZER.value == "muon":  # the last layer with AdamW, as Keras advises
        return keras.optimizers.Muon(
            rate,
            momentum=0.95 if MOMENTUM.value is None else MOMENTUM.value,
            weight_decay=decay,
            adam_weight_decay=decay,
            adam_lr_ratio=ADAM_LR_RATIO.value,
            exclude_layers=[f"(^|/){model.layers[-1].name}/"],
        )
    return keras.optimizers.SGD(rate, momentum=MOMENTUM.value or 0.0, weight_decay=decay)


def _at_ranks_of(ours, model):
    """The ranks and numbers of weights of a baseline."""
    weights = count_weights(model)._asdict()
    return {"ranks": ours["ranks"], "weights": {**weights, "full": ours["weights"]["full"]}}


def _chosen(train, test):
    if VALIDATION.value:
        train, test = train.split(train.size // 10)
    return train.take(LIMIT.value), test


def _kept(path, head):
    """The runs in a file, by key."""
    if not path.exists():
        return {}
    report = json.loads(path.read_text())
    frontier.check_same_training([head, report])
    return {frontier.key(run): run for run in report["runs"]}


def _settings():
    """The settings that all runs of a file share."""
    return {
        "epochs": EPOCHS.value,
        "start_ranks": start_ranks(),
        "factorization": FACTORIZATION.value,
        "batch_size": BATCH_SIZE.value,
        "optimizer": OPTIMIZER.value,
        "learning_rate": LEARNING_RATE.value,
        "adam_lr_ratio": ADAM_LR_RATIO.value,
        "schedule": SCHEDULE.value,
        "warmup": WARMUP.value,
        "momentum": MOMENTUM.value,
        "weight_decay": WEIGHT_DECAY.value,
        "pruning": PRUNING.value,
        "limit": LIMIT.value,
        "validation": VALIDATION.value,
    }
