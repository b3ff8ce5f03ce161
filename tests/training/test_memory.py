"""What a model leaves behind once it is dropped: nothing."""

import gc
import pathlib
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from tensorflow.python.framework.func_graph import FuncGraph

from keras_lowrank import LowRankDense, LowRankEmbedding, LowRankModel

_TWENTY_MODELS = """
import gc, pathlib, sys
import keras
sys.path.insert(0, sys.argv[1])
from test_memory import fit_one

def resident():
    gc.collect()
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

seen = []
for _ in range(30):
    fit_one(table=False)
    keras.utils.clear_session()
    seen.append(resident())
print((seen[-1] - seen[9]) / 20)
"""


def fit_one(table=True):
    """A weak reference to a model that was fitted and dropped."""
    inputs = x = keras.Input((8,))
    if table:
        x = keras.layers.Flatten()(LowRankEmbedding(20, 6, rank=3)(inputs))
    for _ in range(4):
        x = LowRankDense(16, rank=4, activation="relu")(x)
    model = LowRankModel(inputs, keras.layers.Dense(2)(x))
    model.compile(keras.optimizers.Adam(), "mse", integrator="rank_adaptive")
    model.fit(np.zeros((64, 8)), np.ones((64, 2)), batch_size=16, epochs=2, verbose=0)
    return weakref.ref(model)


@pytest.mark.slow
def test_a_model_that_was_fitted_and_dropped_is_gone_with_its_graphs():
    def graphs():
        gc.collect()
        return sum(isinstance(one, FuncGraph) for one in gc.get_objects())

    fit_one()
    keras.utils.clear_session()
    before = graphs()
    models = [fit_one(), fit_one()]
    keras.utils.clear_session()
    assert graphs() <= before
    assert all(model() is None for model in models)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_twenty_models_leave_less_than_a_megabyte_each():
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _TWENTY_MODELS, here], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) < 1.0
