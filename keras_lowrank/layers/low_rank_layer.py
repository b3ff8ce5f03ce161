"""What every low-rank layer is: factors, rank arguments, bias and activation around `project`."""

import itertools
import math

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.kernels.kernel_maps import KernelMaps
from keras_lowrank.kernels.kernel_override import low_rank_apply, whole_matrix
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.layers.arguments import (
    NO_LORA,
    QUANTIZE,
    check_ranks,
    check_regularizer,
    refuse,
)
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.initial_factors import initial_factors
from keras_lowrank.layers.kernel_penalty import KernelPenalty
from keras_lowrank.manifold.factors import Factors, RankVariable
from keras_lowrank.ranks.truncation import Policy, get_truncation

# The share of the weights that `rank=None` leaves, and the directions that it leaves at least.
_SHARE, _LEAST = 0.4, 16


class AcrossRanks:
    """Methods of Keras that compare whole shapes: goes before the Keras class in the bases."""

    def set_weights(self, weights):
        """Sets all weights from a list of arrays; ranks follow the arrays.

        The optimizer's momentum of low-rank layers starts anew, as after `load_weights`.
        """
        set_weights(self, weights)

    def stateless_call(self, trainable_variables, non_trainable_variables, *args, **kwargs):
        given = [trainable_variables, non_trainable_variables]
        # As values of a shape that is known: that of the variable is open.
        given = [[_read(v) for v in variables] for variables in given]
        return super().stateless_call(*given, *args, **kwargs)


class LowRankLayer(AcrossRanks, CompositeInputs, keras.layers.Layer):
    r"""Base of the layers `y = activation(project(x, U) S V^T + b)`.

    A subclass names the Keras layer that it replaces, calls `build_factors` in `build`, and
    implements `project`, which is all that a layer type is; or `expand` too, a method
    `(coordinates, basis) -> outputs`, linear in both, in place of the product with `V^T`. In a
    `LowRankModel` the factors are trained by its integrator; in any other model they are ordinary
    weights with true gradients. Sparse and ragged tensors are refused, but for those that a class
    names in its tuple `takes`. `diagnostics.check_layer` tests a layer type.

    Args:
        rank: int or None, the rank to start with, `1 <= rank <= min(n, m)` for an n x m kernel.
            None takes the largest rank that leaves 40% of the weights, `r (n + m) <= 0.4 n m`,
            where a step takes no longer than with the kernel; of a small one up to 16 directions,
            if U, S and V are then no more numbers than it. Ranks do not grow beyond it.
        min_rank: int, the least rank that training may leave. Defaults to 1.
        max_rank: int or None, the largest. None is `min(n, m)`.
        truncation: `Truncation`, float (a relative tolerance) or None, the layer's own rule for
            its rank. None takes the model's.
        activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
        bias_regularizer, activity_regularizer, bias_constraint: as in the Keras layer. The
            kernel initializer is read as `initial_factors` says; the kernel regularizer must be
            L2, which acts on `||W||_F` without forming W.
        kernel_constraint, lora_rank, lora_alpha, quantization_config: must be None, with an
            error that says why.

    Raises:
        ValueError: an argument outside its range.

    Example, a layer of your own, a dense one with a scale for its outputs:

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

    # What the weight is called in Keras, and its layer where that has another name there.
    replaces, named_in_keras = "kernel", None

    # Whether a rank above min(n, m) means min(n, m): where one number is for several kernels.
    caps_rank = False

    # Whether the matrix is added to a frozen kernel, as the delta of an adapter is.
    beside_kernel = False

    # A method of a layer type whose outputs are more than a product of coordinates with `V^T`.
    expand = None

    def __init__(
        self,
        *,
        rank=None,
        min_rank=1,
        max_rank=None,
        truncation=None,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        lora_rank=None,
        lora_alpha=None,
        quantization_config=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.dtype_policy.quantization_mode is not None:
            raise ValueError(
                f"The `dtype` of a low-rank layer must be a policy for floats: {QUANTIZE}. "
                f"Received: dtype={self.dtype_policy.name!r}"
            )
        rank, min_rank, max_rank = check_ranks(rank, min_rank, max_rank)
        refuse(
            kernel_constraint,
            "kernel_constraint",
            "a constraint acts on the entries of a kernel that is never formed",
        )
        for name, value in (("lora_rank", lora_rank), ("lora_alpha", lora_alpha)):
            refuse(value, name, NO_LORA)
        refuse(quantization_config, "quantization_config", QUANTIZE)
        self._rank = rank
        self.min_rank = min_rank
        self.max_rank = max_rank
        self.truncation = None if truncation is None else get_truncation(truncation)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = check_regularizer(keras.regularizers.get(kernel_regularizer))
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        # A change of rank would compile again under XLA, every time; the model knows if none comes.
        self.supports_jit = False

    def project(self, inputs, basis):
        """Applies the matrix `basis`, shape `(n, k)`, to the inputs. Linear in both.

        Returns:
            Tensor of shape `(..., k)`, channels last.
        """
        # Abstract: a layer type is its projection, and there is none to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `project`.")

    @property
    def kernel_maps(self):
        """The `KernelMaps` of the layer's matrix."""
        return KernelMaps(self.project, self.expand)

    def build_factors(self, kernel_shape, matricization=None, bias_shape=None, fans=None):
        """Makes U, S, V and the bias for a kernel of the shape that Keras would give it.

        Args:
            kernel_shape: tuple of int.
            matricization: `Matricization` of the kernel; None makes its last axis the columns.
            bias_shape: tuple of int, `(m,)` by default.
            fans: as in `initial_factors`.
        """
        if None in kernel_shape:
            raise ValueError(
                f"The shape of the kernel of layer {self.name!r} must be known when it is built. "
                f"Received: kernel_shape={tuple(kernel_shape)}, where None is unknown"
            )
        self.kernel_shape = tuple(kernel_shape)
        self.matricization = matricization or Matricization.of_last_axis(self.kernel_shape)
        n, m = self.matricization.shape
        rank = self._starting_rank(n, m)
        # Under mixed precision the factors stay in float32: QR and SVD need it.
        dtype = "float64" if self.variable_dtype == "float64" else "float32"
        initializers = initial_factors(self.kernel_initializer, self.matricization, rank, fans)
        self.factors = Factors(initializers, n, m, rank, dtype)
        self.U, self.S, self.V = self.factors.variables
        for variable in self.factors.variables:
            variable.trainable = self.trainable  # the layer may be frozen before it is built
        if self.kernel_regularizer is not None:
            self.S.regularizer = KernelPenalty(self.kernel_regularizer.l2, self.factors)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=bias_shape or (m,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def apply_kernel(self, inputs):
        """`project(inputs, U) S V^T`, or what the present step has put in its place."""
        return low_rank_apply(self.kernel_maps, self.factors, inputs, self.compute_dtype)

    def call(self, inputs):
        outputs = self.apply_kernel(inputs)
        if self.bias is not None:
            outputs = keras.ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    @property
    def kernel(self):
        """The kernel `U S V^T`, formed for a reader. No training or export step reads it."""
        return self.matricization.kernel(whole_matrix(self.factors))

    @property
    def rank(self):
        """The present rank, an int; before the layer is built, the `rank` that was asked for.

        `get_config()["rank"]` stays what was asked for. Outside of traced functions only.
        """
        return self.factors.rank if self.built else self._rank

    @property
    def weight_path(self):
        """What the path of the weight is in Keras, such as `dense/kernel`; once built."""
        # A layer whose factors were made outside of `build` has no scope.
        *scope, name = self.factors.U.path.split("/")[:-1] or [self.name]
        return "/".join(filter(None, (*scope, self.named_in_keras or name, self.replaces)))

    @property
    def policy(self):
        """The layer's bounds and its own truncation (None where it has none)."""
        grown = self._starting_rank(self.factors.n, self.factors.m) if self._rank is None else None
        return Policy(self.truncation, self.min_rank, self.max_rank, grown)

    def enable_lora(self, rank, *args, **kwargs):
        """Raises ValueError: who adds LoRA to all layers of a model must hear of this one."""
        raise ValueError(
            "A low-rank layer cannot have LoRA: it is trained at its own rank already. Add LoRA to "
            f"plain layers, before `from_keras`. Received: rank={rank} for layer {self.name!r}"
        )

    def load_own_variables(self, store):
        # Checked together first: three shapes that do not fit must not leave two of them loaded.
        if self.built and len(store.keys()) >= 3:
            self.factors.check_shapes(*(tuple(store[str(index)].shape) for index in range(3)))
        super().load_own_variables(store)

    def get_config(self):
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

    def _starting_rank(self, n, m):
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
        # Of small kernels as much as U, S and V hold in their place: the largest r with
        # r (n + m + r) <= n m.
        even = int((math.sqrt((n + m) ** 2 + 4 * n * m) - (n + m)) / 2)
        start = max(int(_SHARE * n * m / (n + m)), min(even, _LEAST))
        return min(max(start, self.min_rank), self.max_rank or largest)


def find_low_rank_layers(model):
    """Returns `{path: layer}` of all low-rank layers inside `model`, in order of attachment.

    A path is the names of the layers that hold it and its own, joined by "/", without the name of
    `model` itself, as in `LowRankModel.ranks`. A layer that is held in several places appears once.

    Args:
        model: Keras model or layer.

    Returns:
        Dict from str to `LowRankLayer`, built or not.

    Example:

    >>> model = keras.Sequential([LowRankDense(8, rank=2, name="low"), keras.layers.Dense(1)])
    >>> [(path, layer.rank) for path, layer in find_low_rank_layers(model).items()]
    [('low', 2)]
    """
    layers = layers_by_path(model).items()
    return {path: layer for path, layer in layers if isinstance(layer, LowRankLayer)}


def layers_by_path(model):
    """All layers inside `model`, with paths as in `find_low_rank_layers`."""
    found = {}

    def search(parent, prefix):
        for layer in keras_internals.sublayers(parent):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            path = prefix + layer.name
            if path in found:  # names need not be unique in a subclassed model
                path = next(p for i in itertools.count(1) if (p := f"{path}_{i}") not in found)
            found[path] = layer
            search(layer, path + "/")

    seen = set()
    search(model, "")
    return found


def find_built_layers(model):
    """Returns those of `find_low_rank_layers` that have factors: the model has called them."""
    return {path: layer for path, layer in find_low_rank_layers(model).items() if layer.built}


def _read(variable):
    return tf.convert_to_tensor(variable.value) if isinstance(variable, RankVariable) else variable


def set_weights(layer, weights):
    """`layer.set_weights(weights)` across ranks: sizes other than the rank must fit.

    Low-rank layers and models have it as their method. It is also for the layers of Keras that hold
    them (`Bidirectional`, `TimeDistributed`, a `Sequential`), whose method compares whole shapes,
    and so takes weights of the present ranks alone. All values are checked before the first is
    changed.

    Args:
        layer: Keras layer or model.
        weights: list of arrays, as from `layer.get_weights()`.

    Raises:
        ValueError: another number of arrays, or a size other than a rank that does not fit.

    Example:

    >>> layers = [keras.layers.Bidirectional(LowRankLSTM(8, rank=rank)) for rank in (2, 3)]
    >>> outputs = [layer(np.ones((1, 5, 8))) for layer in layers]
    >>> set_weights(layers[0], layers[1].get_weights())
    >>> layers[0].forward_layer.rank
    {'kernel': 3, 'recurrent_kernel': 3}
    """
    variables = layer.weights
    if len(variables) != len(weights):
        raise ValueError(
            f"`set_weights` of {layer.name!r} needs {len(variables)} arrays, one for each of its "
            f"weights. Received: {len(weights)} arrays"
        )
    # By identity: layers of equal names, in two models inside this one, have equal paths.
    shapes = {id(variable): tuple(value.shape) for variable, value in zip(variables, weights)}
    owners = {id(v): one.factors for one in _with_self(layer) for v in one.factors.variables}
    checked = set()
    for variable, value in zip(variables, weights):
        factors = owners.get(id(variable))
        if factors is None:
            if tuple(variable.shape) != tuple(value.shape):
                raise ValueError(
                    f"The weight {variable.path!r} has the shape {tuple(variable.shape)}. "
                    f"Received: an array of shape {tuple(value.shape)}"
                )
        elif factors not in checked:
            checked.add(factors)
            factors.check_shapes(*(shapes[id(v)] for v in factors.variables))
    for variable, value in zip(variables, weights):
        variable.assign(value)


def _with_self(layer):
    own = [layer] if isinstance(layer, LowRankLayer) and layer.built else []
    return [*find_built_layers(layer).values(), *own]
