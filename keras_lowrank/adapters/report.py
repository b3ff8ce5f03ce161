"""What adapters cost: a table of their ranks."""

from typing import NamedTuple


class Row(NamedTuple):
    """One delta.

    Attributes:
        path: str.
        n, m: int, rows and columns of its matrix.
        rank: int, the present one.
        weights: int, `r (n + m)`.
        size: float, `||U S V^T||_F`.
    """

    path: str
    n: int
    m: int
    rank: int
    weights: int
    size: float


class Report(NamedTuple):
    """What a model with adapters trains. `print` shows it as a table.

    Attributes:
        rows: list of `Row`.
        others: int, the weights that are trained beside the deltas.
        total: int, the weights of the base.
    """

    rows: list[Row]
    others: int
    total: int

    @property
    def trained(self) -> int:
        """The number of weights that are trained."""
        return sum(row.weights for row in self.rows) + self.others

    def __str__(self) -> str:
        width = max([len("adapter"), *(len(row.path) for row in self.rows)])
        lines = [f"{'adapter':<{width}} {'kernel':>13} {'rank':>5} {'weights':>11} {'size':>9}"]
        for path, n, m, rank, weights, size in self.rows:
            kernel = f"{n} x {m}"
            lines.append(f"{path:<{width}} {kernel:>13} {rank:>5} {weights:>11,} {size:>9.3g}")
        share = self.trained / max(self.total, 1)
        lines.append(f"{self.trained:,} trained weights, {share:.2%} of the base's {self.total:,}")
        return "\n".join(lines)
