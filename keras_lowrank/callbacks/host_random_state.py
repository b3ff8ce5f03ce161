"""The states of the global random generators of Python and NumPy, which may order the data."""

import random

import numpy as np


def host_random_state() -> list[np.ndarray]:
    """Returns the current states of both generators, as a list of arrays."""
    _, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return [
        np.asarray(key),
        np.array([position, has_gauss, cached], "float64"),
        np.array([version, *words], "uint64"),
        np.array([] if gauss is None else [gauss]),
    ]


def set_host_random_state(arrays: list[np.ndarray]) -> None:
    """Restores both generators.

    Args:
        arrays: list of arrays, as `host_random_state` returned them.
    """
    key, rest, python, gauss = arrays
    position, has_gauss, cached = rest
    np.random.set_state(("MT19937", key, int(position), int(has_gauss), float(cached)))
    version, *words = (int(word) for word in python)
    random.setstate((version, tuple(words), float(gauss[0]) if len(gauss) else None))
