"""The rank for a tolerance, by its definition."""

import numpy as np


def kept_rank(values, theta):
    """The smallest r with `||(s_{r+1}, s_{r+2}, ...)||_2 <= theta`."""
    return next(r for r in range(len(values) + 1) if np.linalg.norm(values[r:]) <= theta)


class RelativeTolerance:
    """`kept_rank` at `theta = tau ||s||_2`, between bounds.

    Attributes:
        margin: float, the least distance of a tail from theta so far, relative to `||s||_2`. If it
            is above rounding, a run in another precision decides the same.
    """

    def __init__(self, tau, min_rank=1, max_rank=None):
        self.tau, self.min_rank, self.max_rank = tau, min_rank, max_rank
        self.margin = np.inf

    def __call__(self, values):
        norm = np.linalg.norm(values)
        if norm > 0:
            tails = np.array([np.linalg.norm(values[r:]) for r in range(len(values) + 1)])
            self.margin = min(self.margin, np.min(np.abs(tails / norm - self.tau)))
        rank = max(kept_rank(values, self.tau * norm), self.min_rank)
        return min(rank, len(values), self.max_rank or len(values))
