"""A model as a file for inference: SavedModel, LiteRT, ONNX; checked, then put in place."""

from keras_lowrank.export.pipeline import export_model
from keras_lowrank.export.report import ExportReport

__all__ = ["ExportReport", "export_model"]
