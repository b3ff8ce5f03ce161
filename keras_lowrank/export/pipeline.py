"""The steps of every export: write, check, measure, move into place."""

import os
import pathlib
import tempfile
from collections.abc import Callable
from types import ModuleType
from typing import Any

import keras

from keras_lowrank.export import litert, onnx, parity, saved_model
from keras_lowrank.export.kernels import (
    count_parameters,
    deployed_kernels,
    full_rank_kernels,
)
from keras_lowrank.export.report import (
    Cost,
    ExportReport,
    count_multiply_adds,
    median_milliseconds,
)
from keras_lowrank.export.samples import Samples
from keras_lowrank.export.served import Served
from keras_lowrank.files.placing import disk_errors, placed, placed_beside, size
from keras_lowrank.kernels.kernel_override import ProductKernel
from keras_lowrank.manifold.factors import Factors
from keras_lowrank.reporting.card import ModelCard, card_path, card_text, get_card

# Each module has `SUFFIX`, `LOADING`, `trace`, `write` and `load`.
FORMATS: dict[str, Any] = {
    "tf_saved_model": saved_model,
    "litert": litert,
    "tflite": litert,
    "onnx": onnx,
}


def export_model(
    model: keras.Model,
    filepath: str | os.PathLike,
    format: str = "tf_saved_model",
    verbose: bool | int | None = None,
    input_signature: Any = None,
    overwrite: bool = False,
    *,
    batch_size: int | None = None,
    example_inputs: Any = None,
    quantization: str | None = None,
    representative_data: Any = None,
    inference_type: str = "float32",
    check_data: tuple[Any, Any] | None = None,
    accuracy_drop: float = 0.01,
    preprocessing: keras.layers.Layer | None = None,
    class_labels: list[str] | None = None,
    opset_version: int | None = None,
    optimizations: list | None = None,
    representative_dataset: Any = None,
    target_spec: Any = None,
    report: bool | str | os.PathLike = False,
    card: bool | ModelCard = False,
) -> ExportReport | None:
    """Writes a built Keras model, low-rank or not, for inference.

    The arguments, the result and the errors are those of `LowRankModel.export`.

    Example:

    >>> from keras_lowrank.export import export_model
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.tflite"
    >>> export_model(model, path, format="litert", verbose=False)
    >>> path.is_file()
    True
    """
    target = pathlib.Path(filepath)
    verbose = True if verbose is None else bool(verbose)
    kind = _checked_format(format, target)
    if not model.built:
        raise ValueError(
            "A model must be built before it is exported. Call it on a batch, or `build` it. "
            f"Received: an unbuilt model {model.name!r}"
        )
    served = Served(model, preprocessing, class_labels, input_signature, batch_size)
    for_one = {
        litert: {
            "quantization": quantization,
            "optimizations": optimizations,
            "representative_dataset": representative_dataset,
            "target_spec": target_spec,
        },
        onnx: {"opset_version": opset_version},
        saved_model: {"class_labels": class_labels},
    }
    _check_format_of(for_one, kind, format)
    if representative_dataset is not None:
        if representative_data is not None:
            raise ValueError(
                "`representative_dataset` is Keras's name of `representative_data`: pass only one "
                "of them. Received: both"
            )
        representative_data = representative_dataset
    converter = {"optimizations": optimizations, "target_spec": target_spec}
    data = {"example_inputs": example_inputs, "representative_data": representative_data}
    given = {name: Samples(x, served, name) for name, x in data.items() if x is not None}
    ranges = given.get("representative_data")
    if ranges:
        ranges.check_one_by_one()
    litert.check_arguments(quantization, ranges, inference_type, **converter)
    labelled = None if check_data is None else parity.Labelled(served, check_data)
    rounding = litert.rounding(quantization, ranges, **converter)
    inputs = next(iter(given.values()), labelled.samples if labelled else None)
    options: dict[str, Any] = {}
    if kind is litert:
        options = {"quantization": quantization, "samples": ranges}
        options.update(inference_type=inference_type, **converter)
    if kind is onnx:
        options = {"opset_version": opset_version}
    described = get_card(card)
    with (
        placed_beside(target, "report", _path_of(report), overwrite) as made_report,
        placed_beside(target, "card", card_path(described, target), overwrite) as made_card,
        placed(target, overwrite) as made,
    ):
        # The model itself runs first, so that a later failure is one of the export.
        expected = parity.reference(served, inputs, rounding is not None)
        kernels = deployed_kernels(model)
        function = kind.trace(served, kernels)
        with disk_errors(target):
            kind.write(served, function, made, **options)
        run = kind.load(served, function, made)
        agreement = parity.check(served, run, expected, rounding, labelled, accuracy_drop)
        measured = None
        if report:
            arguments, _ = expected.batches[0]
            artefact, full_rank = _costs(kind, served, kernels, made, run, arguments)
            measured = ExportReport(str(target), format, rounding, artefact, full_rank, *agreement)
        if made_report and measured:
            made_report.write_text(measured.json())
        if made_card and described:
            text = card_text(
                described,
                model,
                target,
                held=size(made),
                kind=format if rounding is None else f"{format}, {rounding}",
                inputs=keras.tree.flatten(served.signature),
                loading=kind.LOADING,
                accuracy=agreement.accuracy,
                report=measured and measured._replace(path=target.name),  # not the whole path
            )
            made_card.write_text(text, encoding="utf-8")
    if verbose:
        print(f"Wrote {target}: {format}, {size(target):,} bytes.")
        if report:
            print(measured)
    return measured


def _check_format_of(
    arguments: dict[ModuleType, dict[str, Any]], kind: ModuleType, format: str
) -> None:
    """Raises ValueError if an argument belongs to another format.

    Args:
        arguments: dict from the module of a format to its arguments by name, None if not passed.
        kind: the module of the chosen format.
        format: str, the name of the chosen format.
    """
    for other, own in arguments.items():
        for name, value in own.items():
            if other is not kind and value is not None:
                right = next(name for name, module in FORMATS.items() if module is other)
                raise ValueError(
                    f"`{name}` needs format={right!r}. "
                    f"Received: format={format!r}, {name}={value!r}"
                )


def _path_of(report: bool | str | os.PathLike) -> str | os.PathLike | None:
    """The file to write the report to, or None."""
    return None if report is None or isinstance(report, bool) else report


def _checked_format(format: str, target: pathlib.Path) -> Any:
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {sorted(FORMATS)}. Received: format={format!r}")
    suffix = FORMATS[format].SUFFIX
    if suffix and target.suffix != suffix:
        raise ValueError(
            f"`filepath` must end in {suffix!r} for format={format!r}. Received: {target}"
        )
    for name, kind in FORMATS.items():
        if not suffix and kind.SUFFIX and target.suffix == kind.SUFFIX:
            raise ValueError(
                f"A path that ends in {target.suffix!r} needs format={name!r}; "
                f"format={format!r} writes a folder. Received: {target}"
            )
    return FORMATS[format]


def _costs(
    kind: Any,
    served: Served,
    kernels: dict[Factors, ProductKernel],
    path: pathlib.Path,
    run: Callable,
    arguments: Any,
) -> list[Cost]:
    """The costs of an export, and of a temporary one at full rank."""
    full = full_rank_kernels(served.model)
    with tempfile.TemporaryDirectory() as folder:
        twin = pathlib.Path(folder) / f"full_rank{kind.SUFFIX}"
        function = kind.trace(served, full)
        kind.write(served, function, twin)
        times = median_milliseconds([run, kind.load(served, function, twin)], arguments)
        return [
            Cost(
                bytes=size(place),
                parameters=count_parameters(served.layers, held),
                multiply_adds=count_multiply_adds(served, held, arguments),
                milliseconds=milliseconds,
            )
            for place, held, milliseconds in zip((path, twin), (kernels, full), times)
        ]
