"""The page of `inspect --html`: spectra, and what each tolerance and budget would leave."""

import itertools
import json
from typing import NamedTuple

import numpy as np

from keras_lowrank.convert import to_keras
from keras_lowrank.convert.forecast import Forecast
from keras_lowrank.files.placing import disk_errors, placed
from keras_lowrank.layers import find_low_rank_layers

_TOLERANCES = (0.01, 0.02, 0.03, 0.05, 0.07, *(round(0.05 * k, 2) for k in range(2, 19)))
_SHARES = (0.01, 0.02, 0.03, 0.05, 0.07, *(round(0.05 * k, 2) for k in range(2, 20)))
_START = 0.1  # the tolerance that the page opens with

_COLUMNS = ["layer", "class", "n x m", "rank", "weights", "of full rank", "multiply-adds", "bytes"]
_ALIGN = ["left", "left", "right"]
_WIDTHS = [3, 2, 1.5, 1, 1.5, 1.2, 1.7, 1.5]
_ROW, _PLOTS, _SLIDERS, _MARGIN = 28, 340, 260, 40  # pixels
_POINTS = 300  # of a line
_SUBTITLE = "Multiply-adds: of these kernels, one inference. Bytes: of all numbers in float32."

# The command is text of the page, which can be copied, and not part of the picture.
_SHOW_COMMAND = """
const plot = document.getElementById("{plot_id}");
const command = document.createElement("pre");
command.id = "command";
command.style.cssText = "margin: 1em 80px; font-size: 15px; white-space: pre-wrap";
plot.parentNode.insertBefore(command, plot);
command.textContent = COMMAND;
plot.on("plotly_sliderchange", (event) => { command.textContent = event.step.value; });
"""


class Cut(NamedTuple):
    """What one setting of a slider leaves.

    Attributes:
        label: str, at the slider.
        command: str, the command that converts so.
        ranks: dict from paths to ranks, as `Forecast.ranks` returns it.
    """

    label: str
    command: str
    ranks: dict


def write(model, name, target, factorization="matrix", track=iter, overwrite=False):
    """Writes the page, one file that needs nothing else.

    Args:
        model: built `keras.Model`, a graph of layers.
        name: str, the path of its file, for the command.
        target: path of the page.
        factorization: str, as in `from_keras`.
        track: callable, as in `Forecast`.
        overwrite: bool, whether to replace a file.

    Raises:
        ImportError: plotly is not installed.
        ValueError: as `from_keras` and `to_keras` raise it.
    """
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise ImportError(
            "A page needs plotly: `pip install plotly`, or 'keras_lowrank[report]'."
        ) from error
    plain = merged(model)
    forecast = Forecast(plain, factorization, track)
    sliders = cuts(forecast, name, plain is not model, factorization)
    start = next(index for index, cut in enumerate(sliders[0]) if cut.label == f"{_START}")
    table = _ROW * (len(forecast.kernels) + 4)
    height = _PLOTS + _SLIDERS + table
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"type": "table", "colspan": 2}, None]],
        row_heights=[_PLOTS, table],
        vertical_spacing=_SLIDERS / height,
        subplot_titles=["Singular values", "Error of the kernel, by rank"],
    )
    figure.add_traces(*_traces(forecast, sliders[0][start].ranks))
    figure.update_xaxes(title_text="rank", type="log", dtick="D2")
    figure.update_yaxes(
        title_text="singular value", type="log", dtick=1, exponentformat="power", row=1, col=1
    )
    figure.update_yaxes(title_text="||W - W_r|| / ||W||", range=[0, 1.02], row=1, col=2)
    figure.update_layout(
        title={"text": f"{name}: what a conversion leaves", "subtitle": {"text": _SUBTITLE}},
        height=height + 2 * _MARGIN,
        margin={"t": 3 * _MARGIN, "b": 0},
        template="plotly_white",
        sliders=_sliders(forecast, sliders, start, _PLOTS / height, height),
    )
    page = figure.to_html(
        include_plotlyjs=True,
        post_script=_SHOW_COMMAND.replace("COMMAND", json.dumps(sliders[0][start].command)),
    )
    with placed(target, overwrite) as made, disk_errors(target):
        made.write_text(page, encoding="utf-8")


def merged(model):
    """The model itself, or its plain twin where it has low-rank layers, which stay as they are."""
    return to_keras(model, "merged") if find_low_rank_layers(model) else model


def cuts(forecast, name, merge, factorization="matrix"):
    """The settings of the sliders: lists of `Cut`, by tolerance and by budget.

    Args:
        forecast: `Forecast`.
        name: str, the path of the model's file.
        merge: bool, whether the forecast is for the model with its low-rank layers merged.
        factorization: str, the one of the forecast.
    """
    full = forecast.total(dict.fromkeys(forecast.kernels)).weights
    budgets = {share: round(share * full) for share in _SHARES}
    command = f"python -m keras_lowrank convert {name}"
    if merge:
        plain = f"{name.removesuffix('.keras')}_plain.keras"
        command = f"{command} {plain} --style=merged\npython -m keras_lowrank convert {plain}"

    if factorization != "matrix":
        command = f"{command} --factorization={factorization}"

    def cut(label, rule, value):
        return Cut(label, f"{command} --{rule}={value}", forecast.ranks(**{rule: value}))

    by_budget = [
        cut(f"{share:.0%}", "budget", budget)
        for share, budget in budgets.items()
        if budget >= forecast.least
    ]
    return [[cut(f"{one}", "tolerance", one) for one in _TOLERANCES], by_budget]


def _traces(forecast, ranks):
    """The traces of the figure, with their rows and columns; what moves is last."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    lines = []
    spectra = _spectra(forecast)
    colors = list(itertools.islice(itertools.cycle(qualitative.Plotly), len(spectra)))
    for (path, values), color in zip(spectra.items(), colors):
        at = np.unique(np.geomspace(1, len(values), _POINTS).round().astype(int))
        common = {"name": path, "legendgroup": path, "line": {"color": color}}
        common["mode"] = "lines"
        # What is 0 has no place on a logarithmic axis.
        lines.append(go.Scatter(x=at, y=np.where(values > 0, values, np.nan)[at - 1], **common))
        lines.append(go.Scatter(x=at, y=_errors(values)[at], showlegend=False, **common))
    markers = [
        go.Scatter(x=x, y=y, mode="markers", showlegend=False, marker={"color": colors, "size": 10})
        for x, y in zip(*_marked(forecast, ranks))
    ]
    table = go.Table(
        columnwidth=_WIDTHS,
        header={"values": _COLUMNS, "align": _ALIGN, "height": _ROW},
        cells={
            "values": _cells(forecast, ranks),
            "align": _ALIGN,
            "height": _ROW,
        },
    )
    rows = [1] * (len(lines) + 2) + [2]
    columns = [1, 2] * (len(lines) // 2 + 1) + [1]
    return [*lines, *markers, table], rows, columns


def _spectra(forecast):
    """The singular values of all sides by path: a Tucker-2 kernel has two."""
    return {
        f"{path}/{side}".rstrip("/"): values
        for path, form in forecast.forms.items()
        for side, values in zip(form.sides(None), forecast.values[path])
    }


def _errors(values):
    """`||W - W_r|| / ||W||` for the ranks 0, 1, ..."""
    energy = np.append(np.cumsum(np.square(values[::-1]))[::-1], 0.0)
    return np.sqrt(energy / max(energy[0], np.finfo(float).tiny))


def _marked(forecast, ranks):
    """The points that are marked in both plots, where a kernel is cut: `(x, y)`, each of both."""
    sides = [forecast.forms[path].sides(rank).values() for path, rank in ranks.items()]
    x = [rank for some in sides for _, rank in some]
    values = _spectra(forecast).values()
    last = [None if rank is None else float(v[rank - 1]) or None for rank, v in zip(x, values)]
    left = [None if rank is None else float(_errors(v)[rank]) for rank, v in zip(x, values)]
    return [x, x], [last, left]


def _cells(forecast, ranks):
    """The columns of the table."""
    table = []
    for path, rank in ranks.items():
        form = forecast.forms[path]
        size, full = forecast.size(path, rank), forecast.size(path, None)
        kind = type(forecast.kernels[path].layer).__name__
        sides = [str(one) for _, one in form.sides(rank).values()] if rank else ["full"]
        table.append([path, kind, str(form), " and ".join(sides), *_numbers(size, full)])
    table.append(["all else", "", "", "", *_numbers(forecast.others, forecast.others)])
    size, full = forecast.total(ranks), forecast.total(dict.fromkeys(ranks))
    table.append(["in all", "", "", "", *_numbers(size, full)])
    table[-1] = [f"<b>{cell}</b>" for cell in table[-1]]
    return [list(column) for column in zip(*table)]


def _numbers(size, full):
    share = f"{size.weights / full.weights:.1%}" if full.weights else ""
    return [f"{size.weights:,}", share, f"{size.multiply_adds:,}", f"{size.bytes:,}"]


def _sliders(forecast, sliders, start, bottom, height):
    """Both sliders, of which each moves the other to about the same size."""
    lines = 2 * len(_spectra(forecast))
    sizes = [[forecast.total(cut.ranks).weights for cut in slider] for slider in sliders]

    def near(own, other, index):
        gaps = [abs(size - sizes[own][index]) for size in sizes[other]]
        return int(np.argmin(gaps)) if gaps else 0

    made = []
    for own, (slider, title) in enumerate(zip(sliders, ("tolerance", "weights, of full rank"))):
        steps = []
        for index, cut in enumerate(slider):
            (x, _), (last, left) = _marked(forecast, cut.ranks)
            moved = {
                "x": [x, x, None],
                "y": [last, left, None],
                "cells.values": [None, None, _cells(forecast, cut.ranks)],
            }
            other = {f"sliders[{1 - own}].active": near(own, 1 - own, index)}
            steps.append(
                {
                    "label": cut.label,
                    "value": cut.command,
                    "method": "update",
                    "args": [moved, other, [lines, lines + 1, lines + 2]],
                }
            )
        made.append(
            {
                "active": start if own == 0 else near(0, 1, start),
                "steps": steps,
                "currentvalue": {"prefix": f"{title}: "},
                "y": 1 - bottom,
                "pad": {"t": 60 + 90 * own},
            }
        )
    return made
