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


@pytest.fixture(autouse=True, scope="module")
def short_collections():
    """A collection of garbage looks through what one file of tests has made, and no more.

    TensorFlow keeps every graph that was traced with a custom gradient. In the end a collection
    that looks through all of them takes tens of seconds.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_keras():
    """Layer names, random numbers and the precision policy do not depend on the test before."""
    # No collection before every test; Python's own come when there is garbage.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


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
