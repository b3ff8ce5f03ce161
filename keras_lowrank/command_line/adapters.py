"""`adapters`: what a file of adapters holds."""

import argparse

import numpy as np

from keras_lowrank.adapters import file

SUMMARY, USAGE, EXAMPLE = "print ranks and spectra of adapters", "FILE", "a.adapters.h5"

# Singular values that a line has room for.
_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `adapters` to its parser."""
    parser.add_argument("file", help="file that `Adapters.save` has written")


def run(arguments: argparse.Namespace) -> None:
    """Prints the adapters in a file: kernels, ranks and singular values."""
    state, header = file.read(arguments.file)
    width = max([len("adapter"), *map(len, header["ranks"])])
    print(f"{header['name']}: {len(state.points)} adapters, {len(state.others)} other variables")
    print(f"{'adapter':<{width}} {'kernel':>13} {'rank':>5}  singular values")
    for path, (u, s, v) in zip(header["ranks"], state.points):
        (_, left), (_, right) = np.linalg.qr(u), np.linalg.qr(v)  # bases may be turned in a chart
        core = left @ s @ right.T
        values = np.linalg.svd(core, compute_uv=False)
        shown = " ".join(f"{value:.3g}" for value in values[:_SHOWN])
        more = " ..." if len(values) > _SHOWN else ""
        kernel = f"{len(u)} x {len(v)}"
        print(f"{path:<{width}} {kernel:>13} {len(values):>5}  {shown}{more}")
