"""Write, check, measure, put in place: the way of every export, whatever the format."""

import pathlib
import tempfile

from keras_lowrank.export import litert, onnx, parity, saved_model
from keras_lowrank.export.kernels import (
    count_parameters,
    deployed_kernels,
    full_rank_bytes,
    full_rank_kernels,
)
from keras_lowrank.export.placing import placed, size
from keras_lowrank.export.report import (
    Cost,
    ExportReport,
    count_multiply_adds,
    median_milliseconds,
)
from keras_lowrank.export.samples import Samples
from keras_lowrank.export.served import Served

# Bytes of the whole kernels that a report which nobody asked for may form.
_LARGEST_TWIN = 2**30

FORMATS = {"tf_saved_model": saved_model, "litert": litert, "tflite": litert, "onnx": onnx}


def export_model(
    model,
    filepath,
    format="tf_saved_model",
    verbose=None,
    input_signature=None,
    overwrite=False,
    *,
    quantization=None,
    representative_data=None,
    inference_type="float32",
    check_data=None,
    accuracy_drop=0.01,
    preprocessing=None,
    class_labels=None,
    report=None,
):
    """Writes a built Keras model for inference. See `LowRankModel.export`."""
    target = pathlib.Path(filepath)
    verbose = True if verbose is None else bool(verbose)
    if report is None:
        report = verbose and full_rank_bytes(model) <= _LARGEST_TWIN
    kind = _checked_format(format, target)
    if not model.built:
        raise ValueError(
            "A model can be exported once it is built. Call it on a batch, or `build` it. "
            f"Received: an unbuilt model {model.name!r}"
        )
    served = Served(model, preprocessing, class_labels, input_signature)
    samples = None
    if representative_data is not None:
        samples = Samples(representative_data, served, "representative_data")
    litert.check_arguments(quantization, samples, inference_type)
    if kind is not litert and quantization is not None:
        raise ValueError(
            "`quantization` goes with format='litert' alone. "
            f"Received: format={format!r}, quantization={quantization!r}"
        )
    if kind is not saved_model and class_labels is not None:
        raise ValueError(
            "`class_labels` go with format='tf_saved_model' alone: other formats are for numbers. "
            f"Received: format={format!r}"
        )
    options = {}
    if quantization is not None:
        options = {
            "quantization": quantization,
            "samples": samples,
            "inference_type": inference_type,
        }
    beside = (f"{target.name}.report.json",) if report else ()
    with placed(target, overwrite, beside) as made:
        kernels = deployed_kernels(model)
        kind.write(served, kernels, made, **options)
        run = kind.load(served, made)
        agreement = parity.check(served, run, quantization, samples, check_data, accuracy_drop)
        if report:
            costs = _costs(kind, served, kernels, made, run)
            report = ExportReport(str(target), format, quantization, *costs, *agreement)
            made.with_name(*beside).write_text(report.json())
    if verbose:
        print(f"Wrote {target}: {format}, {size(target):,} bytes.")
        if report:
            print(report)
    return report or None


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


def _costs(kind, served, kernels, path, run):
    """The `Cost`s of an artefact and of its full-rank twin, which is written for the purpose."""
    full = full_rank_kernels(served.model)
    with tempfile.TemporaryDirectory() as folder:
        twin = pathlib.Path(folder) / f"full_rank{kind.SUFFIX}"
        kind.write(served, full, twin)
        times = median_milliseconds([run, kind.load(served, twin)], served)
        return [
            Cost(
                bytes=size(place),
                parameters=count_parameters(served.layers, held),
                multiply_adds=count_multiply_adds(served, held),
                milliseconds=milliseconds,
            )
            for place, held, milliseconds in zip((path, twin), (kernels, full), times)
        ]
