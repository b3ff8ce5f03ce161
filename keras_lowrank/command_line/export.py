"""The command `export`: a model to a SavedModel, a LiteRT file or an ONNX file."""

import argparse
import pathlib
from typing import Any

import keras
import numpy as np
import rich.console

from keras_lowrank import keras_internals
from keras_lowrank.command_line import models
from keras_lowrank.command_line.values import arrays, fraction, names, shape
from keras_lowrank.export import export_model, signature
from keras_lowrank.export.pipeline import FORMATS
from keras_lowrank.files.placing import size

SUMMARY, USAGE = "write for inference", "MODEL.keras [OUTPUT]"
EXAMPLE = "model.keras --format=litert"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `export` to its parser."""
    models.add_arguments(parser)
    add = parser.add_argument
    add(
        "target",
        metavar="OUTPUT",
        nargs="?",
        help="where to write; default: the folder MODEL/1, MODEL.tflite or MODEL.onnx",
    )
    add("--overwrite", action="store_true", help="replace an existing file or folder")
    add(
        "--format",
        choices=["tf_saved_model", "litert", "onnx"],
        default="tf_saved_model",
        help="what to write; default: tf_saved_model",
    )
    add(
        "--input_shape",
        action="append",
        type=shape,
        metavar="SHAPE",
        help="an input's shape without the batch: 64, 224,224,3 or, by name, ids=64; repeat for "
        "each input",
    )
    add(
        "--batch_size",
        type=int,
        metavar="N",
        help="the batch size to fix; LiteRT in a browser needs 1",
    )
    add("--class_labels", type=names, metavar="A,B", help="names of classes, for tf_saved_model")
    add = parser.add_argument_group("for litert").add_argument
    add("--quantization", choices=["float16", "dynamic_int8", "int8"], help="of the weights")
    add(
        "--representative_data",
        metavar="FILE",
        help="for int8: an .npy file of about 100 inputs, or an .npz file of arrays by name",
    )
    add(
        "--inference_type",
        choices=["float32", "int8", "uint8"],
        default="float32",
        help="for int8: the type of inputs and outputs; default: float32",
    )
    add = parser.add_argument_group("checks and measurements").add_argument
    add("--example_inputs", metavar="FILE", help="an .npy or .npz file of inputs for the check")
    add(
        "--check_data",
        metavar="FILE",
        help="an .npz file of x (or arrays by name) and y, to compare accuracies on",
    )
    add(
        "--accuracy_drop",
        type=fraction,
        default=0.01,
        metavar="D",
        help="how far the accuracy may fall; default: 0.01",
    )
    add(
        "--report",
        action="store_true",
        help="measure it and the full-rank model, and print a table",
    )
    add("--report_file", metavar="FILE", help="as --report, and also write a .json file")
    add("--card", action="store_true", help="also write a model card, OUTPUT.md")


def run(arguments: argparse.Namespace) -> None:
    """Writes a model, low-rank or not, for inference."""
    target = arguments.target
    if target is None:
        suffix = FORMATS[arguments.format].SUFFIX
        target = pathlib.Path(arguments.model).with_suffix(suffix) / ("" if suffix else "1")
    if pathlib.Path(target).exists() and not arguments.overwrite:
        raise FileExistsError(f"The output exists. Pass --overwrite to replace it: {target}")
    examples = arrays(arguments.example_inputs, ".npy", ".npz")
    typical = arrays(arguments.representative_data, ".npy", ".npz")
    check = arrays(arguments.check_data, ".npz")
    if check is not None and not (isinstance(check, dict) and "y" in check and len(check) > 1):
        raise ValueError(
            "--check_data must hold the arrays x and y, or y and arrays named like the inputs. "
            f"Received: {list(check)}"
        )
    model = models.load(arguments)
    with rich.console.Console(stderr=True).status("Writing and checking"):
        report = export_model(
            model,
            target,
            arguments.format,
            verbose=False,
            input_signature=_signature(model, arguments.input_shape),
            batch_size=arguments.batch_size,
            example_inputs=examples,
            overwrite=arguments.overwrite,
            quantization=arguments.quantization,
            representative_data=typical,
            inference_type=arguments.inference_type,
            check_data=None if check is None else _inputs_and_targets(model, check),
            accuracy_drop=arguments.accuracy_drop,
            class_labels=arguments.class_labels,
            report=arguments.report_file or arguments.report,
            card=arguments.card,
        )
    print(f"Wrote {target}: {arguments.format}, {size(pathlib.Path(target)):,} bytes.")
    if report:
        print(report)


def _inputs_and_targets(model: keras.Model, check: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The pair `(x, y)` of the arrays in a file; x is a dict for several inputs."""
    x = {name: array for name, array in check.items() if name != "y"}
    several = len(getattr(model, "inputs", None) or ()) > 1
    return (x if several or "x" not in x else x["x"]), check["y"]


def _signature(model: keras.Model, shapes: list | None) -> list | None:
    """The model's signature with the shapes of --input_shape, or None without them."""
    if not shapes:
        return None
    arguments = signature.standardized(keras_internals.input_signature(model))
    return signature.with_shapes(arguments, shapes)
