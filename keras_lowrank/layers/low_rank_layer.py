"""The base of every low-rank layer: factors, rank arguments, and all around `project`."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.kernel_override import low_rank_apply, whole_matrix
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.layers.across_ranks import AcrossRanks
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.initial_factors import initial_factors
from keras_lowrank.layers.kernel_penalty import KernelPenalty
from keras_lowrank.layers.low_rank_arguments import LowRankArguments
from keras_lowrank.layers.starting_rank import default_rank
from keras_lowrank.manifold.factors import Factors, RankVariable
from keras_lowrank.ranks.policy import Policy


class LowRankLayer(AcrossRanks, CompositeInputs, LowRankArguments):
    r"""Base of the layers `y = activation(project(x, U) S V^T + b)`.

    To write a layer type, subclass this class, call `build_factors` in `build`, and implement
    `project`. Define `expand` too where the outputs are more than the product of the coordinates
    with `V^T`. `diagnostics.check_layer` tests the result.

    In a `LowRankModel` the integrator trains the factors. In any other model they are ordinary
    weights with true gradients. Sparse and ragged tensors are refused, unless a class names them
    in its tuple `takes`.

    Args:
        rank: int or None, the rank to start with, `1 <= rank <= min(n, m)` for an n x m kernel.
            None takes the largest rank that leaves 40% of the weights, `r (n + m) <= 0.4 n m`, and
            up to 16 for a small kernel. The rank does not grow beyond that.
        min_rank: int, the smallest rank in training. Defaults to 1.
        max_rank: int or None, the largest rank in training. None is `min(n, m)`.
        truncation: `Truncation`, float (a relative tolerance) or None, the layer's own rule for
            its rank. None takes the model's.
        activation: as in the Keras layer.
        use_bias: as in the Keras layer.
        kernel_initializer: as in the Keras layer. A random one sets `E ||W||_F^2`, with random
            orthonormal U and V. Any other is called once and its kernel cut to rank r (SVD).
        bias_initializer: as in the Keras layer.
        kernel_regularizer: L2 or None. It acts on `||W||_F` without forming W.
        bias_regularizer: as in the Keras layer.
        kernel_constraint: must be None: it would act on a kernel that is never formed.
        bias_constraint: as in the Keras layer.
        lora_rank: must be None: the layer is low-rank already.
        lora_alpha: must be None, for the same reason.
        quantization_config: must be None: quantize the exported file.
        **kwargs: `activity_regularizer`, `name`, `dtype` and `trainable`, as in Keras.

    Attributes:
        U: `keras.Variable` of shape `(n, r)`, once built.
        S: `keras.Variable` of shape `(r, r)`, once built.
        V: `keras.Variable` of shape `(m, r)`, once built.
        bias: `keras.Variable` or None, once built.
        factors: the `Factors` that hold U, S and V, once built.
        kernel_shape: tuple of int, the shape of the kernel in Keras, once built.
        matricization: the `Matricization` of the kernel, once built.

    Raises:
        ValueError: an argument outside its range.

    Example, a dense layer that scales its outputs:

    >>> @keras.saving.register_keras_serializable("my_package")
    ... class Scaled(LowRankLayer):
    ...     def __init__(self, units, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.units = units
    ...     def build(self, input_shape):
    ...         self.build_factors((input_shape[-1], self.units))
    ...         self.scale = self.add_weight(name="scale", shape=(self.units,))
    ...     def project(self, inputs, basis):
    ...         return kernels.matmul_last(inputs, basis)
    ...     def call(self, inputs):
    ...         return self.scale * super().call(inputs)
    ...     def get_config(self):
    ...         return {**super().get_config(), "units": self.units}
    >>> inputs = keras.Input((5, 8))
    >>> model = LowRankModel(inputs, Scaled(4, rank=2)(inputs))
    >>> model.output_shape, model.ranks
    ((None, 5, 4), {'scaled': 2})
    """

    # The name of the kernel in Keras, and that of its layer where it differs there.
    replaces: str = "kernel"
    named_in_keras: str | None = None

    # Whether a rank above min(n, m) means min(n, m), as where one rank is for several kernels.
    caps_rank: bool = False

    # Whether the matrix is added to a frozen kernel, as the delta of an adapter is.
    beside_kernel: bool = False

    # `(coordinates, basis) -> outputs`, linear in both; None for the product with `V^T`.
    expand: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None

    U: RankVariable
    S: RankVariable
    V: RankVariable
    bias: keras.Variable | None
    factors: Factors
    kernel_shape: tuple[int, ...]
    matricization: Matricization

    def project(self, inputs: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        """Applies the matrix `basis` to the inputs. Linear in both.

        Args:
            inputs: tensor, the inputs of the layer.
            basis: tensor, shape `(n, k)`.

        Returns:
            Tensor of shape `(..., k)`, channels last.
        """
        # Abstract: each layer type has its own.
        raise NotImplementedError(f"{type(self).__name__} must implement `project`.")

    @property
    def kernel_maps(self) -> KernelMaps:
        """`KernelMaps`, how the layer multiplies with its matrix."""
        return KernelMaps(self.project, self.expand)

    def build_factors(
        self,
        kernel_shape: Sequence[int | None],
        matricization: Matricization | None = None,
        bias_shape: Sequence[int | None] | None = None,
        fans: Sequence[int] | None = None,
    ) -> None:
        """Makes U, S, V and the bias.

        Args:
            kernel_shape: tuple of int, the shape of the kernel in Keras.
            matricization: `Matricization` of the kernel; None makes its last axis the columns.
            bias_shape: tuple of int; None is `(m,)`.
            fans: `(fan_in, fan_out)` of the kernel; None takes them from its shape, as Keras does.

        Raises:
            ValueError: an unknown extent in `kernel_shape`, or a rank above `min(n, m)`.
        """
        known = tuple(extent for extent in kernel_shape if extent is not None)
        if len(known) < len(kernel_shape):
            raise ValueError(
                f"The shape of the kernel of layer {self.name!r} must be known when it is built. "
                f"Received: kernel_shape={tuple(kernel_shape)}, where None is unknown"
            )
        self.kernel_shape = known
        self.matricization = matricization or Matricization.of_last_axis(self.kernel_shape)
        n, m = self.matricization.shape
        rank = self._starting_rank(n, m)
        # In float32 under mixed precision too: QR and SVD need it.
        dtype = "float64" if self.variable_dtype == "float64" else "float32"
        initializers = initial_factors(self.kernel_initializer, self.matricization, rank, fans)
        self.factors = Factors(initializers, n, m, rank, dtype)
        self.U, self.S, self.V = self.factors.variables
        for variable in self.factors.variables:
            variable.trainable = self.trainable  # the layer may be frozen before it is built
        if self.kernel_regularizer is not None:
            self.S.regularizer = KernelPenalty(self.kernel_regularizer, self.factors)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=bias_shape or (m,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def apply_kernel(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns `project(inputs, U) S V^T`, or the product that the present step needs."""
        return low_rank_apply(self.kernel_maps, self.factors, inputs, self.compute_dtype)

    def call(self, inputs: Any) -> Any:
        outputs = self.apply_kernel(inputs)
        if self.bias is not None:
            outputs = keras.ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    @property
    def kernel(self) -> tf.Tensor:
        """The kernel `U S V^T`, formed on request. Neither training nor export reads it."""
        return self.matricization.kernel(whole_matrix(self.factors))

    @property
    def rank(self) -> int | None:
        """The present rank; before the layer is built, the argument `rank`.

        `get_config()["rank"]` is always the argument. Not for traced functions.
        """
        return self.factors.rank if self.built else self._rank

    @property
    def weight_path(self) -> str:
        """The path of the kernel in the Keras layer, such as `dense/kernel`; once built."""
        # Factors that were made outside of `build` have no scope.
        *scope, name = self.factors.U.path.split("/")[:-1] or [self.name]
        return "/".join(filter(None, (*scope, self.named_in_keras or name, self.replaces)))

    @property
    def policy(self) -> Policy:
        """`Policy`, the layer's bounds and its own truncation (None where it has none)."""
        grown = self._starting_rank(self.factors.n, self.factors.m) if self._rank is None else None
        truncation: Any = self.truncation  # the model puts its own in place of None
        return Policy(truncation, self.min_rank, self.max_rank, grown)

    def load_own_variables(self, store: Any) -> None:
        # All three are checked first, so that an error does not leave some of them loaded.
        if self.built and len(store.keys()) >= 3:
            self.factors.check_shapes(*(tuple(store[str(index)].shape) for index in range(3)))
        super().load_own_variables(store)

    def _starting_rank(self, n: int, m: int) -> int:
        largest = min(n, m)
        rank = self._rank
        if rank is not None and self.caps_rank:
            rank = min(rank, largest)
        if max(rank or 1, self.min_rank) > largest:
            raise ValueError(
                f"`rank` and `min_rank` of layer {self.name!r} must be at most min(n, m) = "
                f"{largest} for its {n} x {m} kernel. Received: rank={self._rank}, "
                f"min_rank={self.min_rank}"
            )
        if rank is not None:
            return rank
        return min(max(default_rank(n, m), self.min_rank), self.max_rank or largest)
