"""Keras models on the command line: look into one, convert it, convert it back, and export it.

    python -m keras_lowrank inspect MODEL.keras
    python -m keras_lowrank convert MODEL.keras --tolerance=0.1
    python -m keras_lowrank convert MODEL.keras LOW_RANK.keras --budget=100000 --exclude=head
    python -m keras_lowrank convert LOW_RANK.keras PLAIN.keras --style=smaller
    python -m keras_lowrank export MODEL.keras saved_models/NAME/1
    python -m keras_lowrank export MODEL.keras --format=litert --quantization=int8 \
        --representative_data=images.npy --check_data=test.npz
    python -m keras_lowrank export MODEL.keras --format=litert --input_shape=64 --import=my_layers

What is written goes beside MODEL.keras where no other place is named: to MODEL_low_rank.keras or
MODEL_plain.keras; to MODEL.tflite, MODEL.onnx, or the folder MODEL/1 of a SavedModel. The exit
status is 0, or 1 after an error, which is one line on stderr; no file is then written.
"""

import functools
import importlib
import pathlib
import re
import sys
import zipfile

import keras
import numpy as np
import rich.console
import rich.progress
from absl import app, flags, logging

from keras_lowrank import from_keras, keras_internals, to_keras
from keras_lowrank.convert import inspection
from keras_lowrank.export import export_model, signature
from keras_lowrank.export.pipeline import FORMATS
from keras_lowrank.files.placing import disk_errors, placed, size

_RANK = flags.DEFINE_integer("rank", None, "convert: the rank of all layers.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance", None, "convert: the error of each kernel that is cut, relative to its norm."
)
_ENERGY = flags.DEFINE_float("energy", None, "convert: the share of each squared norm to keep.")
_BUDGET = flags.DEFINE_integer("budget", None, "convert: the weights of the whole model.")
_STYLE = flags.DEFINE_enum(
    "style",
    None,
    ["smaller", "factored", "merged"],
    "convert: back to a plain Keras model, its low-rank layers in this style.",
)
_INCLUDE = flags.DEFINE_list(
    "include", None, "convert: the layers to convert, by name, path or pattern, with commas."
)
_EXCLUDE = flags.DEFINE_list("exclude", None, "convert: the layers to leave, in the same terms.")
_ONLY_SMALLER = flags.DEFINE_bool(
    "only_smaller", True, "convert: leave a layer whose factors would be no smaller."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file that is there.")
_SAFE_MODE = flags.DEFINE_bool(
    "safe_mode", True, "Refuse models with Python code in them (Lambda layers)."
)
_FORMAT = flags.DEFINE_enum(
    "format", "tf_saved_model", ["tf_saved_model", "litert", "onnx"], "export: what to write."
)
_QUANTIZATION = flags.DEFINE_enum(
    "quantization", None, ["float16", "dynamic_int8", "int8"], "export: for litert."
)
_REPRESENTATIVE_DATA = flags.DEFINE_string(
    "representative_data",
    None,
    "export: for int8, an .npy file of some hundred typical inputs, or, for a model of several, "
    "an .npz file of arrays by their names.",
)
_INFERENCE_TYPE = flags.DEFINE_enum(
    "inference_type",
    "float32",
    ["float32", "int8", "uint8"],
    "export: for int8, the type of the file's inputs and outputs.",
)
_CHECK_DATA = flags.DEFINE_string(
    "check_data",
    None,
    "export: an .npz file with arrays x and y, or, for a model of several inputs, y and arrays by "
    "their names, to compare accuracies on.",
)
_ACCURACY_DROP = flags.DEFINE_float(
    "accuracy_drop", 0.01, "export: how much lower the accuracy on --check_data may be.", 0.0, 1.0
)
_CLASS_LABELS = flags.DEFINE_list(
    "class_labels", None, "export: names of the classes with commas, for tf_saved_model."
)
_EXAMPLE_INPUTS = flags.DEFINE_string(
    "example_inputs", None, "export: an .npy file of a few inputs to check on."
)
_INPUT_SHAPE = flags.DEFINE_multi_string(
    "input_shape",
    None,
    "export: the shape of an input without the batch, as 64 or 224,224,3; once for each input, in "
    "their order, or with a name, ids=64.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "export: the batch size of the file; LiteRT in a browser needs 1."
)
_REPORT = flags.DEFINE_bool("report", False, "export: measure beside full rank, and print it.")
_REPORT_FILE = flags.DEFINE_string(
    "report_file", None, "export: the same, and write it to this .json file."
)
_IMPORT = flags.DEFINE_list(
    "import", [], "The modules that define the model's own classes and functions, with commas."
)


def inspect(path):
    """Prints the layers of a model, their singular values, and what tolerances would leave."""
    model = _load(path)
    # On stderr, and on a terminal alone: what is printed may go into a file.
    console = rich.console.Console(stderr=True)
    bar = functools.partial(
        rich.progress.track, console=console, transient=True, disable=not console.is_terminal
    )
    found = list(inspection.kernels(model, bar))
    if not found:
        print(*inspection.reasons(model), sep="\n")
        raise ValueError(f"The model must hold a layer that is, or can be, low-rank: {path}")
    print(*inspection.report(model, found), sep="\n")


def convert(path, target=None):
    """Writes the low-rank twin of a model, or the plain Keras model of a low-rank one."""
    kind = "low_rank" if _STYLE.value is None else "plain"
    target = pathlib.Path(target or f"{pathlib.Path(path).with_suffix('')}_{kind}.keras")
    if target.suffix != ".keras":
        raise ValueError(f"The file to write must end in .keras. Received: {target}")
    if target.exists() and not _OVERWRITE.value:
        raise FileExistsError(f"The file exists; pass --overwrite to replace it: {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no such folder: {target.parent}")
    model = _load(path)
    rules = {flag.name: flag.value for flag in (_RANK, _TOLERANCE, _ENERGY, _BUDGET)}
    if _STYLE.value is None:
        choice = {"include": _INCLUDE.value, "exclude": _EXCLUDE.value}
        low = from_keras(model, **rules, **choice, only_smaller=_ONLY_SMALLER.value, verbose=True)
        print(low.compression())
        _save(low, target)
    elif any(value is not None for value in rules.values()):
        raise ValueError(
            "--style leads back to plain layers at the ranks that there are: pass it "
            "without --rank, --tolerance, --energy and --budget."
        )
    else:
        _save(to_keras(model, _STYLE.value), target)
    print(f"Wrote {target}, {target.stat().st_size:,} bytes.")


def export(path, target=None):
    """Writes a model, low-rank or not, for inference."""
    if target is None:
        suffix = FORMATS[_FORMAT.value].SUFFIX
        target = pathlib.Path(path).with_suffix(suffix) / ("" if suffix else "1")
    if pathlib.Path(target).exists() and not _OVERWRITE.value:
        raise FileExistsError(f"The file exists; pass --overwrite to replace it: {target}")
    examples = _EXAMPLE_INPUTS.value and _arrays(_EXAMPLE_INPUTS.value, ".npy", ".npz")
    inputs = _REPRESENTATIVE_DATA.value and _arrays(_REPRESENTATIVE_DATA.value, ".npy", ".npz")
    check = _CHECK_DATA.value and _arrays(_CHECK_DATA.value, ".npz")
    if check is not None and ("y" not in check or len(check) < 2):
        raise ValueError(
            "--check_data must hold the arrays x and y, or y and arrays by the names of inputs. "
            f"Received: {list(check)}"
        )
    model = _load(path)
    with rich.console.Console(stderr=True).status("Writing and checking"):
        report = export_model(
            model,
            target,
            _FORMAT.value,
            verbose=False,
            input_signature=_signature(model, _INPUT_SHAPE.value),
            batch_size=_BATCH_SIZE.value,
            example_inputs=examples,
            overwrite=_OVERWRITE.value,
            quantization=_QUANTIZATION.value,
            representative_data=inputs,
            inference_type=_INFERENCE_TYPE.value,
            check_data=check and _inputs_and_targets(model, check),
            accuracy_drop=_ACCURACY_DROP.value,
            class_labels=_CLASS_LABELS.value,
            report=_REPORT_FILE.value or _REPORT.value,
        )
    print(f"Wrote {target}: {_FORMAT.value}, {size(pathlib.Path(target)):,} bytes.")
    if report:
        print(report)


def main(argv):
    """Runs the command that `argv` names."""
    commands = {"inspect": (inspect, 1), "convert": (convert, 2), "export": (export, 2)}
    name, *paths = argv[1:] or [""]
    try:
        if name not in commands or not 1 <= len(paths) <= commands[name][1]:
            raise ValueError(
                "The command must be one of: inspect MODEL.keras; convert MODEL.keras [NEW.keras]; "
                "export MODEL.keras [OUTPUT]; --helpshort lists their flags. "
                f"Received: {' '.join(argv[1:]) or 'none'}"
            )
        commands[name][0](*paths)
    except Exception as error:  # whatever it is, of Keras, of a file or of an argument: one line
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)


def _load(path):
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no such file: {path}")
    if path.endswith(".keras") and not zipfile.is_zipfile(path):
        raise ValueError(
            f"The file is damaged, or was not written by Keras; copy or save it again: {path}"
        )
    own = _own_objects()
    try:
        return keras.saving.load_model(
            path, custom_objects=own, compile=False, safe_mode=_SAFE_MODE.value
        )
    except Exception as error:  # Keras has many for a file that it cannot read, some of them long
        if missing := re.search(r"Could not locate (\w+ '[^']+')", str(error)):
            raise ValueError(
                f"{path} needs the {missing[1]}, which is not known here: pass --import=MODULE, "
                "the module that defines it."
            ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} cannot be loaded as a Keras model; if it is damaged, copy or save it again. "
            f"{reason[:300]}"
        ) from error


def _inputs_and_targets(model, arrays):
    """The pair `(x, y)` of the arrays in a file, x by name where there are several inputs."""
    x = {name: array for name, array in arrays.items() if name != "y"}
    several = len(getattr(model, "inputs", None) or ()) > 1
    return (x if several or "x" not in x else x["x"]), arrays["y"]


def _own_objects():
    """`{name: class or function}` of what the modules of --import define."""
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        modules = [importlib.import_module(name) for name in _IMPORT.value]
    except ImportError as error:
        raise ValueError(f"--import must name modules that can be imported. {error}") from error
    finally:
        sys.path.pop(0)
    return {
        name: one
        for module in modules
        for name, one in vars(module).items()
        if getattr(one, "__module__", None) == module.__name__
    }


def _signature(model, shapes):
    """The inputs of a model in the shapes of --input_shape, or None for its own."""
    if not shapes:
        return None
    parsed = []
    for text in shapes:
        name, _, extents = text.rpartition("=")
        try:
            parsed.append((name or None, [int(one) for one in extents.split(",") if one]))
        except ValueError as error:
            raise ValueError(
                "--input_shape must be whole numbers with commas, after NAME= where the model has "
                f"several inputs. Received: {text}"
            ) from error
    arguments = signature.standardized(keras_internals.input_signature(model))
    return signature.with_shapes(arguments, parsed)


def _arrays(path, *suffixes):
    """The array of an .npy file, or the arrays of an .npz file by name."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no such file: {path}")
    if pathlib.Path(path).suffix not in suffixes:
        raise ValueError(f"The file must be NumPy's {' or '.join(suffixes)}. Received: {path}")
    try:
        loaded = np.load(path)  # without pickles, which would run code
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        suffix = pathlib.Path(path).suffix
        raise ValueError(f"{path} cannot be read as NumPy's {suffix}. {error}") from error


def _save(model, target):
    """Writes the file whole or not at all."""
    with placed(target, _OVERWRITE.value) as made, disk_errors(target):
        model.save(made)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    app.run(main)
