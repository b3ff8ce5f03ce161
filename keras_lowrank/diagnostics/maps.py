"""Checks that `project` and `expand` are the maps that `low_rank_apply` expects."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_lowrank.diagnostics.report import Report
from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.products import matmul_last
from keras_lowrank.manifold.point import Point

# Numbers of columns of the bases that the maps are called with.
_MORE, _FEWER = 5, 3


def check_maps(
    report: Report, name: str, maps: KernelMaps, inputs: tf.Tensor, factors: Point
) -> None:
    """Checks the maps of one kernel on the inputs of a call.

    Args:
        report: `Report`.
        name: str, which kernel, as `"of 'path' "`; empty for the only one.
        maps: `KernelMaps`.
        inputs: tensor, of numbers or indices.
        factors: `Point`, the layer's factors in the precision of the check.
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
        f"{project}returns one channel for each column of the basis, on the last axis",
        f"shape {tuple(coordinates.shape)} for {_MORE} columns",
    )
    _check_linear(report, project, maps.project, inputs, normal(u.shape[0], _MORE), normal)
    basis, turn = normal(u.shape[0], _MORE), normal(_MORE, _FEWER)
    report.close(
        f"{project}is linear in the basis, column by column: project(x, A C) = project(x, A) C",
        maps.project(inputs, tf.matmul(basis, turn)),
        matmul_last(maps.project(inputs, basis), turn),
    )
    expansion = maps.expand
    if expansion is not None:
        basis = normal(v.shape[0], _MORE)
        report.attempt(
            f"{expand}takes coordinates (..., k) and a basis of shape (m, k), as V, for any k",
            lambda: expansion(coordinates, basis),
        )
        _check_linear(report, expand, expansion, coordinates, basis, normal)
        fewer = normal(v.shape[0], _FEWER)
        report.close(
            f"{expand}takes a basis as V: expand(z C, B) = expand(z, B C^T)",
            expansion(matmul_last(coordinates, turn), fewer),
            expansion(coordinates, tf.matmul(fewer, turn, transpose_b=True)),
        )

    def product(u: tf.Tensor, s: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return maps.expanded(matmul_last(maps.project(inputs, u), s), v)

    report.close(
        f"The product {name}with U, S and V equals that with the full kernel",
        product(u, s, v),
        maps.apply_whole(inputs, tf.matmul(tf.matmul(u, s), v, transpose_b=True)),
    )
    _check_gradients(report, name, product, factors, normal)


def _check_linear(
    report: Report,
    what: str,
    function: Callable,
    inputs: tf.Tensor,
    basis: tf.Tensor,
    normal: Callable,
) -> None:
    """Checks that a map `(inputs, basis)` has no constant and is linear in the inputs."""
    zeros = function(inputs, tf.zeros_like(basis))
    report.need(
        not np.any(zeros),
        f"{what}adds no constant: it is zero for a basis of zeros",
        f"values up to {float(tf.reduce_max(tf.abs(zeros))):.2g}",
    )
    if not inputs.dtype.is_floating:
        return
    others = tf.cast(normal(*inputs.shape), inputs.dtype)
    report.close(
        f"{what}is linear in its inputs",
        function(2.0 * inputs - 3.0 * others, basis),
        2.0 * function(inputs, basis) - 3.0 * function(others, basis),
    )


def _check_gradients(
    report: Report, name: str, product: Callable, factors: Point, normal: Callable
) -> None:
    """Checks the gradients by U, S and V. The product is linear in each of them."""
    with tf.GradientTape() as tape:
        tape.watch(factors)
        outputs = product(*factors)
        weights = normal(*outputs.shape)
        total = tf.reduce_sum(weights * outputs)
    gradients = tape.gradient(total, factors)
    for letter, factor, gradient in zip(factors._fields, factors, gradients):
        change = normal(*factor.shape)
        moved = product(*factors._replace(**{letter: change}))
        rule = f"The product {name}has a gradient by {letter}"
        if report.check(gradient is not None, rule, "None"):
            report.close(
                f"The gradient by {letter} is correct",
                tf.reduce_sum(tf.convert_to_tensor(gradient) * change),
                tf.reduce_sum(weights * moved),
            )


def _normal(rng: np.random.Generator, dtype: tf.DType) -> Callable[..., tf.Tensor]:
    return lambda *shape: tf.cast(rng.standard_normal(shape), dtype)
