"""What an export says of itself, beside full rank."""

import json

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel
from keras_lowrank.export import ExportReport
from keras_lowrank.export.report import Cost


class Subclassed(LowRankModel):
    def __init__(self):
        super().__init__()
        self.conv = LowRankConv2D(6, 3, rank=2)
        self.flatten = keras.layers.Flatten()
        self.low = LowRankDense(300, rank=2)
        self.head = keras.layers.Dense(4)

    def call(self, inputs, training=False):
        return self.head(self.low(self.flatten(self.conv(inputs))))


@pytest.mark.parametrize("format, suffix", [("tf_saved_model", ""), ("litert", ".tflite")])
def test_costs_are_those_of_the_formulas(tmp_path, format, suffix, capsys):
    model = Subclassed()
    model(np.zeros((1, 8, 8, 2)))
    path, beside = tmp_path / f"model{suffix}", tmp_path / "costs" / "model.json"
    report = model.export(path, format, report=beside)
    pairs = {"conv": 2 * (18 + 6), "low": 2 * (216 + 300)}
    rest = 300 * 4 + 6 + 300 + 4
    assert report.artefact.parameters == sum(pairs.values()) + rest
    assert report.full_rank.parameters == 18 * 6 + 216 * 300 + rest
    assert report.artefact.multiply_adds == 36 * pairs["conv"] + pairs["low"] + 300 * 4
    assert report.full_rank.multiply_adds == 36 * 18 * 6 + 216 * 300 + 300 * 4
    written = sum(f.stat().st_size for f in (path, *path.rglob("*")) if f.is_file())
    assert report.artefact.bytes == written < report.full_rank.bytes
    assert 0 < report.artefact.milliseconds < 100 and 0 < report.full_rank.milliseconds < 100
    assert 0 < report.difference < 1e-4 and report.accuracy is None
    written = json.loads(beside.read_text())
    assert written["full_rank"] == report.full_rank._asdict()
    assert written["path"] == str(path) and written["format"] == format
    assert str(report) in capsys.readouterr().out
    with pytest.raises(FileExistsError):
        model.export(path, format, report=True)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((8,))
    return LowRankModel(inputs, LowRankDense(6, rank=2)(inputs))


def test_a_report_leaves_no_file_in_the_folder_of_a_model_server(model, tmp_path):
    path = tmp_path / "digits" / "1"
    assert model.export(path, verbose=False, report=True).path == str(path)
    assert [one.name for one in path.parent.iterdir()] == ["1"]
    for inside in (path, path / "report.json"):
        with pytest.raises(ValueError, match="path outside of the export. Received: report="):
            model.export(path, verbose=False, report=inside, overwrite=True)
    assert not (path / "report.json").exists()


def test_an_older_report_is_not_replaced_unasked(model, tmp_path):
    older = tmp_path / "report.json"
    older.write_text("older")
    with pytest.raises(FileExistsError, match=r"overwrite=True.*report\.json"):
        model.export(tmp_path / "1", report=older)
    assert older.read_text() == "older"
    assert not (tmp_path / "1").exists()


def test_the_table_shows_both_and_their_ratio():
    ours, full = Cost(1000, 20, 30, 0.5), Cost(25000, 40, 90, 5.0)
    report = ExportReport("m.tflite", "litert", "int8", ours, full, 1e-3, 0.98, 0.985)
    title, head, *rows = str(report).splitlines()
    assert title == "m.tflite" and head.split() == ["litert", "int8", "full", "rank", "ratio"]
    assert [row.split() for row in rows] == [
        ["bytes", "1,000", "25,000", "25.0x"],
        ["parameters", "20", "40", "2.0x"],
        ["multiply-adds", "30", "90", "3.0x"],
        ["milliseconds", "0.500", "5.000", "10.0x"],
        ["difference", "1.0e-03"],
        ["accuracy", "98.00%", "98.50%"],
    ]
