"""Trainings under `tf.distribute`: `distributed_training.py`, in processes of its own."""

import pathlib
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from keras_lowrank.training import replicas

_PROGRAM = pathlib.Path(__file__).parents[1] / "distributed_training.py"


def run(*arguments):
    done = subprocess.run(
        [sys.executable, _PROGRAM, *arguments], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def found_quickly():
    return run("a_few_steps", "adapters", "errors")


def test_two_devices_agree_with_one_for_a_few_steps(found_quickly):
    assert found_quickly.count("2 replicas,") == 2


def test_adapters_on_two_devices_are_those_of_one(found_quickly):
    assert "adapters, 2 replicas:" in found_quickly


@pytest.mark.slow
def test_two_devices_agree_with_one():
    output = run("agreement")
    assert output.count("2 replicas") == 3


@pytest.mark.slow
def test_four_devices_agree_with_one_over_100_steps_of_rank_adaptive():
    assert "4 replicas, 100 steps, float64" in run("four")


@pytest.mark.slow
def test_replicas_that_would_decide_otherwise_follow_the_first_and_share_faults():
    output = run("disagreement")
    assert "rank 2 in all" in output and "undone in all" in output


@pytest.mark.slow
def test_scaling_clipping_and_sparse_gradients_are_those_of_one_device():
    assert "mixed_float16" in run("mixed")


@pytest.mark.slow
def test_what_the_loss_does_not_reach_stays_as_it_is():
    assert run("unreached").count("untouched") == 3


@pytest.mark.slow
def test_only_the_tangent_gradient_travels():
    assert run("traffic").count("bytes a step") == 3


def test_refused_errors(found_quickly):
    assert "refused" in found_quickly


@pytest.mark.parametrize("name", ["TPUStrategy", "ParameterServerStrategy"])
def test_strategy_error(name, monkeypatch):
    # Without a TPU none of its strategies can be made: one that is not set up has the class.
    strategy = object.__new__(getattr(tf.distribute, name))
    strategy._extended = tf.distribute.get_strategy().extended
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    monkeypatch.setattr(tf.distribute, "has_strategy", lambda: True)
    with pytest.raises(ValueError, match=f"trains under OneDeviceStrategy, .* Received: {name}"):
        replicas.check_strategy(keras.optimizers.SGD())


@pytest.mark.slow
def test_two_workers_agree_with_one_device():
    output = run("workers", "worker_agreement")
    assert output.count("2 replicas") == 8


@pytest.mark.slow
def test_the_example_trains_in_two_workers():
    pytest.importorskip("rich", reason="the examples need the packages in the extra `examples`")
    assert run("workers", "example").count("saved alike") == 2


@pytest.mark.slow
def test_workers_that_would_decide_otherwise_follow_the_first_and_share_faults():
    assert run("workers", "disagreement").count("in all") == 4


@pytest.mark.slow
def test_a_training_that_workers_broke_off_goes_on_bit_for_bit():
    assert run("workers", "backup").count("went on alike") == 2
