"""The arguments that every low-rank layer takes, and the config that holds them."""

from typing import Any, NoReturn

import keras

from keras_lowrank.layers.arguments import (
    NO_LORA,
    QUANTIZE,
    Activation,
    Constraint,
    Initializer,
    Regularizer,
    TruncationLike,
    check_ranks,
    check_regularizer,
    refuse,
)
from keras_lowrank.ranks.truncation import Truncation, get_truncation


class LowRankArguments(keras.layers.Layer):
    """A layer with the arguments of `LowRankLayer`, which are described there."""

    min_rank: int
    max_rank: int | None
    truncation: Truncation | None

    def __init__(
        self,
        *,
        rank: int | None = None,
        min_rank: int = 1,
        max_rank: int | None = None,
        truncation: TruncationLike = None,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        kernel_constraint: None = None,
        bias_constraint: Constraint = None,
        lora_rank: None = None,
        lora_alpha: None = None,
        quantization_config: None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.dtype_policy.quantization_mode is not None:
            raise ValueError(
                f"The `dtype` of a low-rank layer must be a policy for floats: {QUANTIZE}. "
                f"Received: dtype={self.dtype_policy.name!r}"
            )
        self._rank, self.min_rank, self.max_rank = check_ranks(rank, min_rank, max_rank)
        refuse(
            kernel_constraint,
            "kernel_constraint",
            "a constraint acts on the entries of a kernel that is never formed",
        )
        refuse(lora_rank, "lora_rank", NO_LORA)
        refuse(lora_alpha, "lora_alpha", NO_LORA)
        refuse(quantization_config, "quantization_config", QUANTIZE)
        self.truncation = None if truncation is None else get_truncation(truncation)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = check_regularizer(keras.regularizers.get(kernel_regularizer))
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        # XLA would compile again at every change of rank. The model allows it if ranks are fixed.
        self.supports_jit = False

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            rank=self._rank,
            min_rank=self.min_rank,
            max_rank=self.max_rank,
            truncation=keras.saving.serialize_keras_object(self.truncation),
            activation=keras.activations.serialize(self.activation),
            use_bias=self.use_bias,
            kernel_initializer=keras.initializers.serialize(self.kernel_initializer),
            bias_initializer=keras.initializers.serialize(self.bias_initializer),
            kernel_regularizer=keras.regularizers.serialize(self.kernel_regularizer),
            bias_regularizer=keras.regularizers.serialize(self.bias_regularizer),
            activity_regularizer=keras.regularizers.serialize(self.activity_regularizer),
            bias_constraint=keras.constraints.serialize(self.bias_constraint),
        )
        return config

    def enable_lora(self, rank: int, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ValueError, so that a loop that adds LoRA to all layers does not miss this one."""
        raise ValueError(
            "A low-rank layer cannot have LoRA: it is trained at its own rank already. Add LoRA to "
            f"plain layers, before `from_keras`. Received: rank={rank} for layer {self.name!r}"
        )
