"""Model cards: a page beside a file of a model, for those who find it."""

import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.reporting.compression import Compression, count_weights
from keras_lowrank.reporting.summary import COLUMNS, rank_rows
from keras_lowrank.version import __version__


class ModelCard(NamedTuple):
    """What a model card says that only you know; all else is read from the model and the file.

    `model.save(path, card=...)` and `model.export(path, card=...)` write it beside the file:
    weights, ranks, size, versions, and the code that loads the file. It is Markdown with the YAML
    front matter of Hugging Face, which Kaggle takes too: upload it as `README.md`.

    Attributes:
        data: str or None, what the model was trained and measured on.
        metrics: dict from str to float or None, as `model.evaluate(..., return_dict=True)` returns.
            An export with `check_data` adds the accuracy of its file.
        command: str or None, the command that makes the model.
        metadata: dict or None, more front matter: `{"license": "apache-2.0", "datasets": ["mnist"],
            "pipeline_tag": "image-classification"}`. It replaces what is there by default:
            `library_name`, `tags` and `metrics`.
        path: path of the card or None, beside the file: `NAME.keras.md` for `NAME.keras`.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(8, rank=2)(inputs))
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> card = ModelCard(data="random numbers", metadata={"license": "mit"})
    >>> model.save(folder / "model.keras", card=card)
    >>> print(*(folder / "model.keras.md").read_text().splitlines()[:5], sep="\\n")
    ---
    library_name: "keras"
    tags: ["keras_lowrank", "low-rank"]
    license: "mit"
    ---
    """

    data: str | None = None
    metrics: Mapping[str, float] | None = None
    command: str | None = None
    metadata: Mapping[str, Any] | None = None
    path: str | os.PathLike[str] | None = None


def card_path(card: ModelCard | None, target: pathlib.Path) -> pathlib.Path | None:
    """Returns the path of the card of a file or folder, or None without a card."""
    if card is None:
        return None
    return pathlib.Path(f"{target}.md" if card.path is None else card.path)


def card_text(
    card: ModelCard,
    model: keras.Model,
    target: pathlib.Path,
    held: int,
    kind: str,
    *,
    loading: str,
    inputs: Sequence[tf.TensorSpec] = (),
    accuracy: float | None = None,
    report: object = None,
) -> str:
    """Returns the text of a card.

    Args:
        card: `ModelCard`.
        model: built `keras.Model`, low-rank or not.
        target: `pathlib.Path` of the file or folder.
        held: int, its bytes.
        kind: str, its format.
        loading: str, code that loads it, with `{name}` and `{imports}`.
        inputs: sequence of `tf.TensorSpec`, the inputs of the file.
        accuracy: float or None, that of the file.
        report: printable report or None.
    """
    name = target.name if target.suffix else "/".join(target.parts[-2:])
    metrics = dict(card.metrics or {})
    if accuracy is not None:
        metrics["accuracy"] = accuracy
    front: dict[str, Any] = {"library_name": "keras", "tags": ["keras_lowrank", "low-rank"]}
    if named := [metric for metric in metrics if metric != "loss"]:
        front["metrics"] = named
    front.update(card.metadata or {})
    count = count_weights(model)
    facts = {
        "Data": card.data,
        "File": f"`{name}`, {kind}, {held:,} bytes",
        "Inputs": "; ".join(f"`{x.name}`, {x.dtype.name} {tuple(x.shape)}" for x in inputs),
        "Weights at full rank": f"{count.full:,}",
        "Weights of both factors": _counted(count, count.factored),
        "Weights deployed": _counted(count, count.deployed),
        **{metric: f"{value:.4f}" for metric, value in metrics.items()},
        "Made with": card.command and f"`{card.command}`",
        "Versions": f"Python {platform.python_version()}, Keras {keras.__version__}, "
        f"TensorFlow {tf.__version__}, keras_lowrank {__version__}",
    }
    ranks = rank_rows(model)
    parts = [
        "---",
        # JSON is YAML too.
        *(f"{key}: {json.dumps(one, ensure_ascii=False)}" for key, one in front.items()),
        "---",
        f"\n# {name}\n",
        *_table("  ", [(name, fact) for name, fact in facts.items() if fact]),
        *(("\n## Ranks\n", *_table(("Layer", *COLUMNS), ranks)) if ranks else ()),
        *(("\n## Beside full rank\n", f"```text\n{report}\n```") if report else ()),
        "\n## Use\n",
        f"```python\n{loading.format(name=name, imports=_imports(model))}```\n",
    ]
    return "\n".join(parts)


def get_card(card: bool | ModelCard) -> ModelCard | None:
    """Returns the card of an argument, or None for no card.

    Raises:
        TypeError: it is no bool and no `ModelCard`.
    """
    if isinstance(card, ModelCard):
        return card
    if isinstance(card, bool):
        return ModelCard() if card else None
    raise TypeError(f"`card` must be a bool or a `ModelCard`. Received: card={card!r}")


def _counted(count: Compression, weights: int) -> str:
    return f"{weights:,} ({count.saved(weights):.2%} saved)"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _imports(model: keras.Model) -> str:
    """Returns the lines that import what the classes of a model are registered by."""
    layers = [model, *keras_internals.all_layers(model)]
    found = {type(layer).__module__.partition(".")[0] for layer in layers}
    return "".join(f"import {name}\n" for name in sorted(found - {"keras", "__main__"}))
