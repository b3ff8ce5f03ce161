"""The global random generators of Python and NumPy, from which the order of data may come."""

import random

import numpy as np


def host_random_state():
    """The present state of both, as a list of arrays."""
    _, key, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return [
        key,
        np.array(rest, "float64"),
        np.array([version, *words], "uint64"),
        np.array([] if gauss is None else [gauss]),
    ]


def set_host_random_state(arrays):
    """Sets both to what `host_random_state` gave."""
    key, rest, python, gauss = arrays
    position, has_gauss, cached = rest
    np.random.set_state(("MT19937", key, int(position), int(has_gauss), float(cached)))
    version, *words = (int(word) for word in python)
    random.setstate((version, tuple(words), float(gauss[0]) if len(gauss) else None))
