"""Accuracy against weights saved, and ranks over the epochs: table and plots of a network's runs.

The examples write their results with this module. As a program it merges the runs of several
processes, with different seeds, rows or baselines:

    python examples/lenet5_mnist.py --seeds 2 --output_dir out/a
    python examples/lenet5_mnist.py --seeds 3 --seed_start 2 --output_dir out/b
    python examples/frontier.py out/a/lenet5_mnist.json out/b/lenet5_mnist.json

Writes the JSON file, the CSV file and the plots to ./out/merged.
"""

import json
import pathlib
import statistics

from absl import flags
from matplotlib.figure import Figure

import results

OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder for JSON, CSV and plot. Without it: ./out/NAME, or ./out/merged."
)

# (weights saved in percent, both factors counted; test accuracy in percent).
PUBLISHED = {
    "lenet5_mnist": {
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
    },
}
_LABELS = {
    "two_factor": "two factors, spectral initialisation",
    "svd_finetune": "full rank, then SVD and fine-tuning",
}


def key(run):
    """The values that identify a run."""
    return run["method"], run["tolerance"], run["compression"], run["seed"]


def table(runs):
    """One dict for all seeds of each method and goal, in the order of the runs."""
    rows = {}
    for run in runs:
        rows.setdefault(key(run)[:-1], []).append(run)
    return [_summary(row) for row in rows.values()]


def write(folder, report, verbose=True):
    """Writes NAME.json, with every run, and NAME.csv, the table.

    Args:
        folder: path.
        report: dict with the keys `name`, `title`, `settings`, `versions` and `runs`.
        verbose: bool. Print the paths.
    """
    rows = table(report["runs"])
    content = {**report, "rows": rows}
    content["runs"] = content.pop("runs")  # last, because they are long
    results.write_json(folder / f"{report['name']}.json", content, verbose)
    results.write_csv(folder / f"{report['name']}.csv", rows, verbose)


def merge(reports):
    """Merges reports: all of their runs, and the first of equal runs.

    Raises:
        SystemExit: the networks or the training differ.
    """
    check_same_training(reports)
    first, runs = reports[0], {}
    for run in (run for report in reports for run in report["runs"]):
        runs.setdefault(key(run), run)
    # The order of the rows: full rank, then goal by goal.
    ordered = sorted(runs.values(), key=lambda run: (_goal(run), run["seed"]))
    return {**{name: first[name] for name in first if name != "rows"}, "runs": ordered}


def check_same_training(reports):
    """Raises SystemExit if the networks or the training differ."""
    first = reports[0]
    for report in reports[1:]:
        for name in ("name", "title", "settings"):
            if report[name] != first[name]:
                raise SystemExit(
                    f"Runs to keep or to merge must have the same {name}. "
                    f"Received: {first[name]} and {report[name]}"
                )


def draw(folder, report):
    """Writes NAME.png, accuracy by size, and NAME_ranks.png, ranks over the epochs."""
    plot(folder / f"{report['name']}.png", report)
    if any("ranks_by_epoch" in run for run in report["runs"]):
        plot_ranks(folder / f"{report['name']}_ranks.png", report)


def plot_ranks(path, report):
    """Writes the ranks of all layers over the epochs, a panel for the first run of each row."""
    runs = {}
    for run in report["runs"]:
        if "ranks_by_epoch" in run:
            runs.setdefault(key(run)[:-1], run)
    lines = -(-len(runs) // 5)
    columns = -(-len(runs) // lines)
    figure = Figure(figsize=(2.2 * columns + 0.4, 2.2 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
    for run, axes in zip(runs.values(), panels):  # in this order, or one panel is lost
        for name, ranks in run["ranks_by_epoch"].items():
            axes.plot(range(1, len(ranks) + 1), ranks, marker=".", label=name)
        axes.set_title(_goal_in_words(run), fontsize="medium")
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in list(panels):  # of no run
        axes.remove()
    for axes in figure.axes[::columns]:
        axes.set_ylabel("rank")
    curves, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(curves, names, loc="outside lower center", ncols=6, fontsize="small")
    with results.new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120)


def plot(path, report):
    """Writes the plot, in the format of the suffix."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = table(report["runs"])
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted(
            (
                100.0 * row["evaluation_compression"],
                row["test_accuracy_mean"],
                row["test_accuracy_std"],
            )
            for row in rows
            if row["method"] == method
        )
        x, y, spread = zip(*points)
        if method == "full_rank":
            axes.axhline(y[0], color="gray", label="full rank")
            axes.axhspan(y[0] - (spread[0] or 0.0), y[0] + (spread[0] or 0.0), color="#8883")
        else:
            label = _LABELS.get(method, f"keras_lowrank, {method}")
            axes.errorbar(x, y, [one or 0.0 for one in spread], marker="o", capsize=3, label=label)
    for name, points in PUBLISHED.get(report["name"], {}).items():
        axes.plot(*zip(*points), "--", marker="x", label=name)
    axes.set(title=report["title"], xlabel="weights saved (%)", ylabel="accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    with results.new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def print_table(report):
    header = ["method", "goal", "accuracy", "ranks", "weights, evaluation"]
    header += ["weights, training", "s per epoch", "traces"]
    rows = table(report["runs"])
    top5 = "test_top5_mean" in rows[0]
    header[3:3] = ["top 5"] * top5
    cells = []
    for row in rows:
        spread = row["test_accuracy_std"]
        cells.append(
            [
                row["method"],
                _goal_in_words(row),
                f"{row['test_accuracy_mean']:.2f}%" + (f" ± {spread:.2f}" if spread else ""),
                *([f"{row['test_top5_mean']:.2f}%"] if top5 else []),
                " ".join(map(str, row["ranks"])) or "-",
                _weights(row, "evaluation"),
                _weights(row, "training"),
                f"{row['seconds_per_epoch']:.1f}",
                str(row["traces"]),
            ]
        )
    results.print_table(report["title"], header, cells)


def _summary(runs):
    """One row of the table: means over the seeds, medians of ranks."""
    accuracies = [100.0 * run["accuracy"] for run in runs]
    top5 = [run["top5_accuracy"] for run in runs if "top5_accuracy" in run]
    full = runs[0]["weights"]["full"]
    factored = statistics.mean(run["weights"]["factored"] for run in runs)
    training = statistics.mean(run["weights"]["training"] for run in runs)
    return {
        "method": runs[0]["method"],
        "tolerance": runs[0]["tolerance"],
        "compression": runs[0]["compression"],
        "seeds": len(runs),
        "test_accuracy_mean": round(statistics.mean(accuracies), 3),
        "test_accuracy_std": round(statistics.stdev(accuracies), 3) if len(runs) > 1 else None,
        **({"test_top5_mean": round(100.0 * statistics.mean(top5), 3)} if top5 else {}),
        "ranks": [int(statistics.median(ranks)) for ranks in zip(*(run["ranks"] for run in runs))],
        "evaluation_weights": round(factored),
        "evaluation_compression": round(1.0 - factored / full, 4),
        "training_weights": round(training),
        "training_compression": round(1.0 - training / full, 4),
        "seconds_per_epoch": round(statistics.median(r["seconds_per_epoch"] for r in runs), 2),
        "traces": max(run["traces"] for run in runs),
    }


def _goal_in_words(run):
    if run["compression"]:
        return f"{run['compression']:.1%} saved"
    return "-" if run["tolerance"] is None else f"tolerance {run['tolerance']}"


def _goal(run):
    return run["compression"] or 0.0, run["tolerance"] or 0.0, run["method"] in _LABELS


def _weights(row, when):
    saved = row[f"{when}_compression"]
    return f"{row[f'{when}_weights']:,}" + (f" ({-saved:+.1%})" if saved else "")


def main(arguments):
    paths = [pathlib.Path(argument) for argument in arguments[1:]]
    if not paths:
        raise SystemExit("Name the JSON files to merge.")
    report = merge([json.loads(path.read_text()) for path in paths])
    folder = pathlib.Path(OUTPUT_DIR.value or "out/merged")
    write(folder, report)
    draw(folder, report)
    print_table(report)


if __name__ == "__main__":
    results.run(main)
