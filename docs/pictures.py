"""Draws the pictures of "How it works", with matrices that the package has computed.

    python docs/pictures.py FOLDER

Lines and text have colours that are readable on a light page and on a dark one.
"""

import pathlib
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.patches import Rectangle
from mpl_toolkits.mplot3d import proj3d
from sklearn.datasets import load_digits

from keras_lowrank import (
    LowRankDense,
    LowRankModel,
    Point,
    Policy,
    TangentVector,
    Tolerance,
    find_low_rank_layers,
    integrators,
)

INK, BLUE, ORANGE, GREEN = "#7d8590", "#3b82f6", "#ea7a1a", "#22a55e"
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "font.size": 11,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "pictures",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def tangent_vector(gradient, point):
    """The gradient's projection onto the tangent space, as a step computes it."""
    return TangentVector(
        gradient @ point.V,
        tf.transpose(point.U) @ gradient @ point.V,
        tf.transpose(gradient) @ point.U,
    )


def matrix(point):
    return (point.U @ point.S @ tf.transpose(point.V)).numpy()


def manifold():
    """The symmetric 2 x 2 matrices `[[a, b], [b, c]]` of rank one are the cone `a c = b^2`.

    Drawn in the coordinates `(a - c, 2 b, a + c)`, in which lengths are those of the matrices.
    """

    def place(w):
        return np.array([w[0, 0] - w[1, 1], 2 * w[0, 1], w[0, 0] + w[1, 1]])

    def symmetric(x, y, z):
        return np.array([[z + x, y], [y, z - x]]) / 2

    u = tf.constant([[1.0], [0.0]], tf.float64)
    start = Point(u, tf.constant([[1.1]], tf.float64), u)
    # The tangent plane has the directions to 0 and around the cone; the rest of G is normal to it.
    along, around, inward = np.array([[1, 0, 1], [0, 1, 0], [-1, 0, 1]]) / np.sqrt([[2], [1], [2]])
    gradient = tf.constant(symmetric(*(-0.15 * along - 1.45 * around - 0.8 * inward)))
    direction = tangent_vector(gradient, start)
    k, s, l = direction
    projected = (k @ tf.transpose(u) + u @ tf.transpose(l) - u @ s @ tf.transpose(u)).numpy()
    step = integrators.Parallel(adapt_every=1).move(
        start, direction, tf.constant(1.0, tf.float64), Policy(Tolerance(0.0), max_rank=1)
    )
    w, free = place(matrix(start)), place(matrix(start) - gradient.numpy())
    moved, end = place(matrix(start) - projected), place(matrix(step))
    assert abs((moved - w) @ inward) < 1e-12 and np.isclose(end[2], np.hypot(end[0], end[1]))

    figure = plt.figure(figsize=(7.6, 3.7))
    ax = figure.add_axes((-0.12, -0.42, 1.04, 1.76), projection="3d", computed_zorder=False)
    ax.set_axis_off()
    turn, height = np.meshgrid(np.linspace(0, 2 * np.pi, 49), np.linspace(0.0, 1.9, 11))
    cone = (height * np.cos(turn), height * np.sin(turn), height)
    look = {"shade": False, "linewidth": 0.4}
    ax.plot_surface(*cone, color=BLUE, alpha=0.13, edgecolor=BLUE, zorder=1, **look)
    a, b = np.meshgrid([-0.7, 1.1], [-0.7, 1.9])
    plane = w[:, None, None] + along[:, None, None] * a + around[:, None, None] * b
    ax.plot_surface(*plane, color=ORANGE, alpha=0.2, edgecolor=ORANGE, zorder=2, **look)

    def line(tail, head, color, style="-"):
        ax.plot(*np.stack([tail, head], axis=1), color=color, lw=2.2, ls=style, zorder=3)
        ax.scatter(*head, color=color, s=28, depthshade=False, zorder=4)

    line(w, free, INK)
    line(free, moved, INK, ":")
    line(w, moved, ORANGE)
    line(moved, end, GREEN)
    ax.scatter(*w, color=BLUE, s=36, depthshade=False, zorder=5)
    ax.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), zlim=(0.0, 2.0))
    ax.view_init(elev=16, azim=-38)
    ax.set_box_aspect((1, 1, 0.65))
    figure.canvas.draw()
    for at, text, color, shift in (
        (w, "$W$", BLUE, (-18, -4)),
        (free, "$W - h\\,G$", INK, (-28, 10)),
        (moved, "$W - h\\,P(G)$", ORANGE, (8, -6)),
        (end, "truncated: the next $W$", GREEN, (22, 6)),
        (plane[:, 1, 0], "tangent space at $W$", ORANGE, (-10, -18)),
        (np.zeros(3), "matrices of rank 1", BLUE, (-160, 42)),
    ):
        x, y, _ = proj3d.proj_transform(*at, ax.get_proj())
        ax.annotate(text, (x, y), shift, textcoords="offset points", color=color, fontsize=12)
    return figure


def phases():
    """The matrices of one step: two bases, their augmentation, the core, and its truncation."""
    random = np.random.default_rng(4)
    n, m, r = 12, 9, 3
    u, v = (np.linalg.qr(random.standard_normal((k, r)))[0] for k in (n, m))
    start = Point(*map(tf.constant, (u, np.diag([3.0, 1.6, 0.7]), v)))
    target = random.standard_normal((n, 4)) @ random.standard_normal((4, m))
    gradient = matrix(start) - tf.constant(target)
    augmented = integrators.augment(start, tangent_vector(gradient, start))
    wide_u = np.hstack([u, augmented.left.formed(start.U).numpy()])
    wide_v = np.hstack([v, augmented.right.formed(start.V).numpy()])
    normal = tf.constant(wide_u[:, r:].T @ gradient.numpy() @ wide_v[:, r:])
    core = integrators.moved_core(augmented, tf.constant(0.4, tf.float64), normal)
    end = integrators.truncate(augmented, core, Policy(Tolerance(0.15)))
    before = np.pad(start.S.numpy(), (0, r))
    stages = [
        ("before", u, start.S.numpy(), v, r),
        ("K and L\nwiden the bases", wide_u, before, wide_v, r),
        ("S moves\nin them", wide_u, core.numpy(), wide_v, r),
        (f"truncated\nto rank {len(end.S)}", *(part.numpy() for part in end), 2 * r),
    ]
    figure, ax = plt.subplots(figsize=(9.2, 2.1), layout="constrained")
    ax.set_axis_off()

    def draw(values, left, name, old_rows, old_columns):
        height, width = values.shape
        strength = np.abs(values) / np.abs(values).max()
        for i, j in np.ndindex(height, width):
            color = BLUE if i < old_rows and j < old_columns else GREEN
            cell = (left + j, -i - 1)
            ax.add_patch(Rectangle(cell, 1, 1, fc=color, alpha=0.1 + 0.8 * strength[i, j]))
        ax.add_patch(Rectangle((left, -height), width, height, fc="none", ec=INK))
        ax.text(left + width / 2, -height - 1.3, name, ha="center", va="center", fontsize=12)

    left = 0
    for title, one, middle, other, old in stages:
        rank = len(middle)
        ax.text(left, 0.8, title, fontsize=12)
        draw(one, left, "$U$", n, old)
        draw(middle, left + rank + 1, "$S$", old, old)
        draw(other.T, left + 2 * rank + 2, "$V^T$", old, m)
        left += 2 * rank + m + 6
    ax.set(xlim=(-0.5, left - 3), ylim=(-n - 2, 4), aspect="equal")
    return figure


def truncation():
    """The singular values of a trained layer, and what a tolerance leaves of them."""
    keras.utils.set_random_seed(0)
    digits = load_digits()
    inputs = keras.Input((64,))
    hidden = LowRankDense(256, rank=48, activation="relu")(inputs)
    model = LowRankModel(inputs, keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.05),
        "sparse_categorical_crossentropy",
        integrator="parallel",
        truncation=0.0,
    )
    model.fit(digits.data.astype("float32") / 16, digits.target, epochs=8, verbose=0)
    (layer,) = find_low_rank_layers(model).values()
    values = layer.factors.singular_values()
    tails = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))
    tolerance = 0.2
    rule = Policy(Tolerance(tolerance))
    rank = int(rule.rank(tf.constant(values), tf.constant(len(values))))
    assert tails[rank] <= tolerance * tails[0] < tails[rank - 1]

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.3), layout="constrained")
    index = np.arange(1, len(values) + 1)
    left.bar(index[:rank], values[:rank], color=BLUE, label=f"kept: rank {rank}")
    left.bar(index[rank:], values[rank:], color=ORANGE, label="cut")
    left.set(xlabel="index", ylabel="singular value")
    left.legend(frameon=False)
    right.plot(np.arange(len(tails)), tails / tails[0], color=BLUE)
    right.axhline(tolerance, color=ORANGE, ls="--", label=f"tolerance {tolerance}")
    right.plot(rank, tails[rank] / tails[0], "o", color=GREEN, label=f"the least within it: {rank}")
    right.set(xlabel="rank r", ylabel="norm of the tail / norm of all", ylim=(0, 1.02))
    right.legend(frameon=False)
    return figure


PICTURES = (manifold, phases, truncation)


def draw(folder):
    """Writes all pictures into a folder."""
    with plt.rc_context(STYLE), plt.ioff():
        for picture in PICTURES:
            figure = picture()
            path = pathlib.Path(folder, f"{picture.__name__}.svg")
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    draw(sys.argv[1])
