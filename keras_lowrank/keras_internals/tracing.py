"""Private parts of TensorFlow's tracing, which Keras stands on."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context, record

__all__ = ["NOT_OPTIMIZED", "calls_not_optimized", "is_recorded"]

# The first attribute keeps a function out of line. With the second, TensorFlow takes the function
# for one of tf.data and does not optimise it together with its callers.
NOT_OPTIMIZED: dict[str, Any] = {"_noinline": True, "_tf_data_function": True}


def is_recorded() -> bool:
    """Whether a tape records the present computation.

    It does not in a forward pass that will be recomputed: `tf.recompute_grad`, which
    `keras.RematScope` uses, can be recognised in no other way.
    """
    return record.could_possibly_record()


@contextlib.contextmanager
def calls_not_optimized() -> Iterator[None]:
    """While open, traced functions called in a graph stay as they were traced.

    `tf.config.optimizer` would switch the optimisation off for the whole process.
    """
    present = context.context()
    before = present.function_call_options
    rewriting = rewriter_config_pb2.RewriterConfig(disable_meta_optimizer=True)
    options = config_pb2.GraphOptions(rewrite_options=rewriting)
    config = config_pb2.ConfigProto(allow_soft_placement=True, graph_options=options)
    present.function_call_options = context.FunctionCallOptions(config_proto=config)
    try:
        yield
    finally:
        present.function_call_options = before
