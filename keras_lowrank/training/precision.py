"""The precision of matrix products that the integrators need."""

import warnings

import tensorflow as tf


def require_whole_products() -> None:
    """Switches TensorFloat-32 off, with a warning, where a GPU would use it.

    GPUs of compute capability 8.0 or above round the entries of a float32 product to 10 bits.
    Networks tolerate that. Bases do not: they would be orthonormal to 1e-3, and 1e-5 is needed.
    """
    capable = any(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0)
        for gpu in tf.config.list_physical_devices("GPU")
    )
    if capable and tf.config.experimental.tensor_float_32_execution_enabled():
        tf.config.experimental.enable_tensor_float_32_execution(False)
        warnings.warn(
            "TensorFloat-32 rounds products to 10 bits, too few for orthonormal bases, and was "
            "switched off (`tf.config.experimental.enable_tensor_float_32_execution`). For the "
            'speed of tensor cores use `dtype="mixed_bfloat16"`, which keeps the factors in '
            "float32.",
            stacklevel=3,
        )
