"""Shapes, starting points and numbers of examples for the tests of all integrators."""

import keras
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from reference.closed_form import LeastSquares, LogCosh, factors_with_spectrum

# The oldest supported version, which has faults that tests skip.
OLD_KERAS = keras.__version__.startswith("3.8.")

few = settings(max_examples=10, deadline=None)
# In float32, rounding may decide a rank. These problems are the same in every run, so that a test
# that passed once passes again.
same = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
problems = pytest.mark.parametrize("kind", [LeastSquares, LogCosh])


def partly_slow(cases, others):
    """Returns `cases` for `make test`, and `others` of the same kind for `make test-slow`."""
    marked = [case if isinstance(case, tuple) else (case,) for case in others]
    return [*cases, *(pytest.param(*case, marks=pytest.mark.slow) for case in marked)]


@st.composite
def shapes(draw):
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return n, m, draw(st.integers(1, min(n, m)))


def start(rng, n, m, r):
    return factors_with_spectrum(rng, n, m, 0.5 * 1.5 ** -np.arange(r))
