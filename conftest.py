"""The setup of all tests and of the examples in docstrings."""

import gc
import inspect
import os
import pathlib
import tempfile

# TensorFlow reads it once, on import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowrank

# The garbage collector then skips TensorFlow's own objects, and runs less often while a graph is
# traced, which makes hundreds of thousands of objects and no garbage.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 10)


def pytest_configure(config):
    """Turns off the tuning of pipelines and, in quick tests, the optimisation of graphs.

    Most graphs run only a few times here, and optimising them takes a tenth of the time. The slow
    tests and the subprocesses run with TensorFlow's defaults.
    """
    tf.data.Dataset._apply_debug_options = _untuned
    if config.option.markexpr == "not slow":
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def _untuned(data):
    """Returns the data set without autotuning.

    To delete an iterator, TensorFlow may wait for its tuning thread, which sleeps up to a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Resets layer names, random numbers and the dtype policy for each test."""
    # Without a garbage collection, which would take time in every test.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


# Their tests are about the numbers of a step. Those of tests/training and tests/model run graphs.
_EAGER_FOLDERS = {"layers", "optimizers"}


@pytest.fixture(autouse=True)
def eager_steps(request, monkeypatch):
    """Makes `run_eagerly=True` the default of `compile`: a trace takes longer than a few steps."""
    if request.path.parent.name in _EAGER_FOLDERS:
        compile = keras_lowrank.LowRankModel.compile
        names = list(inspect.signature(compile).parameters)[1:]
        defaults = list(compile.__defaults__)
        defaults[names.index("run_eagerly")] = True
        monkeypatch.setattr(compile, "__defaults__", tuple(defaults))


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Frees the graphs of each module, which would add up to gigabytes."""
    yield
    gc.collect()


@pytest.fixture
def float64():
    """Makes float64 Keras's default while the test runs."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.fixture(autouse=True, scope="session")
def public_names(doctest_namespace):
    """Runs the examples in docstrings as after `from keras_lowrank import *`."""
    doctest_namespace.update(np=np, tf=tf, keras=keras, pathlib=pathlib, tempfile=tempfile)
    doctest_namespace.update({name: getattr(keras_lowrank, name) for name in keras_lowrank.__all__})
