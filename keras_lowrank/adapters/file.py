"""Adapters in a file: factors, ranks and what they belong to, without the base."""

import io
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import h5py

from keras_lowrank.adapters.state import AdapterState
from keras_lowrank.files import checksum
from keras_lowrank.files.atomic_file import write_atomically
from keras_lowrank.manifold.point import Point

_KIND = "keras_lowrank_adapters"
_FACTORS = ("U", "S", "V")


def header(
    places: Iterable[int],
    kernels: Sequence[Sequence[int]],
    trained: Sequence[Sequence[int]],
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """What a file says of the model that its adapters are for.

    By place, and not by name: the names of layers differ from one model to the next of its kind.

    Args:
        places: list of int, the places of the layers with deltas among all that could have them.
        kernels: list of `[place, *shape]`, of every kernel with a delta.
        trained: list of `[*place, *shape]`, of every variable that is trained beside deltas.
        arguments: dict, `rank` and `max_rank` of `add_adapters`.
    """
    kernels, trained = [[list(map(int, x)) for x in one] for one in (kernels, trained)]
    shapes = zlib.crc32(json.dumps([kernels, trained]).encode())
    of_model = {"places": list(places), "kernels": kernels, "trained": trained, "shapes": shapes}
    return {**of_model, "arguments": arguments}


def check_same(
    written: dict[str, Any], present: dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Raises ValueError unless a file's header is that of adapters of the present model."""
    if written["shapes"] == present["shapes"]:
        return
    name, one, other = next(
        (name, one, other)
        for name in ("kernels", "trained")
        for one, other in itertools.zip_longest(written[name], present[name])
        if one != other
    )
    raise ValueError(
        "Adapters belong to a model like the one that they were trained in, with deltas for the "
        f"same kernels. Received: filepath={str(path)!r}, with {name} [place, *shape] {one} "
        f"where the model has {other}"
    )


def write(path: str | os.PathLike[str], state: AdapterState, header: dict[str, Any]) -> None:
    """Writes adapters to a file, whole or not at all.

    Args:
        path: str or path.
        state: `AdapterState`.
        header: dict that JSON can hold.
    """
    contents = io.BytesIO()
    with h5py.File(contents, "w") as file:
        file.attrs["kind"], file.attrs["header"] = _KIND, json.dumps(header)
        for index, point in enumerate(state.points):
            for name, value in zip(_FACTORS, point):
                file[f"deltas/{index}/{name}"] = value
        for index, value in enumerate(state.others):
            file[f"others/{index}"] = value
        checksum.seal_file(file, len(contents.getbuffer()))
    write_atomically(path, lambda file: file.write(contents.getbuffer()))


def read(path: str | os.PathLike[str]) -> tuple[AdapterState, dict[str, Any]]:
    """Returns `(AdapterState, header)`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, or a damaged one.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no such file: {path}")
    foreign = ValueError(
        "A file of adapters is one that `Adapters.save` has written. If this one was, it is "
        f"damaged. Received: filepath={str(path)!r}"
    )
    if not h5py.is_hdf5(path):
        raise foreign
    with h5py.File(path, "r") as file:
        if file.attrs.get("kind") != _KIND:
            raise foreign
        checksum.verify_file(file, path)
        deltas, others = file.get("deltas", {}), file.get("others", {})
        points = [
            Point(*(deltas[f"{index}/{name}"][()] for name in _FACTORS))
            for index in range(len(deltas))
        ]
        values = [others[str(index)][()] for index in range(len(others))]
        return AdapterState(points, values), json.loads(file.attrs["header"])
