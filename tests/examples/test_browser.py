"""The demo in a browser answers as its LiteRT file does; skipped where there is no browser."""

import functools
import http.server
import pathlib
import threading

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from browser import opened
from keras_lowrank import LowRankDense, LowRankModel

PAGE = pathlib.Path(__file__).parent.parent.parent / "examples/browser"


@pytest.fixture
def site(tmp_path):
    """The address of a folder as the repository is, with a small model in the demo's place."""
    if not (PAGE / "node_modules").is_dir():
        pytest.skip("`npm install` has not been run in examples/browser")
    inputs = keras.Input((8, 8, 1))
    x = LowRankDense(64, rank=8, activation="relu")(keras.layers.Flatten()(inputs))
    model = LowRankModel(inputs, keras.layers.Dense(10)(x))
    target = tmp_path / "out/digits/low_rank.tflite"
    target.parent.mkdir(parents=True)
    model.export(target, format="litert", batch_size=1, verbose=False)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/browser").symlink_to(PAGE)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/examples/browser/", target
        server.shutdown()


@pytest.mark.slow
def test_a_drawn_digit_is_answered_as_by_the_file(site, tmp_path):
    address, file = site
    with opened(tmp_path) as tab:
        errors = []
        tab.on("pageerror", lambda error: errors.append(error))
        tab.goto(address)
        tab.wait_for_function("document.getElementById('status').textContent.startsWith('Ready')")
        assert f"{file.stat().st_size:,}" in tab.locator("#status").inner_text()
        pixels = np.random.default_rng(0).random(64).astype("float32")
        scores = tab.evaluate("p => answer(Float32Array.from(p))", pixels.tolist())
        runner = Interpreter(str(file)).get_signature_runner()
        (logits,) = runner(**{one: pixels.reshape(1, 8, 8, 1) for one in _inputs(runner)}).values()
        np.testing.assert_allclose(scores, keras.ops.softmax(logits)[0], atol=1e-5)
        box = tab.locator("#drawing").bounding_box()
        tab.mouse.move(box["x"] + 128, box["y"] + 40)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 120, box["y"] + 210, steps=8)
        tab.mouse.up()
        tab.wait_for_function("document.getElementById('label').textContent !== ''")
        shown = int(tab.locator("#label").inner_text())
        meters = tab.locator("meter").evaluate_all("all => all.map(one => one.value)")
        assert shown == int(np.argmax(meters)) and sum(meters) == pytest.approx(1.0, abs=1e-3)
        assert not errors


def _inputs(runner):
    return runner.get_input_details()
