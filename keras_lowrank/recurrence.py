"""How a recurrent layer applies its low-rank matrices: one product for all steps of its loop."""

import tensorflow as tf

from keras_lowrank.form import PLAIN
from keras_lowrank.linalg import matmul_last
from keras_lowrank.substitution import Product, substitutes
from keras_lowrank.tangent import TangentProbe, first_order_only


def low_rank_recurrence(matrices, loop, inputs, dtype):
    r"""Runs a loop that multiplies with the same matrices in each of its steps.

    The loop computes sums `s_t = h_t [W_1, ..., W_k] + a_t`, one a step, and whatever follows from
    them. The gradients of `s_t` and of `a_t` are the same `d_t`. So the loop is differentiated by
    its inputs alone, and the gradients of the matrices are those of one application to all h_t at
    once: a product of (batch x steps) rows after the loop in place of a small one in each step,
    and, out of the loop, the h and d that `coupling` asks for.

    Args:
        matrices: list of the `Factors` of W_1, ..., W_k, all with the same n.
        loop: callable `(multiply, keep, *inputs) -> (results, h)`. `multiply(h_t)` is the product;
            `results` is a list of float tensors; with `keep`, `h` holds all h_t, in the shape and
            order in which `inputs[0]` holds the a_t. For a step that counts for nothing, because
            it is masked, it may hold anything finite.
        inputs: list of float tensors, first the a_t: all that may have a gradient.
        dtype: str, the type to compute in.

    Returns:
        The results.
    """
    table = substitutes()
    kernels = [table.get(factors) or Product.of(factors.read()) for factors in matrices]
    if not all(isinstance(kernel, TangentProbe) for kernel in kernels):
        kernels = [kernel.folded(dtype) for kernel in kernels]

        def multiply(h):
            return tf.concat([kernel.apply(PLAIN, h, dtype) for kernel in kernels], -1)

        return loop(multiply, False, *inputs)[0]

    count = len(inputs)

    @tf.custom_gradient
    def run(*tensors):
        inputs, parts = tensors[:count], tensors[count:]
        parts = [parts[at : at + 3] for at in range(0, len(parts), 3)]
        pairs = [(tf.matmul(u, core), v) for u, core, v in parts]

        def multiply(h):
            # Stopped inside the loop: outside, each step would still add up a gradient.
            fixed = [map(tf.stop_gradient, pair) for pair in pairs]
            sides = [matmul_last(matmul_last(h, a), b, transpose=True) for a, b in fixed]
            return tf.concat(sides, -1)

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            results, h = loop(multiply, True, *inputs)

        def gradient(*upstream):
            d, *others = tape.gradient(
                results, inputs, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            blocks = tf.split(d, [v.shape[0] for _, _, v in parts], axis=-1)
            found = [
                part
                for probe, (u, _, v), block in zip(kernels, parts, blocks)
                for part in probe.gradients_at(h, block, u, v)
            ]
            return [*map(first_order_only, (d, *others)), *found]

        return results, gradient

    return run(*inputs, *(part for probe in kernels for part in probe.in_type(dtype)))
