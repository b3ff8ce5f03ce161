"""The output of a benchmark: a printed table, a JSON file, and a plot."""

import json
import os
import pathlib
import platform
import sys

import keras
import rich.console
import rich.table
import tensorflow as tf
from absl import app, flags

OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "./out/benchmarks", "Folder for the JSON and the plot; files there are replaced."
)


def define_numbers(name, default, meaning):
    """Defines a flag for positive integers, separated by commas."""
    flag = flags.DEFINE_list(name, default, meaning)
    flags.register_validator(
        flag,
        lambda values: bool(values) and all(v.isdecimal() and int(v) > 0 for v in values),
        "must be positive integers, separated by commas",
    )
    return flag


def numbers(flag):
    return [int(value) for value in flag.value]


def report(name, title, rows, columns, **settings):
    """Prints rows as a table and writes them, with settings and machine, to NAME.json.

    Args:
        name: str, of the file.
        title: str, of the table.
        rows: list of dict.
        columns: dict from a key of the rows to the format of its cells, as in `str.format`.
        **settings: further entries of the file.
    """
    table = rich.table.Table(title=title, title_justify="left")
    for key in columns:
        table.add_column(key.replace("_", " "), justify="right")
    for row in rows:
        cells = [(form, row.get(key)) for key, form in columns.items()]
        table.add_row(*("-" if cell is None else form.format(cell) for form, cell in cells))
    rich.console.Console().print(table)
    content = {"title": title, "settings": settings, "machine": machine(), "rows": rows}
    write(f"{name}.json", lambda path: path.write_text(json.dumps(content, indent=2) + "\n"))


def machine():
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def write(name, save):
    """Calls `save` with a temporary path, so that the file is replaced atomically."""
    path = pathlib.Path(OUTPUT_DIR.value) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        save(temporary)
        verb = "Replaced" if path.exists() else "Wrote"
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{verb} {path}", file=sys.stderr)


def plot(name, title, lines, xlabel, ylabel, level=None):
    """Plots `{label: (x, y)}` on logarithmic axes to NAME.png, with an optional dashed level."""
    import matplotlib

    matplotlib.use("agg")  # needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, (x, y) in lines.items():
        axes.loglog(x, y, "o-", label=label)
    if level is not None:
        axes.axhline(level, color="gray", linestyle="--")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    write(f"{name}.png", lambda path: figure.savefig(path, dpi=120))
    plt.close(figure)


def run(main):
    """Calls `absl.app.run`; Ctrl-C prints no traceback."""
    try:
        app.run(main)
    except KeyboardInterrupt:
        print("\nInterrupted. No file was left half-written.", file=sys.stderr)
        sys.exit(130)
