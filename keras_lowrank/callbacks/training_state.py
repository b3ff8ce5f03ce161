"""The state of training as arrays, and its file."""

import json
import os
import zipfile
from typing import Any, BinaryIO, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.callbacks.host_random_state import set_host_random_state
from keras_lowrank.manifold.factors import RankVariable

# The errors of reading a damaged or foreign file.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class TrainingState(NamedTuple):
    """The state of a model in training.

    Attributes:
        position: dict of JSON values: `epoch`, the number of finished epochs; `batch`, the number
            of finished batches in the next epoch; `ranks_frozen`.
        values: dict from the name of a group to a list of arrays. `model` includes the seeds of
            layers, `optimizer` its state; `metrics` is present within an epoch; `seed` is Keras's
            global seed, if any; `random` comes from `host_random_state`.
    """

    position: dict[str, Any]
    values: dict[str, list[np.ndarray]]

    @classmethod
    def of(
        cls, model: keras.Model, epoch: int, batch: int, random_state: list[np.ndarray]
    ) -> "TrainingState":
        """Reads the current state of a model.

        Args:
            model: compiled `LowRankModel`.
            epoch: int, the number of finished epochs.
            batch: int, the number of finished batches in the next epoch.
            random_state: list of arrays, the `host_random_state` that the data continue from.
        """
        groups = _groups(model)
        if batch:  # between epochs Keras resets the metrics
            groups["metrics"] = model.metrics_variables
        values = {name: [v.numpy() for v in group] for name, group in groups.items()}
        position = {"epoch": epoch, "batch": batch, "ranks_frozen": model.ranks_frozen}
        seed = keras_internals.global_seed()
        values["seed"] = [] if seed is None else [seed.numpy()]
        return cls(position, {**values, "random": random_state})

    def write(self, file: BinaryIO) -> None:
        """Writes the state to a binary file: a zip archive, which has a checksum for each array."""
        arrays: dict[str, Any] = {
            f"{name}/{index}": value
            for name, values in self.values.items()
            for index, value in enumerate(values)
        }
        np.savez(file, position=np.array(json.dumps(self.position)), **arrays)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "TrainingState":
        """Reads a state from a file, without pickles, which could run code.

        Raises:
            one of `UNREADABLE`: the file is damaged, or not a saved state.
        """
        values: dict[str, dict[int, np.ndarray]] = {}
        with np.load(path, allow_pickle=False) as archive:
            position = json.loads(str(archive["position"]))
            for key in archive.files:
                name, _, index = key.partition("/")
                if index:
                    values.setdefault(name, {})[int(index)] = archive[key]
        return cls(
            position,
            {name: [group[i] for i in range(len(group))] for name, group in values.items()},
        )

    def restore(self, model: keras.Model) -> None:
        """Assigns this state, without the metrics, to a model. Checks all of it first.

        Raises:
            ValueError: the state belongs to another model or another optimizer.
        """
        groups = _groups(model)
        for name, variables in groups.items():
            self._check(name, variables)
        for name, variables in groups.items():
            self._assign(name, variables)
        if self.position["ranks_frozen"]:
            model.freeze_ranks()
        else:
            model.unfreeze_ranks()
        for seed in self.values.get("seed", []):
            keras_internals.make_global_seed().assign(seed)
        set_host_random_state(self.values["random"])

    def restore_metrics(self, model: keras.Model) -> None:
        """Assigns the values that the metrics had within the epoch."""
        self._check("metrics", model.metrics_variables)
        self._assign("metrics", model.metrics_variables)

    def _check(self, name: str, variables: list) -> None:
        values = self.values.get(name, [])
        saved = [tuple(value.shape) for value in values]
        if len(saved) != len(variables) or not all(map(_fits, variables, values)):
            raise ValueError(
                f"The model must be the same model, compiled in the same way, as in the saved "
                f"state, which has {len(saved)} variables for {name!r}, of shapes {saved}. "
                f"Received: a model with {len(variables)}, of shapes "
                f"{[tuple(v.shape) for v in variables]}"
            )

    def _assign(self, name: str, variables: list) -> None:
        for variable, value in zip(variables, self.values.get(name, [])):
            if value.dtype.kind == "V":  # NumPy has no bfloat16
                value = value.view(tf.as_dtype(variable.dtype).as_numpy_dtype)
            variable.assign(value)


def _groups(model: keras.Model) -> dict[str, list]:
    return {"model": model.variables, "optimizer": model.optimizer.variables}


def _fits(variable: Any, value: np.ndarray) -> bool:
    if isinstance(variable, RankVariable):
        return variable.fits(value.shape)
    return tuple(variable.shape) == tuple(value.shape)
