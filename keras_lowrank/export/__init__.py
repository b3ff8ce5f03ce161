"""Exports a model for inference, as SavedModel, LiteRT or ONNX, after a check of the file."""

from keras_lowrank.export.pipeline import export_model
from keras_lowrank.export.report import ExportReport

__all__ = ["ExportReport", "export_model"]
