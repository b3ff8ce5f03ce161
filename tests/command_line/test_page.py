"""The page of `inspect --html`: its numbers are those of the conversions that it names."""

import shlex
import sys

import keras
import numpy as np
import pytest

from browser import opened
from keras_lowrank import LowRankDense, find_low_rank_layers, from_keras
from keras_lowrank.command_line import main, page
from keras_lowrank.convert.forecast import Forecast
from keras_lowrank.export.kernels import deployed_kernels
from keras_lowrank.export.random_inputs import RandomInputs
from keras_lowrank.export.report import count_multiply_adds
from keras_lowrank.export.served import Served


def decaying(model):
    """The same model with kernels that tolerances cut differently."""
    for weight in model.weights:
        if len(weight.shape) >= 2:
            u, s, v = np.linalg.svd(
                weight.numpy().reshape((-1, weight.shape[-1])).astype("float64"),
                full_matrices=False,
            )
            s *= np.exp(-4.0 * np.arange(len(s)) / len(s))
            weight.assign(np.reshape(u * s @ v, weight.shape))
    return model


def images(dense=keras.layers.Dense):
    inputs = keras.Input((12, 12, 2))
    x = keras.layers.Conv2D(16, 3, strides=2, name="conv")(inputs)
    x = keras.layers.Conv2DTranspose(12, 3, name="wider")(x)
    x = dense(40, name="hidden")(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return decaying(images())


@pytest.mark.parametrize(
    "form, rule",
    [
        ("matrix", {"tolerance": 0.1}),
        ("matrix", {"tolerance": 0.6}),
        ("matrix", {"budget": 9_000}),
        ("spatial", {"tolerance": 0.3}),
        ("tucker", {"tolerance": 0.6}),
        ("tucker", {"budget": 9_000}),
    ],
)
def test_a_forecast_is_what_the_conversion_makes(model, form, rule):
    forecast = Forecast(model, form)
    ranks = forecast.ranks(**rule)
    low = from_keras(model, factorization=form, **rule)
    layers = find_low_rank_layers(low)
    assert {path: rank for path, rank in ranks.items() if rank} == {
        path: layer.rank for path, layer in layers.items()
    }
    assert form == "matrix" or layers["conv"].factorization == form
    total = forecast.total(ranks)
    assert total.weights == low.compression().factored
    served = Served(low)
    arguments = RandomInputs(served).arguments(1)
    assert total.multiply_adds == count_multiply_adds(served, deployed_kernels(low), arguments)


def test_bytes_are_those_of_a_file_but_for_its_graph(model, tmp_path):
    low = from_keras(model, tolerance=0.1)
    low.export(tmp_path / "low.tflite", format="litert", verbose=False)
    forecast = Forecast(model)
    counted = forecast.total(forecast.ranks(tolerance=0.1)).bytes
    assert counted < (tmp_path / "low.tflite").stat().st_size < counted + 8_000


def test_steps_and_lookups_are_counted():
    inputs = keras.Input((7,))
    x = keras.layers.Embedding(50, 16, name="table")(inputs)
    x = keras.layers.LSTM(20, name="lstm")(x)
    forecast = Forecast(keras.Model(inputs, x))
    assert forecast.size("table", None).multiply_adds == 0
    assert forecast.size("table", 3).multiply_adds == 7 * 3 * 16
    kernel = forecast.size("lstm/lstm_cell/kernel", None)
    assert kernel.multiply_adds == 7 * 16 * 80 and kernel.bytes == 4 * 16 * 80
    assert forecast.size("lstm/lstm_cell/recurrent_kernel", 2).multiply_adds == 7 * 2 * (20 + 80)


@pytest.mark.parametrize(
    "dense, form",
    [
        (keras.layers.Dense, "matrix"),
        (LowRankDense, "matrix"),
        (LowRankDense, "tucker"),
    ],
)
def test_the_commands_of_a_page_make_what_it_says(dense, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = decaying(images(dense)) if dense is keras.layers.Dense else images(dense)
    model.save("model.keras")
    merge = dense is LowRankDense
    forecast = Forecast(page.merged(model), form)
    by_tolerance, by_budget = page.cuts(forecast, "model.keras", merge, form)
    for cut in (by_tolerance[12], by_budget[8]):
        lines = cut.command.splitlines()
        for line in lines:
            main([*shlex.split(line)[3:], "--overwrite"])
        name = "model_plain_low_rank.keras" if merge else "model_low_rank.keras"
        low = keras.saving.load_model(name)
        ranks = {path: layer.rank for path, layer in find_low_rank_layers(low).items()}
        assert ranks == {path: rank for path, rank in cut.ranks.items() if rank}
        assert low.compression().factored == forecast.total(cut.ranks).weights


def test_a_page_needs_an_extra_that_the_error_names(model, tmp_path, monkeypatch, capsys):
    model.save(tmp_path / "model.keras")
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "model.keras"), "--html", str(tmp_path / "page.html")])
    assert "keras_lowrank[report]" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_in_a_browser_the_sliders_show_the_numbers_of_convert(model, tmp_path, monkeypatch):
    pytest.importorskip("plotly", reason="pages need the extra `report`")
    monkeypatch.chdir(tmp_path)
    model.save("model.keras")
    main(["inspect", "model.keras", "--html", "page.html"])
    with opened(tmp_path) as tab:
        errors = []
        tab.on("pageerror", lambda error: errors.append(error))
        tab.on("request", lambda one: one.url.startswith("http") and errors.append(one.url))
        tab.goto((tmp_path / "page.html").as_uri())
        for slider, rule in enumerate(("--tolerance", "--budget")):
            rail = tab.locator(".slider-rail-touch-rect").nth(slider).bounding_box()
            middle = rail["x"] + 0.5 * rail["width"], rail["y"] + 0.5 * rail["height"]
            tab.mouse.click(*middle)
            tab.wait_for_function(
                f"document.getElementById('command').textContent.includes('{rule}')"
            )
            tab.wait_for_timeout(1500)  # the markers move for a while
            rows = _rows(tab)
            main([*shlex.split(tab.locator("#command").inner_text())[3:], "--overwrite"])
            low = keras.saving.load_model("model_low_rank.keras")
            count = low.compression()
            assert rows["in all"][4] == f"{count.factored:,}"
            assert rows["in all"][5] == f"{count.factored / count.full:.1%}"
            for path, rank in low.ranks.items():
                assert rows[path][3] == str(rank)
        assert not errors


def _rows(tab):
    """The table of the page as text, by its first cell."""
    columns = tab.evaluate(
        "document.querySelector('.js-plotly-plot')._fullData.at(-1).cells.values"
    )
    drawn = tab.locator(".table").first.text_content()
    bare = [[cell.removeprefix("<b>").removesuffix("</b>") for cell in one] for one in columns]
    rows = {row[0]: row for row in zip(*bare)}
    assert rows["in all"][4] in drawn
    return rows
