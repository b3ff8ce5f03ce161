"""What LSTM and GRU share: the matrices of their gates, and the loop around them."""

import functools

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.kernels.kernel_override import folded
from keras_lowrank.layers.arguments import by_name, check_regularizer, positive_integer, refuse
from keras_lowrank.layers.composite import CompositeInputs
from keras_lowrank.layers.dense import LowRankDense
from keras_lowrank.layers.initial_factors import kernel_variance
from keras_lowrank.layers.several_kernels import RankArguments, SeveralKernels

# What Keras calls the two kernels.
_KERNELS = ("kernel", "recurrent_kernel")


class GatedCell(SeveralKernels, CompositeInputs):
    """A Keras cell whose two kernels are low-rank: goes before the Keras cell in a class's bases.

    The kernels are `LowRankDense` layers without a bias (or Keras's, where one stays plain): one
    with the gates' columns side by side, or one for each gate. A subclass says how a step follows
    from their products.

    Args:
        units, activation, recurrent_activation, use_bias: as in the Keras cell.
        rank, min_rank, max_rank, truncation: as in `LowRankLayer`, for both kernels, or a dict with
            the keys `"kernel"` and `"recurrent_kernel"`. A kernel that a dict of ranks leaves out
            is a plain one. One rank for both is `min(n, m)` where a kernel has no more.
        stacked: bool. One matrix for all gates, or one for each. Defaults to `True`.
        **kwargs: all other arguments of the Keras cell.
    """

    keras_layer = None

    # The letters of the gates, in the order in which Keras stacks their kernels.
    gates = ""

    def __init__(
        self,
        units,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias=True,
        *args,
        rank=None,
        min_rank=1,
        max_rank=None,
        truncation=None,
        stacked=True,
        **kwargs,
    ):
        units = positive_integer("units", units)
        kwargs = dict(by_name(self.keras_layer, 4, args), **kwargs)
        for name in ("kernel", "recurrent"):
            refuse(
                kwargs.get(f"{name}_constraint"),
                f"{name}_constraint",
                "a constraint acts on the entries of a kernel that is never formed",
            )
            penalty = keras.regularizers.get(kwargs.get(f"{name}_regularizer"))
            check_regularizer(penalty, f"{name}_regularizer")
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            **kwargs,
        )
        self.rank_arguments = RankArguments(_KERNELS, rank, min_rank, max_rank, truncation)
        self.stacked = stacked
        self.kernels = self._matrices("kernel", self.kernel_regularizer)
        self.recurrent_kernels = self._matrices("recurrent_kernel", self.recurrent_regularizer)

    def build(self, input_shape):
        for layers, initializer, n in (
            (self.kernels, self.kernel_initializer, input_shape[-1]),
            (self.recurrent_kernels, self.recurrent_initializer, self.units),
        ):
            for index, layer in enumerate(layers):
                layer.kernel_initializer = self._share_of(initializer, n, index)
                layer.build((None, n))
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self._bias_shape(),
                name="bias",
                initializer=self._initial_bias,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs, states, training=False):
        return self.step(self.input_product(inputs, training), states, training)

    def input_product(self, inputs, training):
        """What the inputs of one step, or of all steps at once, give to the gates.

        Args:
            inputs: tensor, shape `(batch, n)` or `(batch, steps, n)`.
            training: bool.
        """
        outputs = _product(self.kernels, self._with_dropout(inputs, training))
        return outputs if self.bias is None else outputs + self._input_bias()

    def recurrent_product(self, h, training):
        """The product of the state before a step with the recurrent kernels."""
        if training and 0.0 < self.recurrent_dropout < 1.0:
            h = [h * mask for mask in self.get_recurrent_dropout_mask(h)]
        return _product(self.recurrent_kernels, h)

    def step(self, projected, states, training):
        """One step from the `input_product` of its inputs: `(output, new states)`."""
        states = tf.nest.flatten(states)
        added, *rest = self.summands(projected)
        return self.advance(self.recurrent_product(states[0], training) + added, *rest, *states)

    def get_config(self):
        return {**super().get_config(), "stacked": self.stacked}

    def low_rank_kernels(self):
        """The layers of the kernels that are low-rank."""
        layers = [*self.kernels, *self.recurrent_kernels]
        return [layer for layer in layers if isinstance(layer, LowRankDense)]

    def _own_bias(self):
        # Not by autocasting: a TimeDistributed calls its layer under its own policy.
        return keras.ops.cast(self.bias, self.compute_dtype)

    def _matrices(self, kernel, regularizer):
        names, width = [""], len(self.gates) * self.units
        if not self.stacked:
            names, width = [f"_{gate}" for gate in self.gates], self.units
        arguments = self.rank_arguments.of(kernel)
        make = functools.partial(LowRankDense, **arguments) if arguments else keras.layers.Dense
        layers = [
            make(
                width,
                use_bias=False,
                kernel_regularizer=regularizer,
                name=kernel + name,
                dtype=self.dtype_policy,
                trainable=self.trainable,
            )
            for name in names
        ]
        for layer in layers:  # there a weight of the cell itself
            layer.named_in_keras, layer.replaces = kernel, ""
            layer.caps_rank = self.rank_arguments.one_rank
        return layers

    def _share_of(self, initializer, n, index):
        """What draws a gate's kernel as the initializer draws its columns of all gates' kernel."""
        if self.stacked:
            return initializer
        variance = kernel_variance(initializer, (n, len(self.gates) * self.units))
        seed = getattr(initializer, "seed", None)
        if isinstance(seed, int):
            seed += 2 * index  # a matrix draws two bases, from one seed and the next
        if variance is not None:
            return keras.initializers.RandomNormal(stddev=variance**0.5, seed=seed)

        def columns(shape, dtype=None):
            whole = initializer((n, len(self.gates) * self.units), dtype=dtype)
            return keras.ops.split(whole, len(self.gates), axis=-1)[index]

        return columns

    def _with_dropout(self, inputs, training):
        """The inputs, or a list of them for each gate where each has a mask of its own."""
        if not (training and 0.0 < self.dropout < 1.0):
            return inputs
        in_sequence = inputs.shape.rank == 3
        masks = self.get_dropout_mask(inputs[:, 0] if in_sequence else inputs)
        if in_sequence:
            masks = tf.nest.map_structure(lambda mask: mask[:, None], masks)
        if isinstance(masks, list):
            return [inputs * mask for mask in masks]
        return inputs * masks


class GatedLayer(SeveralKernels, CompositeInputs):
    """A Keras recurrent layer around a `GatedCell`: goes before the Keras layer in a class's bases.

    The product with the inputs is one for the whole sequence, before the loop.

    Args:
        units, activation, recurrent_activation, use_bias: as in the Keras layer.
        use_cudnn: `"auto"` or `False`.
        **kwargs: all other arguments of the `GatedCell` and of the Keras layer.
    """

    keras_layer = cell_class = None

    def __init__(
        self,
        units,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias=True,
        *args,
        use_cudnn="auto",
        **kwargs,
    ):
        kwargs = dict(by_name(self.keras_layer, 4, args), **kwargs)
        if use_cudnn not in ("auto", False):
            raise ValueError(
                '`use_cudnn` must be "auto" or False: what cuDNN multiplies with is a whole kernel.'
                f" Received: use_cudnn={use_cudnn!r}"
            )
        cell = self.cell_class(
            units,
            activation,
            recurrent_activation,
            use_bias,
            dtype=kwargs.get("dtype"),
            trainable=kwargs.get("trainable", True),
            name=self.cell_name,
            **{name: kwargs.pop(name) for name in _OF_THE_CELL if name in kwargs},
        )
        # Past the Keras layer, which would make a cell of whole kernels.
        keras.layers.RNN.__init__(self, cell, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.use_cudnn = False  # a Bidirectional looks here, and then for whole kernels
        self.supports_jit = False

    def inner_loop(self, sequences, initial_state, mask, training=False):
        cell = self.cell
        states = tf.nest.flatten(initial_state)
        mask = tf.nest.flatten(mask)[0]
        projected = cell.input_product(sequences, training)

        def step(inputs, states):
            return cell.step(inputs, states, training)

        factors = [one.factors for one in cell.recurrent_kernels if isinstance(one, LowRankDense)]
        with folded(factors, self.compute_dtype):
            return keras_internals.rnn(
                step,
                projected,
                states,
                go_backwards=self.go_backwards,
                mask=mask,
                unroll=self.unroll,
                input_length=projected.shape[1],
                zero_output_for_mask=self.zero_output_for_mask,
                return_all_outputs=self.return_sequences,
            )

    @property
    def rank_arguments(self):
        """Those of the cell."""
        return self.cell.rank_arguments

    def low_rank_kernels(self):
        """Those of the cell."""
        return self.cell.low_rank_kernels()

    def get_config(self):
        return {**super().get_config(), "stacked": self.cell.stacked}


# What the Keras layers hand on to their cells, and what a `GatedCell` has beside it.
_OF_THE_CELL = (
    "kernel_initializer",
    "recurrent_initializer",
    "bias_initializer",
    "unit_forget_bias",
    "kernel_regularizer",
    "recurrent_regularizer",
    "bias_regularizer",
    "kernel_constraint",
    "recurrent_constraint",
    "bias_constraint",
    "dropout",
    "recurrent_dropout",
    "reset_after",
    "seed",
    "implementation",
    "rank",
    "min_rank",
    "max_rank",
    "truncation",
    "stacked",
)


def _product(layers, inputs):
    """The products with the kernels of all gates, side by side.

    Args:
        layers: list of layers, low-rank or plain, one for all gates or one for each.
        inputs: tensor, or a list of tensors, one for each gate.
    """
    if not isinstance(inputs, list):
        outputs = [_multiply(layer, inputs) for layer in layers]
    elif len(layers) > 1:
        outputs = [_multiply(layer, one) for layer, one in zip(layers, inputs)]
    else:
        # One matrix, and other inputs for every gate's columns of it: all inputs as one batch.
        count = len(inputs)
        blocks = tf.split(_multiply(layers[0], tf.concat(inputs, 0)), count, axis=0)
        outputs = [tf.split(block, count, axis=-1)[i] for i, block in enumerate(blocks)]
    return tf.concat(outputs, -1) if len(outputs) > 1 else outputs[0]


def _multiply(layer, inputs):
    if isinstance(layer, LowRankDense):
        return layer.apply_kernel(inputs)
    return keras.ops.matmul(inputs, layer.kernel)
