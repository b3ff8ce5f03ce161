"""Everything of Keras that is not public and that this package leans on, each with the reason.

When a Keras release moves one of these, `tests/test_keras_internals.py` fails and names it, and
this is the one file to mend.
"""

import contextlib
import functools
import itertools
import sys

import keras
import tensorflow as tf
from keras.src.backend import compute_output_spec
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.masking import set_keras_mask
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.tensorflow.rnn import rnn
from keras.src.export.export_utils import (
    get_input_signature,
    make_input_spec,
    make_tf_tensor_spec,
)
from keras.src.losses.loss import unscale_loss_for_distribution
from keras.src.models.functional import Functional
from keras.src.optimizers.loss_scale_optimizer import LossScaleOptimizer
from keras.src.random.seed_generator import global_seed_generator
from keras.src.utils.python_utils import default
from keras.src.utils.tracking import no_automatic_dependency_tracking
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context, record

__all__ = [
    "LossScaleOptimizer",
    "default",  # marks a `get_config` that leaves Keras to find out the arguments of `__init__`
    "in_stateless_scope",  # Variable.assign must be able to tell
    "rnn",  # the loop of keras.layers.RNN, which runs no step but a whole cell's
    "set_keras_mask",  # a layer with two uses has a mask for one of them only
    "unscale_loss_for_distribution",  # the reported loss is the global one, as in Keras
]


def sublayers(layer):
    """The layers that `layer` holds itself, in the order in which they were attached.

    `Model.layers` is public but leaves out layers held by a composite `Layer`.
    """
    return layer._flatten_layers(include_self=False, recursive=False)


def all_layers(model):
    """All layers inside `model`, at every depth."""
    return model._flatten_layers(include_self=False)


def attach(layer, name, part):
    """Puts a layer into an attribute of a built one, whose tracker Keras has locked by then."""
    layer._tracker.unlock()
    setattr(layer, name, part)
    layer._tracker.lock()


def detach(layer, name):
    """Takes away what `attach` has put there."""
    part = getattr(layer, name)
    layer._tracker.unlock()
    layer._layers.remove(part)
    layer._tracker.stored_ids["layers"].discard(id(part))
    delattr(layer, name)
    layer._tracker.lock()


def is_built(model):
    """Whether the model and all layers inside it are built."""
    return all(layer.built for layer in model._flatten_layers())


def made_to_train(model):
    """The variables that were made to be trained, frozen by now or not; statistics are none.

    `trainable_variables` leaves out those of layers that are frozen.
    """
    return [v for layer in [model, *all_layers(model)] for v in layer._trainable_variables]


def kept_for(slot, variables):
    """The variable that an optimizer keeps `slot` for, among some; None where there is none.

    It says so by a name that begins with the path of the variable.
    """
    named = [v for v in variables if slot.name.startswith(v.path.replace("/", "_") + "_")]
    return max(named, key=lambda variable: len(variable.path), default=None)


def states(model):
    """What stateful recurrent layers go on from: variables that are none of the model's."""
    layers = [layer for layer in all_layers(model) if getattr(layer, "stateful", False)]
    found = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    return [state for state in found if isinstance(state, keras.Variable)]


def is_recorded():
    """Whether a tape sees what is computed now: not in a forward pass that is to be recomputed.

    Of TensorFlow, and not public either: `tf.recompute_grad`, which `keras.RematScope` uses, says
    so in no other way.
    """
    return record.could_possibly_record()


# TensorFlow puts a function with the first of these not in line with its callers; those with the
# second it takes for one of tf.data, and does not optimise them together with their callers.
NOT_OPTIMIZED = {"_noinline": True, "_tf_data_function": True}


@contextlib.contextmanager
def calls_not_optimized():
    """While open, calls of traced functions that are made in a graph leave them as traced.

    Of TensorFlow, and not public: `tf.config.optimizer` would switch it off for the whole process.
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


def is_called_with(layer, argument):
    """Whether a call of `layer` in a graph of layers sets a keyword argument to what is true."""
    return any(node.arguments.kwargs.get(argument) for node in layer._inbound_nodes)


def call_in_training(model, inputs):
    """Calls `model` as Keras's own train step does: `training=True` only where `call` takes it."""
    if model._call_has_training_arg:
        return model(inputs, training=True)
    return model(inputs)


def compute_loss(model, x, y, y_pred, sample_weight):
    """The loss of a training step, by a `compute_loss` that may be the user's own.

    One from before Keras 3.3 has no argument `training`.
    """
    return model._compute_loss(x, y, y_pred, sample_weight, training=True)


def batch_of(iterator):
    """What data yield to one replica, as symbolic tensors, or None where they do not tell."""

    def symbolic(spec):
        # One spec for each replica of this process, where it has several.
        spec = getattr(spec, "_value_specs", [spec])[0]
        # An optional part that is absent (sample weights, say) has a spec of its own kind.
        return keras.KerasTensor(spec.shape, spec.dtype) if hasattr(spec, "shape") else None

    spec = getattr(iterator, "element_spec", None)
    return None if spec is None else tf.nest.map_structure(symbolic, spec)


def symbolic(batch):
    """Symbolic tensors in the place of those of a batch."""
    return tf.nest.map_structure(
        lambda one: one if one is None else keras.KerasTensor(one.shape, one.dtype), batch
    )


def run_symbolically(function, data):
    """Calls `function` on symbolic tensors, in a graph that is thrown away.

    Nothing is assigned; variables that it makes, as of layers that are not built, stay.
    """
    return compute_output_spec(function, data)


def first_batch(iterator):
    """`(batch, iterator)`: what an iterator of `fit` or `train_on_batch` yields first, symbolic.

    The batch is None where that is not known; the iterator still yields it.
    """
    if hasattr(iterator, "element_spec"):
        return batch_of(iterator), iterator
    for batch in iterator:  # Keras's generator of the one that `train_on_batch` was given
        return symbolic(batch), itertools.chain([batch], iterator)
    return None, iterator


class DistributedTrainer:
    """Mends, in a `LowRankModel`, `fit` under `tf.distribute`."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras builds the optimizer on all trainable variables here, and draws a batch whose mean
        # over the replicas it cannot take where each host has one of them.
        if self._distribute_strategy is not None:
            batch = batch_of(iterator._distributed_dataset) if data_batch is None else data_batch
            with self._distribute_strategy.scope():
                self._training.prepare_on(batch)

    def train_step(self, data):
        sum_gradients(inner_optimizer(self.optimizer), True)
        return per_host(super().train_step(data))

    def test_step(self, data):
        return per_host(super().test_step(data))


def per_host(logs):
    """What a step returns for Keras to take the mean of over all replicas."""
    if not spans_hosts(tf.distribute.get_strategy()):
        return logs
    # Between hosts Keras takes it over the first axis too, which a number does not have.
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def build_for_training(model, batch, build_optimizer):
    """Makes every variable that a train step needs: of layers, optimizer, metrics and loss.

    Keras leaves them to the first trace of the step, where a new variable costs a second one.

    Args:
        model: compiled `keras.Model`.
        batch: `(x, y, sample_weight)`, tensors or symbolic tensors.
        build_optimizer: callable, called once the model is built: Keras would build the optimizer
            on all trainable variables.
    """
    if not is_built(model):
        # Run, and not only asked for its shapes: a layer in an attribute is built by its call.
        run_symbolically(functools.partial(call_in_training, model), symbolic(batch[0]))
    build_optimizer()
    model._symbolic_build(data_batch=batch)


def choose_jit(model, wanted):
    """Decides anew, as `compile` does, whether the model's functions are compiled by XLA."""
    # An assignment of the present value is skipped, and with it the question whether it is allowed.
    model.jit_compile = False
    model.jit_compile = model._resolve_auto_jit_compile() if wanted == "auto" else wanted


def input_signature(model):
    """What `model` is called with, as the list of arguments that an export archive takes.

    The batch size is free, as in Keras, unless a layer keeps a state for each of a batch.
    """
    if isinstance(model, Functional):
        # Up to Keras 3.8 theirs has lost the names of a dictionary of inputs.
        specs = keras.tree.map_structure(make_input_spec, model._inputs_struct)
        if states(model):
            for spec, given in zip(*map(keras.tree.flatten, (specs, model._inputs_struct))):
                spec.shape = given.shape
        return [specs]
    return get_input_signature(model)


def tensor_spec(given):
    """The `tf.TensorSpec` of what Keras takes for one in an `input_signature`."""
    return make_tf_tensor_spec(given)


def completed_steps(optimizer):
    """The steps that `optimizer` has made; up to Keras 3.8 a scaling one does not count them."""
    return inner_optimizer(optimizer).iterations


def built_on(optimizer):
    """The variables that an optimizer was built to move."""
    return inner_optimizer(optimizer)._trainable_variables


def inner_optimizer(optimizer):
    """The optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer


def sum_gradients(optimizer, wanted):
    """Whether `optimizer` sums over all replicas what it is given; in a step they are sums.

    Told at every trace: a step without low-rank layers is Keras's own.
    """
    optimizer.__dict__.pop("_all_reduce_sum_gradients", None)
    if not wanted:
        optimizer._all_reduce_sum_gradients = list


def completes_accumulation(optimizer):
    """Scalar bool tensor: this call of `optimizer`, which accumulates gradients, applies them."""
    steps = tf.cast(optimizer.gradient_accumulation_steps, optimizer._iterations.dtype)
    return tf.equal((optimizer._iterations.value + 1) % steps, 0)


@no_automatic_dependency_tracking
def hold(optimizer, variables):
    """Makes variables part of the state of `optimizer`: saved, restored and counted with it."""
    for variable in variables:
        optimizer._track_variable(variable)


def updated_by_optimizer(variable, above):
    """What an optimizer has just updated with `variable`, where it is what reads its constraint.

    A list of variables, empty where someone else reads it. After an update Keras's optimizers read
    the constraint of every variable, and tell it of nothing else; so their frame is looked into,
    which is so many `above` the one that asks.
    """
    frame = sys._getframe(above + 1)
    optimizer = frame.f_locals.get("self")
    updated = frame.f_locals.get("trainable_variables", ())
    asks = isinstance(optimizer, keras.optimizers.Optimizer)
    return list(updated) if asks and any(one is variable for one in updated) else []


def decays(optimizer, variables, name):
    """Whether `weight_decay` of `optimizer` is meant for `variables`, and for one of that name."""
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    if pattern is not None and pattern.search(name):
        return False
    return all(optimizer._use_weight_decay(variable) for variable in variables)


def track_loss(model, loss, inputs):
    """Feeds the epoch's mean of the loss, weighted by batch size, as Keras's train step does."""
    batch = next(tensor for tensor in tf.nest.flatten(inputs) if tensor is not None)
    model._loss_tracker.update_state(
        unscale_loss_for_distribution(loss), sample_weight=tf.shape(batch)[0]
    )


def spoil_loss(model):
    """Makes the epoch's mean of the loss NaN, as a step that is not finite makes it in Keras."""
    model._loss_tracker.update_state(float("nan"))


def is_saving_hdf5():
    """Whether Keras is writing a whole model in its older format."""
    return bool(get_global_attribute("use_legacy_config"))


def global_seed():
    """The variable behind random numbers that have no seed, or None where none were drawn yet.

    Asking Keras for it would make it, by a draw from Python's generator that shifts all later ones.
    """
    generator = get_global_attribute("global_seed_generator")  # has no constant in Keras 3.8
    return None if generator is None else generator.state


def make_global_seed():
    """The same variable, made where it is not there."""
    return global_seed_generator().state


def train_writer(tensorboard):
    """The summary writer of the run `train`: a second one in its folder would hide the first."""
    return tensorboard._train_writer


def start_at_epoch(model, epoch):
    """Has the `fit` that is beginning start at `epoch`: no callback can say so publicly."""
    model._initial_epoch = epoch


def open_variable(variable, value, shape):
    """Makes the `tf.Variable` behind a Keras variable, with open (None) extents in its shape.

    A SavedModel has the present shape: Keras makes the variables of one anew, and needs all of it.
    """
    made = tf.Variable(
        value,
        shape=tf.TensorShape(shape),
        dtype=variable._dtype,
        trainable=variable.trainable,
        name=variable.name,
        aggregation=variable._map_aggregation(variable.aggregation),
    )

    write = getattr(made, "_write_object_proto", None)

    def write_present_shape(proto, options):
        write(proto, options)
        proto.variable.shape.CopyFrom(made.read_value().shape.as_proto())

    if write is not None:
        made._write_object_proto = write_present_shape
    return made


def spans_hosts(strategy):
    """Whether a strategy has replicas in other processes."""
    count = strategy.num_replicas_in_sync
    return count > 1 and count > len(strategy.extended.worker_devices)
