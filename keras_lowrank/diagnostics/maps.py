"""Whether `project` and `expand` are what `low_rank_apply` takes them to be."""

import numpy as np
import tensorflow as tf

from keras_lowrank.kernels.products import matmul_last

# Columns of the bases that the maps are tried with, more and fewer.
_MORE, _FEWER = 5, 3


def check_maps(report, name, maps, inputs, factors):
    """Checks the maps of one kernel on what the kernel is given in a call.

    Args:
        report: `Report`.
        name: str, which kernel, between two words; empty where there is one.
        maps: `KernelMaps`.
        inputs: tensor, of numbers or indices.
        factors: `Point` of the layer, in full precision, which the maps are checked in.
    """
    u, s, v = factors
    if inputs.dtype.is_floating:
        inputs = tf.cast(inputs, s.dtype)
    normal = _normal(np.random.default_rng(0), s.dtype)
    project, expand = f"`project` {name}", f"`expand` {name}"
    coordinates = report.attempt(
        f"{project}takes inputs and a basis of shape (n, k), as U, for any k",
        lambda: maps.project(inputs, normal(u.shape[0], _MORE)),
    )
    report.need(
        coordinates.shape[-1] == _MORE,
        f"{project}returns as many channels as the basis has columns, and has them last",
        f"shape {tuple(coordinates.shape)} for {_MORE} columns",
    )
    _check_linear(report, project, maps.project, inputs, normal(u.shape[0], _MORE), normal)
    basis, turn = normal(u.shape[0], _MORE), normal(_MORE, _FEWER)
    report.close(
        f"{project}is linear in the basis, column by column: project(x, A C) = project(x, A) C",
        maps.project(inputs, tf.matmul(basis, turn)),
        matmul_last(maps.project(inputs, basis), turn),
    )
    if maps.expand is not None:
        basis = normal(v.shape[0], _MORE)
        report.attempt(
            f"{expand}takes coordinates (..., k) and a basis of shape (m, k), as V, for any k",
            lambda: maps.expand(coordinates, basis),
        )
        _check_linear(report, expand, maps.expand, coordinates, basis, normal)
        fewer = normal(v.shape[0], _FEWER)
        report.close(
            f"{expand}takes a basis as V: expand(z C, B) = expand(z, B C^T)",
            maps.expand(matmul_last(coordinates, turn), fewer),
            maps.expand(coordinates, tf.matmul(fewer, turn, transpose_b=True)),
        )

    def product(u, s, v):
        return maps.expanded(matmul_last(maps.project(inputs, u), s), v)

    report.close(
        f"The product {name}with U, S and V is that with the whole kernel",
        product(u, s, v),
        maps.apply_whole(inputs, tf.matmul(tf.matmul(u, s), v, transpose_b=True)),
    )
    _check_gradients(report, name, product, factors, normal)


def _check_linear(report, what, function, inputs, basis, normal):
    """Checks a map of `(inputs, basis)`: no constant, and linear in the inputs."""
    zeros = function(inputs, tf.zeros_like(basis))
    report.need(
        not np.any(zeros),
        f"{what}adds nothing of its own: it is zero for a basis of zeros",
        f"values up to {float(tf.reduce_max(tf.abs(zeros))):.2g}",
    )
    if not inputs.dtype.is_floating:
        return
    others = tf.cast(normal(*inputs.shape), inputs.dtype)
    report.close(
        f"{what}is linear in what comes in",
        function(2.0 * inputs - 3.0 * others, basis),
        2.0 * function(inputs, basis) - 3.0 * function(others, basis),
    )


def _check_gradients(report, name, product, factors, normal):
    """Checks the gradients of U, S and V, in each of which the product is linear."""
    with tf.GradientTape() as tape:
        tape.watch(factors)
        outputs = product(*factors)
        weights = normal(*outputs.shape)
        total = tf.reduce_sum(weights * outputs)
    gradients = tape.gradient(total, factors)
    for letter, factor, gradient in zip(factors._fields, factors, gradients):
        change = normal(*factor.shape)
        moved = product(*factors._replace(**{letter: change}))
        rule = f"The product {name}has its gradient by {letter}"
        if report.check(gradient is not None, rule, "None"):
            report.close(
                f"That gradient by {letter} is true",
                tf.reduce_sum(tf.convert_to_tensor(gradient) * change),
                tf.reduce_sum(weights * moved),
            )


def _normal(rng, dtype):
    return lambda *shape: tf.cast(rng.standard_normal(shape), dtype)
