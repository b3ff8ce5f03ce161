"""Write, check, measure, put in place: the way of every export, whatever the format."""

import contextlib
import pathlib
import tempfile

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
from keras_lowrank.files.placing import disk_errors, placed, size

FORMATS = {"tf_saved_model": saved_model, "litert": litert, "tflite": litert, "onnx": onnx}


def export_model(
    model,
    filepath,
    format="tf_saved_model",
    verbose=None,
    input_signature=None,
    overwrite=False,
    *,
    batch_size=None,
    example_inputs=None,
    quantization=None,
    representative_data=None,
    inference_type="float32",
    check_data=None,
    accuracy_drop=0.01,
    preprocessing=None,
    class_labels=None,
    opset_version=None,
    optimizations=None,
    representative_dataset=None,
    target_spec=None,
    report=False,
):
    """Writes a built Keras model for inference. See `LowRankModel.export`."""
    target = pathlib.Path(filepath)
    verbose = True if verbose is None else bool(verbose)
    kind = _checked_format(format, target)
    if not model.built:
        raise ValueError(
            "A model can be exported once it is built. Call it on a batch, or `build` it. "
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
                "`representative_dataset` is Keras's word for `representative_data`: pass one of "
                "them. Received: both"
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
    inputs = next(iter(given.values()), labelled and labelled.samples)
    options = {}
    if kind is litert:
        options = {"quantization": quantization, "samples": ranges}
        options.update(inference_type=inference_type, **converter)
    if kind is onnx:
        options = {"opset_version": opset_version}
    with (
        _placed_report(report, target, overwrite) as made_report,
        placed(target, overwrite) as made,
    ):
        # What the model itself makes of its inputs comes first: what fails later is the export.
        expected = parity.reference(served, inputs, rounding is not None)
        kernels = deployed_kernels(model)
        function = kind.trace(served, kernels)
        with disk_errors(target):
            kind.write(served, function, made, **options)
        run = kind.load(served, function, made)
        agreement = parity.check(served, run, expected, rounding, labelled, accuracy_drop)
        if report:
            arguments, _ = expected.batches[0]
            costs = _costs(kind, served, kernels, made, run, arguments)
            measured = ExportReport(str(target), format, rounding, *costs, *agreement)
        if made_report:
            made_report.write_text(measured.json())
    if verbose:
        print(f"Wrote {target}: {format}, {size(target):,} bytes.")
        if report:
            print(measured)
    return measured if report else None


def _check_format_of(arguments, kind, format):
    """Raises ValueError where an argument goes with another format.

    Args:
        arguments: dict from a format's module to its own arguments, by name; None is not given.
        kind: the module of the format that was asked for.
        format: str, its name.
    """
    for other, own in arguments.items():
        for name, value in own.items():
            if other is not kind and value is not None:
                right = next(name for name, module in FORMATS.items() if module is other)
                raise ValueError(
                    f"`{name}` goes with format={right!r} alone. "
                    f"Received: format={format!r}, {name}={value!r}"
                )


def _placed_report(report, target, overwrite):
    """A place for the file of the report, or None where only the result is wanted."""
    if report is None or isinstance(report, bool):
        return contextlib.nullcontext()
    path = pathlib.Path(report)
    if target.resolve() in (path.resolve(), *path.resolve().parents):
        raise ValueError(
            "`report` must be True, or a path outside of the artefact. "
            f"Received: report={str(report)!r}, filepath={str(target)!r}"
        )
    return placed(path, overwrite)


def _checked_format(format, target):
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
                f"A path that ends in {target.suffix!r} goes with format={name!r}; "
                f"format={format!r} writes a folder. Received: {target}"
            )
    return FORMATS[format]


def _costs(kind, served, kernels, path, run, arguments):
    """The `Cost`s of an artefact and of its full-rank twin, which is written for the purpose."""
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
