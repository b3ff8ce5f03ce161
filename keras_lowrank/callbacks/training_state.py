"""All that training goes on from, as arrays that a file can hold."""

import json
import zipfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.callbacks.host_random_state import set_host_random_state
from keras_lowrank.manifold.factors import RankVariable

# What reading a file that is damaged or of another kind may raise.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class TrainingState(NamedTuple):
    """The state of a model in training.

    Attributes:
        position: dict of what JSON can hold: `epoch` and `batch`, how many epochs, and batches of
            the next one, are done; `ranks_frozen`.
        values: dict from the name of a group (`model`, `optimizer`, `metrics`, `random`) to a list
            of arrays. `model` has the seeds of its layers among them; `seed` is Keras's global one
            where there is one; `random` is what `host_random_state` gives.
    """

    position: dict
    values: dict

    @classmethod
    def of(cls, model, epoch, batch, random_state):
        """The present state of `model`, and the random state from which the data go on."""
        groups = _groups(model)
        if batch:  # elsewhere Keras is about to reset them
            groups["metrics"] = model.metrics_variables
        values = {name: [v.numpy() for v in group] for name, group in groups.items()}
        position = {"epoch": epoch, "batch": batch, "ranks_frozen": model.ranks_frozen}
        seed = keras_internals.global_seed()
        values["seed"] = [] if seed is None else [seed.numpy()]
        return cls(position, {**values, "random": random_state})

    def write(self, file):
        """Writes the state to a binary file: an archive with a checksum for every array."""
        arrays = {
            f"{name}/{index}": value
            for name, values in self.values.items()
            for index, value in enumerate(values)
        }
        np.savez(file, position=np.array(json.dumps(self.position)), **arrays)

    @classmethod
    def read(cls, path):
        """The state in a file. It runs no code from there. Raises one of `UNREADABLE`."""
        values = {}
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

    def restore(self, model):
        """Gives a model this state, all but its metrics. Checks everything first.

        Raises:
            ValueError: the state is that of another model or another optimizer.
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

    def restore_metrics(self, model):
        """Gives the metrics of a model the values that they had in the midst of the epoch."""
        self._check("metrics", model.metrics_variables)
        self._assign("metrics", model.metrics_variables)

    def _check(self, name, variables):
        values = self.values.get(name, [])
        saved = [tuple(value.shape) for value in values]
        if len(saved) != len(variables) or not all(map(_fits, variables, values)):
            raise ValueError(
                f"A saved state must be that of the same model, compiled in the same way. For "
                f"{name!r} it has {len(saved)} variables of the shapes {saved}. Received: a model "
                f"with {len(variables)} of the shapes {[tuple(v.shape) for v in variables]}"
            )

    def _assign(self, name, variables):
        for variable, value in zip(variables, self.values.get(name, [])):
            if value.dtype.kind == "V":  # NumPy has no name of its own for bfloat16
                value = value.view(tf.as_dtype(variable.dtype).as_numpy_dtype)
            variable.assign(value)


def _groups(model):
    return {"model": model.variables, "optimizer": model.optimizer.variables}


def _fits(variable, value):
    if isinstance(variable, RankVariable):
        return variable.fits(value.shape)
    return tuple(variable.shape) == tuple(value.shape)
