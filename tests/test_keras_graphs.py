"""What is leaned on of Keras's graphs of layers is where it was, and does what it did."""

import inspect

import keras
import pytest

from keras_lowrank import LowRankDense, LowRankModel, keras_graphs, keras_internals

MOVED = "Keras moved or changed it: mend keras_lowrank/keras_graphs.py"


class Functional(keras.Model):
    """Made of a graph, with code of its own on top."""

    def call(self, inputs):
        return 2.0 * super().call(inputs)


def test_models_are_told_by_whether_their_graph_says_all():
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2)(inputs)
    sequential = keras.Sequential([inputs, keras.layers.Dense(2)])
    for model in (keras.Model(inputs, outputs), LowRankModel(inputs, outputs), sequential):
        assert keras_graphs.is_graph(model), MOVED
    for model in (keras.layers.Dense(2), LowRankModel(), Functional(inputs, outputs)):
        assert not keras_graphs.is_graph(model), MOVED


def test_the_arguments_of_a_call_are_found():
    layer, inputs = keras.layers.Dropout(0.5), keras.Input((4,))
    layer(inputs)
    assert not keras_internals.is_called_with(layer, "training"), MOVED
    layer(inputs, training=True)
    assert keras_internals.is_called_with(layer, "training"), MOVED
    assert True in keras_graphs.calls_in_graphs(layer)[1], MOVED


def test_an_operation_can_be_taken_out_of_its_graph():
    operation = keras.ops.sin(keras.Input((3,)))._keras_history.operation
    twin = keras_graphs.detached(operation)
    assert type(twin) is type(operation) and twin.name == operation.name, MOVED
    twin(keras.Input((3,)))
    assert len(operation._inbound_nodes) == len(twin._inbound_nodes) == 1, MOVED


def test_keras_still_rewrites_bases_so_that_the_detour_is_needed():
    class Plain(keras.Model):
        pass

    inputs = keras.Input((4,))
    Plain(inputs, keras.layers.Dense(2)(inputs))
    assert Plain.__bases__ != (keras.Model,), "Keras no longer rewrites bases: drop the detour"


def test_model_becomes_functional_without_a_change_of_its_class():
    class Mine(LowRankModel):
        pass

    before = LowRankModel.__bases__, Mine.__bases__
    inputs = keras.Input((4,))
    models = [Mine(inputs, LowRankDense(2)(inputs)) for _ in range(2)]
    assert (LowRankModel.__bases__, Mine.__bases__) == before, MOVED
    assert type(models[0]) is type(models[1]) and isinstance(models[0], Mine)
    assert isinstance(models[0], type(keras.Model(inputs, inputs))), MOVED
    assert (type(models[0]).__name__, type(models[0]).__module__) == ("Mine", Mine.__module__)
    # Saved under the name of the class that the reader will import.
    made = type(LowRankModel(inputs, LowRankDense(2)(inputs)))
    names = [keras.saving.get_registered_name(cls) for cls in (LowRankModel, made)]
    assert names == ["keras_lowrank>LowRankModel"] * 2, MOVED


def test_init_is_signed_as_that_of_a_functional_model():
    # Keras compares arguments when it loads: others, and every functional model fails.
    inputs = keras.Input((4,))
    functional = type(keras.Model(inputs, keras.layers.Dense(2)(inputs)))
    theirs, ours = map(inspect.getfullargspec, (functional.__init__, LowRankModel.__init__))
    assert ours.args[1:] == theirs.args[1:], MOVED
    assert ours.args[0] == "self"  # what some versions leave out of a config, by its name


def test_names_are_kept():
    layer = keras.layers.Dense(1)
    with keras_graphs.names_kept():
        inside = keras.layers.Dense(1), keras.layers.Dropout(0.1)
    names = [one.name for one in (layer, *inside, keras.layers.Dense(1), keras.layers.Dropout(0.1))]
    assert names == ["dense", "dense_1", "dropout", "dense_1", "dropout"], MOVED


def test_a_model_that_its_graph_describes_is_told_from_one_that_its_code_does():
    class Own(keras.Model):
        def __init__(self, units):
            inputs = keras.Input((3,))
            super().__init__(inputs, keras.layers.Dense(units)(inputs))

    inputs = keras.Input((4,))
    outputs = LowRankDense(2, rank=1)(inputs)
    for model, graph, bare in [
        (LowRankModel(inputs, outputs), True, False),
        (keras.Model(inputs, outputs), True, True),
        (keras.Sequential([keras.Input((4,))]), True, True),
        (Own(2), False, False),
    ]:
        assert keras_graphs.is_saved_as_graph(model) == graph, MOVED
        assert keras_graphs.is_bare_graph(model) == bare, MOVED


def test_the_first_call_of_a_layer_is_known():
    layer = keras.layers.MultiHeadAttention(2, 4)
    assert keras_graphs.called_with(layer) is None
    inputs = keras.Input((3, 8))
    layer(inputs, inputs, use_causal_mask=True)
    args, kwargs = keras_graphs.called_with(layer)
    assert [x.shape for x in args] == [(None, 3, 8)] * 2, MOVED
    assert all(x is not inputs for x in args) and kwargs["use_causal_mask"], MOVED


def test_a_functional_model_can_refuse_to_be_cloned():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    keras_graphs.change_class(model, before=(keras_graphs.NotCloned,))
    keras.Model(inputs, model(inputs))
    with pytest.raises(ValueError, match="`clone_model` would lose the class"):
        keras.models.clone_model(model)
    keras_graphs.restore_class(model)
    keras.models.clone_model(model)
