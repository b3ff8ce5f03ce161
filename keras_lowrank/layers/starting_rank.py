"""The rank that a layer starts with when none is given."""

import math

# The share of the weights that is left, and the rank that a small kernel may have in any case.
_SHARE, _LEAST = 0.4, 16


def default_rank(n: int, m: int) -> int:
    """Returns the rank to start with for an n x m kernel; 0 where even rank 1 is too much.

    It is the largest rank that leaves 40% of the weights, `r (n + m) <= 0.4 n m`. A small kernel
    gets up to rank 16, as long as U, S and V have no more numbers than it: `r (n + m + r) <= n m`.
    """
    even = int((math.sqrt((n + m) ** 2 + 4 * n * m) - (n + m)) / 2)
    return max(int(_SHARE * n * m / (n + m)), min(even, _LEAST))


def default_tucker_ranks(n: int, m: int, places: int) -> tuple[int, int]:
    """Returns the two ranks to start with for a Tucker-2 kernel of n by m channels.

    They are the largest of one share of both numbers of channels that leave 40% of the weights. A
    small kernel gets up to 16 and 16, as long as the factors have no more numbers than it.
    """
    # The share a solves a (n^2 + m^2) + a^2 K n m = 0.4 K n m.
    full, linear = places * n * m, n * n + m * m
    share = (math.sqrt(linear**2 + 4 * _SHARE * full**2) - linear) / (2 * full)
    small = min(n, _LEAST), min(m, _LEAST)
    ranks = tuple(max(int(share * size), 1) for size in (n, m))
    larger = tuple(map(max, ranks, small))
    p, q = larger if _tucker_weights(n, m, places, *larger) <= full else ranks
    return p, q


def _tucker_weights(n, m, places, p, q):
    return n * p + m * q + places * p * q
