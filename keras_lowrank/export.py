"""SavedModel and LiteRT files, checked against the model before they are put in place."""

import functools
import importlib
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.layers import find_low_rank_layers
from keras_lowrank.tangent import Product, substitute

# Largest difference between an artefact and the model, relative to outputs above 1.
TOLERANCE = 1e-4

_BATCHES = (1, 3)  # of the check: the batch size of a file must be free


def export_model(model, filepath, format, verbose, input_signature, overwrite):
    """Writes, checks and puts in place. See `LowRankModel.export`."""
    writers = {
        "tf_saved_model": (_write_saved_model, _run_saved_model, ""),
        "litert": (_write_litert, _run_litert, ".tflite"),
        "tflite": (_write_litert, _run_litert, ".tflite"),
    }
    if format not in writers:
        raise ValueError(f"`format` must be one of {sorted(writers)}. Received: format={format!r}")
    write, run, suffix = writers[format]
    target = pathlib.Path(filepath)
    if suffix and target.suffix != suffix:
        raise ValueError(
            f"`filepath` must end in {suffix!r} for format={format!r}. Received: {filepath}"
        )
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"`filepath` exists. Pass overwrite=True to replace it. Received: {filepath}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last move is a rename on one file system.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
        made = pathlib.Path(folder) / target.name
        write(model, made, input_signature)
        _check_parity(model, lambda *call: run(made, *call), input_signature)
        _put_in_place(made, target, pathlib.Path(folder) / "previous")
    if verbose or verbose is None:
        print(f"Saved a {format} artefact of {_size(target):,} bytes at {str(target)!r}.")


def deployed_kernels(model):
    """The matrices that an export holds in place of U, S and V: `{factors: Product}`.

    The folded pair `(U S, V)`, or W itself where that has no more entries: what costs less to
    keep costs less to multiply with.
    """
    kernels = {}
    for layer in find_low_rank_layers(model).values():
        u, s, v = layer.factors.read()
        n, m, rank = layer.factors.n, layer.factors.m, layer.factors.rank
        pair = (tf.matmul(u, s), v)
        dense = (tf.matmul(*pair, transpose_b=True),)
        matrices = pair if rank * (n + m) < n * m else dense
        held = [tf.Variable(matrix, trainable=False, name="kernel") for matrix in matrices]
        kernels[layer.factors] = Product(*held)
    return kernels


def _write_saved_model(model, path, input_signature):
    if input_signature is None:
        input_signature = keras_internals.input_signature(model)
    archive = keras.export.ExportArchive()
    for layer in keras_internals.all_layers(model):
        if not layer.variables:
            archive.track(layer)  # for the look-up tables of preprocessing layers
    with substitute(deployed_kernels(model)):
        # Only what the traced function reads is written: no factor, no optimizer state.
        archive.add_endpoint("serve", lambda *x: model(*x, training=False), input_signature)
        archive.write_out(str(path), verbose=False)  # traces, so inside the substitution


def _write_litert(model, path, input_signature):
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, folder, input_signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        path.write_bytes(converter.convert())


def _check_parity(model, run, input_signature):
    """Raises ValueError where the artefact and the model differ on random input."""
    signature = input_signature or keras_internals.input_signature(model)
    names = [getattr(spec, "name", None) for spec in keras.tree.flatten(signature)]
    random = np.random.default_rng(0)
    for batch in _BATCHES:
        draw = functools.partial(_draw, batch=batch, random=random)
        arguments = keras.tree.map_structure(draw, signature)
        expected = keras.tree.flatten(model(*arguments, training=False))
        received = run(arguments, names)
        for want, got in zip(expected, received, strict=True):
            want = keras.ops.convert_to_numpy(keras.ops.cast(want, "float32"))
            difference = np.max(np.abs(want - np.asarray(got, "float32")), initial=0.0)
            allowed = _tolerance(model) * max(1.0, np.max(np.abs(want), initial=0.0))
            if not difference <= allowed:
                raise ValueError(
                    "An artefact must agree with the model on random input to "
                    f"{allowed:.1e}; nothing was written. Received: a difference of "
                    f"{difference:.1e}"
                )


def _tolerance(model):
    """1e-4; where the model computes in half precision, what its roundings can add up to."""
    types = {layer.compute_dtype for layer in find_low_rank_layers(model).values()}
    coarse = [tf.as_dtype(name) for name in types if name in ("float16", "bfloat16")]
    units = [
        16 * float(np.finfo(kind.as_numpy_dtype).eps) if kind != tf.bfloat16 else 2.0**-3
        for kind in coarse
    ]
    return max([TOLERANCE, *units])


def _draw(spec, batch, random):
    shape = [batch if axis == 0 else extent or 8 for axis, extent in enumerate(spec.shape)]
    dtype = tf.as_dtype(spec.dtype)
    if dtype.is_floating:
        return tf.constant(random.standard_normal(shape), dtype)
    if dtype == tf.string:
        return tf.fill(shape, "")
    return tf.constant(random.integers(0, 2, shape), dtype)


def _run_saved_model(path, arguments, names):
    artefact = tf.saved_model.load(str(path))  # held: it owns the variables of its functions
    return keras.tree.flatten(artefact.serve(*arguments))


def _run_litert(path, arguments, names):
    try:
        interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError:  # an optional package; TensorFlow still ships the older one
        interpreter = tf.lite.Interpreter
    session = interpreter(model_path=str(path))  # held: the runner does not own it
    run = session.get_signature_runner("serving_default")
    inputs = sorted(run.get_input_details(), key=_position)
    if set(names) == set(inputs):  # inputs without names are called x_0, x_1, ...
        inputs = names
    outputs = run(**dict(zip(inputs, keras.tree.flatten(arguments), strict=True)))
    return [outputs[key] for key in sorted(outputs, key=_position)]


def _position(key):
    """Sorts `output_10` behind `output_9`, and other names as Keras flattens dictionaries."""
    stem, _, digits = key.rpartition("_")
    return (stem, int(digits)) if digits.isdigit() and stem in ("output", "x") else (key, 0)


def _put_in_place(made, target, aside):
    """Moves `made` to `target`; what was there comes back if that fails."""
    if not target.exists():
        made.rename(target)
        return
    target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        aside.rename(target)
        raise


def _size(path):
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
