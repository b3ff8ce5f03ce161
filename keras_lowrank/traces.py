"""Less for TensorFlow to trace and to optimise before the first step.

A step of one matrix is a thousand small operations, most of them in branches that are seldom taken.
TensorFlow traces all of it for every layer anew, and optimises it as one graph. So networks of many
layers would wait long for their first step: these functions take the repetition out of the trace,
and the branches out of the graph. They change nothing in what is computed.
"""

import tensorflow as tf

from keras_lowrank import row_slices


def rare(branch):
    """Returns a branch of a `tf.cond` that stays a function of its own, prepared when first taken.

    TensorFlow puts the operations of all other branches and functions in line.

    Args:
        branch: callable without arguments.
    """
    if tf.executing_eagerly():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def shared(move):
    """Returns `move`, traced once for all matrices of a step that it treats alike.

    Args:
        move: callable `(factors, direction, policy) -> Moved`. All else that it depends on has to
            be the same for all matrices.
    """
    traces = {}

    def moved(factors, direction, policy):
        # Slices have to know the number of rows, which is that of one matrix.
        if tf.executing_eagerly() or row_slices.is_slices(direction.K):
            return move(factors, direction, policy)
        kind, tensors = policy.parts()
        arguments = factors, direction, tensors
        flat = tf.nest.flatten(arguments)
        key = kind, tuple(tensor.dtype for tensor in flat)
        if key not in traces:

            def of_tensors(*flat):
                factors, direction, tensors = tf.nest.pack_sequence_as(arguments, flat)
                return move(factors, direction, policy.of_parts(tensors))

            specs = [tf.TensorSpec([None] * len(tensor.shape), tensor.dtype) for tensor in flat]
            traces[key] = tf.function(of_tensors, autograph=False).get_concrete_function(*specs)
        result = traces[key](*flat)
        result.factors.U.set_shape([factors.U.shape[0], None])
        result.factors.V.set_shape([factors.V.shape[0], None])
        return result

    return moved
