"""Each private name of Keras that the package leans on: still there, still meaning the same."""

import importlib
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context

from keras_lowrank import LowRankDense, keras_graphs, keras_internals

MOVED = "Keras moved or changed it: mend keras_lowrank/keras_internals/ or keras_graphs.py"


@pytest.mark.parametrize(
    "module, name",
    [
        ("keras.src.backend.common.global_state", "get_global_attribute"),
        ("keras.src.backend.common.masking", "set_keras_mask"),
        ("keras.src.backend.common.stateless_scope", "in_stateless_scope"),
        ("keras.src.backend.tensorflow.rnn", "rnn"),
        ("keras.src.export.export_utils", "get_input_signature"),
        ("keras.src.export.export_utils", "make_input_spec"),
        ("keras.src.export.export_utils", "make_tf_tensor_spec"),
        ("keras.src.losses.loss", "unscale_loss_for_distribution"),
        ("keras.src.models.functional", "Functional"),
        ("keras.src.models.functional", "functional_like_constructor"),
        ("keras.src.optimizers.loss_scale_optimizer", "LossScaleOptimizer"),
        ("keras.src.random.seed_generator", "global_seed_generator"),
        ("keras.src.saving.object_registration", "GLOBAL_CUSTOM_NAMES"),
        ("tensorflow.python.eager", "context"),
    ],
)
def test_private_import_is_where_it_was(module, name):
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    assert found is not None, f"{module}.{name}: {MOVED}"
    # A change of the list above without one of the package would test nothing.
    folder = pathlib.Path(keras_internals.__file__).parent
    files = [*folder.glob("*.py"), pathlib.Path(keras_graphs.__file__)]
    assert any(module in file.read_text() for file in files), f"{module} is not used any more"


@pytest.mark.parametrize(
    "owner, names",
    [
        (keras.layers.Layer, ["_flatten_layers"]),
        (keras.Model, ["_symbolic_build"]),
        (
            keras.Variable,
            [
                *("_map_aggregation", "_initialize", "_direct_assign", "_convert_to_tensor"),
                "_restore_from_tensors",
            ],
        ),
    ],
)
def test_private_method_is_where_it_was(owner, names):
    for name in names:
        assert callable(getattr(owner, name, None)), f"{owner.__name__}.{name}: {MOVED}"


def compiled():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    return model


def test_what_was_made_to_be_trained_is_found_frozen_or_not():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 4))
    found = [v.name for v in keras_internals.made_to_train(keras.Sequential([layer]))]
    layer.trainable = False
    assert found == ["gamma", "beta"], MOVED
    assert len(keras_internals.made_to_train(keras.Sequential([layer]))) == 2, MOVED


def test_an_optimizer_names_what_it_keeps_after_the_variable():
    variables = [keras.Variable(np.zeros(3), name=name) for name in ("bias", "bias_table")]
    optimizer = keras.optimizers.SGD(momentum=0.9)
    optimizer.build(variables)
    owners = [keras_internals.kept_for(slot, variables) for slot in optimizer.variables]
    assert [v for v in owners if v is not None] == variables, MOVED


@pytest.mark.parametrize("wrap", [lambda step: step, tf.function])
def test_an_optimizer_reads_constraints_with_all_that_it_updates_at_hand(wrap):
    class Asking(keras.Variable):
        @property
        def constraint(self):
            seen.append(keras_internals.updated_by_optimizer(self, above=1))
            return None

    seen, optimizer = [], keras.optimizers.SGD()
    variables = [Asking(np.zeros(3)), keras.Variable(np.zeros(2)), Asking(np.zeros(1))]
    optimizer.build(variables)
    wrap(lambda: optimizer.apply([tf.ones(3), tf.ones(2), tf.ones(1)], variables))()
    assert [[v is w for v, w in zip(one, variables)] for one in seen] == [[True] * 3] * 2, MOVED
    assert variables[0].constraint is None and seen[-1] == [], MOVED


def test_private_attributes_of_a_model_are_where_they_were():
    model = compiled()
    assert model._call_has_training_arg in (True, False), MOVED
    assert hasattr(model._loss_tracker, "update_state"), f"Model._loss_tracker: {MOVED}"
    assert hasattr(model, "_initial_epoch"), f"Model._initial_epoch: {MOVED}"
    writer = getattr(keras.callbacks.TensorBoard, "_train_writer", None)
    assert isinstance(writer, property), f"TensorBoard._train_writer: {MOVED}"


def test_a_layer_that_becomes_another_stays_in_its_place():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="mine")(inputs))
    layer, twin = model.layers[1], keras.layers.Dense(3, activation="relu", name="mine")
    twin.build((None, 4))
    kernel, place = twin.kernel, (layer._inbound_nodes, layer.path, layer.get_build_config())
    keras_internals.become(layer, twin)
    assert (layer._inbound_nodes, layer.path, layer.get_build_config()) == place, MOVED
    assert keras_internals.own_variables(layer) == [kernel, twin.bias], MOVED
    assert model.weights[0] is kernel and layer.activation is keras.activations.relu
    assert "build" not in vars(layer)  # wrapped, it would be that of the class before


def test_private_attributes_of_a_variable_are_where_they_were():
    variable = keras.Variable(np.ones((2, 2), "float32"), name="v")
    for name in ("_value", "_shape", "_dtype", "_name", "_path"):
        assert hasattr(variable, name), f"Variable.{name}: {MOVED}"


def test_public_loss_scale_optimizer_is_the_private_one():
    assert keras_internals.LossScaleOptimizer is keras.optimizers.LossScaleOptimizer, MOVED


# What each of our wrappers promises.


class Composite(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(2, name="first")
        self.others = [keras.layers.Dense(2, name="second")]


def test_sublayers_are_those_a_layer_holds_itself_in_order():
    layer = Composite()
    assert [one.name for one in keras_internals.sublayers(layer)] == ["first", "second"], MOVED
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.Sequential([keras.layers.Dense(2)], name="body")(inputs))
    names = [one.name for one in keras_internals.sublayers(model)]
    assert "body" in names and "dense" not in names, MOVED


def test_all_layers_reach_every_depth():
    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = Composite(name="inner")

    names = {layer.name for layer in keras_internals.all_layers(Holder())}
    assert {"inner", "first", "second"} <= names, MOVED


def test_training_is_passed_only_where_call_takes_it():
    class Takes(keras.Model):
        def call(self, inputs, training=None):
            return inputs + (1.0 if training else 0.0)

    class TakesNot(keras.Model):
        def call(self, inputs):
            return inputs

    assert float(keras_internals.call_in_training(Takes(), tf.zeros((1, 1)))[0, 0]) == 1.0, MOVED
    assert float(keras_internals.call_in_training(TakesNot(), tf.zeros((1, 1)))[0, 0]) == 0.0


@pytest.mark.parametrize(
    "kind, arguments",
    [(keras.layers.MultiHeadAttention, (2, 3)), (keras.layers.GroupQueryAttention, (3, 2, 2))],
)
def test_attention_puts_projections_into_attributes_before_they_have_kernels(kind, arguments):
    # Low-rank attention takes their place there, and by their names.
    seen = {}

    class Watched(kind):
        def __setattr__(self, name, value):
            if type(value) is keras.layers.EinsumDense:
                assert not value.built, MOVED
                seen[value.name] = value
                value = keras.layers.EinsumDense.from_config(value.get_config())
            super().__setattr__(name, value)

    layer = Watched(*arguments)
    layer(np.ones((1, 4, 6)), np.ones((1, 4, 6)))
    assert set(seen) == {"query", "key", "value", "attention_output"}, MOVED
    assert not any(one.built for one in seen.values()), f"{kind.__name__}.build: {MOVED}"
    held = keras_internals.sublayers(layer)
    assert not any(one in held for one in seen.values()), MOVED
    assert {one.name for one in held if one.built} >= set(seen), MOVED


def test_tracked_loss_is_the_mean_over_examples():
    model = compiled()
    keras_internals.track_loss(model, tf.constant(1.0), tf.zeros((1, 4)))
    keras_internals.track_loss(model, tf.constant(5.0), tf.zeros((3, 4)))
    assert float(model._loss_tracker.result()) == 4.0, MOVED


def test_variables_of_a_step_are_made_before_it_is_traced():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse", metrics=["mae"])
    batch = (keras.KerasTensor((3, 4)), keras.KerasTensor((3, 2)), None)
    keras_internals.build_for_training(
        model, batch, lambda: model.optimizer.build(model.trainable_variables)
    )
    made = len(model.metrics_variables), len(model.optimizer.variables)
    model.train_on_batch(np.ones((3, 4)), np.ones((3, 2)))
    assert made == (len(model.metrics_variables), len(model.optimizer.variables)), MOVED
    assert made[0] == 4  # total and count, of the loss and of the metric


def determinant(attributes):
    """A traced function of a matrix, that another one is to call."""

    def traced(x):
        return tf.linalg.det(2.0 * x)

    return tf.function(
        traced, autograph=False, experimental_attributes=attributes
    ).get_concrete_function(tf.TensorSpec([2, 2]))


def test_a_function_that_is_not_optimized_is_not_put_in_line():
    def runs(function):
        """The operations that TensorFlow runs for a function that calls it."""
        outer = tf.function(lambda x: 3.0 * function(x), autograph=False)
        x = tf.eye(2)
        outer.get_concrete_function(x)
        present = context.context()
        present.enable_run_metadata()
        try:
            assert float(outer(x)) == 12.0
            (graphs,) = present.export_run_metadata().function_graphs
        finally:
            present.disable_run_metadata()
        return {node.op for node in graphs.post_optimization_graph.node}

    assert "MatrixDeterminant" in runs(determinant(None))
    apart = runs(determinant(keras_internals.NOT_OPTIMIZED))
    assert "PartitionedCall" in apart and "MatrixDeterminant" not in apart, MOVED


def test_calls_are_not_optimized_where_it_was_asked_for_and_nowhere_else():
    def not_optimized():
        """Whether a call that is made now says so."""
        with tf.Graph().as_default() as graph:
            determinant(None)(tf.eye(2))
        (call,) = (op for op in graph.get_operations() if op.type == "PartitionedCall")
        config = config_pb2.ConfigProto.FromString(call.get_attr("config_proto"))
        return config.graph_options.rewrite_options.disable_meta_optimizer

    before = context.context().function_call_options.config_proto_serialized
    asked = not_optimized()  # here the tests may have switched it off for the whole process
    with keras_internals.calls_not_optimized():
        assert not_optimized(), MOVED
    with pytest.raises(KeyError), keras_internals.calls_not_optimized():
        raise KeyError
    assert context.context().function_call_options.config_proto_serialized == before, MOVED
    assert not_optimized() == asked


def test_calls_that_are_not_optimized():
    """A function that is called so stays a function, and the options are back afterwards."""
    before = context.context().function_call_options
    inner = tf.function(lambda x: x + 1.0, experimental_attributes=keras_internals.NOT_OPTIMIZED)

    @tf.function
    def outer(x):
        with keras_internals.calls_not_optimized():
            return inner(x)

    assert float(outer(tf.constant(1.0))) == 2.0, MOVED
    assert context.context().function_call_options is before, MOVED
    graph = outer.get_concrete_function(tf.constant(1.0)).graph
    (call,) = [op for op in graph.get_operations() if op.type == "PartitionedCall"]
    config = config_pb2.ConfigProto.FromString(call.get_attr("config_proto"))
    assert config.graph_options.rewrite_options.disable_meta_optimizer, MOVED
    (function,) = graph.as_graph_def().library.function
    assert function.attr["_noinline"].b, MOVED


def test_stateless_scope_is_recognised():
    assert not keras_internals.in_stateless_scope(), MOVED
    with keras.StatelessScope():
        assert keras_internals.in_stateless_scope(), MOVED


def test_stateless_call_takes_factors_of_another_rank():
    # What in_stateless_scope is for: an assignment there must not reach the variable.
    layer = LowRankDense(4, rank=2)
    layer.build((None, 5))
    before = layer.U.numpy()
    with keras.StatelessScope() as scope:
        layer.U.assign(np.ones((5, 2), "float32"))
        assert np.all(scope.get_current_value(layer.U) == 1.0), MOVED
    np.testing.assert_array_equal(layer.U.numpy(), before)


def test_input_signature_is_known_for_functional_and_subclassed_models():
    (spec,) = keras.tree.flatten(keras_internals.input_signature(compiled()))
    assert tuple(spec.shape) == (None, 4), MOVED

    class Mine(keras.Model):
        def call(self, inputs):
            return inputs

    model = Mine()
    model(tf.zeros((2, 4)))
    (spec,) = keras.tree.flatten(keras_internals.input_signature(model))
    assert tuple(spec.shape) == (None, 4), MOVED


def test_open_variable_has_open_extents_and_the_properties_of_its_owner():
    layer = LowRankDense(4, rank=2)
    layer.build((None, 5))
    inner = layer.U.value
    assert inner.shape.as_list() == [5, None], MOVED
    assert layer.S.value.shape.as_list() == [None, None]
    assert inner.aggregation == tf.VariableAggregation.ONLY_FIRST_REPLICA, MOVED
    assert inner.dtype == tf.float32 and inner.trainable


def test_variables_that_an_optimizer_holds_are_its_own():
    optimizer, variable = keras.optimizers.SGD(0.1), keras.Variable(1.0)
    keras_internals.hold(optimizer, [variable])
    assert any(one is variable for one in optimizer.variables), MOVED


def test_the_inner_optimizer_is_found():
    inner = keras.optimizers.SGD(0.1)
    assert keras_internals.inner_optimizer(inner) is inner
    assert keras_internals.inner_optimizer(keras.optimizers.LossScaleOptimizer(inner)) is inner


def test_the_call_that_completes_an_accumulation_is_known():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    variable = keras.Variable(1.0)
    seen = []
    for _ in range(6):
        seen.append(bool(keras_internals.completes_accumulation(optimizer)))
        before = float(variable)
        optimizer.apply([tf.constant(1.0)], [variable])
        assert (float(variable) != before) == seen[-1], MOVED
    assert seen == [False, False, True] * 2


def test_what_is_excluded_from_weight_decay_is_known():
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.1)
    kept, left = keras.Variable(1.0, name="kept"), keras.Variable(1.0, name="left")
    optimizer.exclude_from_weight_decay(var_list=[kept.value], var_names=["kept"])
    assert not keras_internals.decays(optimizer, [left, kept], "kernel"), MOVED
    assert not keras_internals.decays(optimizer, [left], "kept"), MOVED
    assert keras_internals.decays(optimizer, [left], "kernel"), MOVED


def test_hooks_of_training_under_a_strategy_are_where_they_were():
    model = compiled()
    assert callable(getattr(keras.Model, "_maybe_symbolic_build", None)), MOVED
    assert callable(getattr(model.optimizer, "_all_reduce_sum_gradients", None)), MOVED
    assert model._distribute_strategy is None, MOVED
    keras_internals.sum_gradients(model.optimizer, False)
    assert model.optimizer._all_reduce_sum_gradients(iter([1])) == [1]
    keras_internals.sum_gradients(model.optimizer, True)
    assert "_all_reduce_sum_gradients" not in vars(model.optimizer)
