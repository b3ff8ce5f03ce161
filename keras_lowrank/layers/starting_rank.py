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
