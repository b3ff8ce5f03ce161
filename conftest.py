"""What every test, and every `Example:` in a docstring, starts from."""

import gc
import os
import pathlib
import tempfile

# Before TensorFlow is imported, which reads it once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowrank

# Whenever Python collects garbage, it need not look through all of TensorFlow; and it need not do
# so while a graph is made, hundreds of thousands of objects of which none is garbage yet.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 10)


def pytest_configure(config):
    """Leaves the tuning of pipelines to processes of their own, that of graphs to the slow tests.

    Most graphs run a few times here, and to optimise them takes a tenth of all the time. The slow
    tests run the graphs that users run, and trainings in processes of their own everything.
    """
    tf.data.Dataset._apply_debug_options = _untuned
    if config.option.markexpr == "not slow":
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def _untuned(data):
    """A data set whose iterators have no thread that tunes them.

    An iterator that TensorFlow deletes may wait for that thread to wake up, and the longer it has
    lived the longer it sleeps, up to a minute: what a failed `fit` left behind is old by then.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Layer names, random numbers and the precision policy do not depend on the test before."""
    # No collection before every test; Python's own come when there is garbage.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Graphs go with the module that made them, before gigabytes have gathered."""
    yield
    gc.collect()


@pytest.fixture
def float64():
    """Keras computes in float64 by default while the test runs."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.fixture(autouse=True, scope="session")
def public_names(doctest_namespace):
    """The docstrings' examples are written as after `from keras_lowrank import *`."""
    doctest_namespace.update(np=np, tf=tf, keras=keras, pathlib=pathlib, tempfile=tempfile)
    doctest_namespace.update({name: getattr(keras_lowrank, name) for name in keras_lowrank.__all__})
