"""Accuracy against the share of weights saved: ours and what was published, in one plot.

A module of the examples, not a program.
"""

from matplotlib.figure import Figure

import results

# LeNet5 on MNIST: (weights saved in percent, both factors counted; test accuracy in percent).
PUBLISHED = {
    "Low-rank lottery tickets (arXiv:2205.13571)": [
        (88.9, 98.0),
        (92.0, 97.8),
        (94.0, 97.2),
        (96.4, 95.3),
    ],
    "its PyTorch repository": [
        (88.0, 98.14),
        (93.0, 98.12),
        (95.6, 97.45),
        (97.1, 95.97),
        (97.7, 94.07),
    ],
}


def plot(path, title, rows):
    """Writes the plot.

    Args:
        path: path of the image; its suffix says the format.
        title: str.
        rows: list of dict, the table of `mnist_training`.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    ours = sorted(
        (row["evaluation_compression"], row["test_accuracy_mean"], row["test_accuracy_std"] or 0.0)
        for row in rows
        if row["method"] != "full_rank"
    )
    axes.errorbar(*zip(*((x, y) for x, y, _ in ours)), yerr=[e for *_, e in ours], marker="o")
    axes.lines[-1].set_label("keras_lowrank")
    for name, points in PUBLISHED.items():
        axes.plot(*zip(*points), "--", marker="x", label=name)
    for row in rows:
        if row["method"] == "full_rank":
            axes.axhline(row["test_accuracy_mean"], color="gray", label="full rank")
    axes.set(title=title, xlabel="weights saved (%)", ylabel="test accuracy (%)")
    axes.legend()
    with results.new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
