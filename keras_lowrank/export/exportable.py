"""`LowRankModel.export`."""

import os
from typing import Any

import keras

from keras_lowrank.export.pipeline import export_model
from keras_lowrank.export.report import ExportReport
from keras_lowrank.reporting.card import ModelCard


class Exportable:
    """Gives a `keras.Model` an `export` that checks the file it writes."""

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "tf_saved_model",
        verbose: bool | int | None = None,
        input_signature: Any = None,
        overwrite: bool = False,
        *,
        batch_size: int | None = None,
        example_inputs: Any = None,
        quantization: str | None = None,
        representative_data: Any = None,
        inference_type: str = "float32",
        check_data: tuple[Any, Any] | None = None,
        accuracy_drop: float = 0.01,
        preprocessing: keras.layers.Layer | None = None,
        class_labels: list[str] | None = None,
        opset_version: int | None = None,
        optimizations: list | None = None,
        representative_dataset: Any = None,
        target_spec: Any = None,
        report: bool | str | os.PathLike = False,
        card: bool | ModelCard = False,
    ) -> ExportReport | None:
        """Writes the model for inference, after a check that the file computes the same.

        Every low-rank layer becomes two products, with `U S` and `V^T`, or one dense product if
        that is cheaper. The model is written to a temporary folder, checked, and moved to
        `filepath` in one step. After an error, `filepath` is unchanged.

        In float, the outputs may differ by `1e-4`, relative to outputs above 1. Quantised, the
        accuracy on `check_data` decides. Without `check_data`, the root mean square of the
        difference may be 1% (float16) or 10% (int8) of that of the outputs.

        Args:
            filepath: str or path, the folder of a SavedModel, or a file that ends in `.tflite` or
                `.onnx`.
            format: str, `"tf_saved_model"`, `"litert"` (or `"tflite"`), or `"onnx"`, which needs
                `pip install 'keras_lowrank[onnx]'`. Defaults to `"tf_saved_model"`.
            verbose: bool, int or None. Print a line about the file, and the report. None means
                `True`.
            input_signature: as in `keras.Model.export`. None takes the inputs of `preprocessing` if
                it is a model with inputs, else those of the model, with an open batch size.
            overwrite: bool. Replace an existing file or folder. Defaults to `False`.
            batch_size: int or None, the batch size to fix in the file. LiteRT in a browser needs
                `batch_size=1`. None keeps that of `input_signature`.
            example_inputs: a few inputs for the check, as `predict` takes them. None takes
                `representative_data` or `check_data`, or else random numbers. Pass them for a model
                that takes logarithms, divides by a mask or decodes images.
            quantization: None, or for LiteRT `"float16"` (weights in half precision: half the
                size), `"dynamic_int8"` (weights in int8, activations in float: a quarter of the
                size) or `"int8"` (weights and activations in int8).
            representative_data: for `"int8"`, about a hundred typical inputs, which set the ranges
                of the activations: arrays as `predict` takes them, a `tf.data.Dataset` of batches,
                or a callable as `tf.lite.TFLiteConverter` takes it.
            inference_type: str, for `"int8"`, the type of the file's inputs and outputs:
                `"float32"`, or `"int8"` or `"uint8"` for devices without floating point. Defaults
                to `"float32"`.
            check_data: `(x, y)` or None, inputs and targets (labels or one-hot) to compare the
                accuracies of file and model on.
            accuracy_drop: float, how far the accuracy on `check_data` may fall below the model's.
                Defaults to 0.01, one percentage point.
            preprocessing: Keras layer or model that the file applies before the model, or None.
            class_labels: list of str or None. A SavedModel then returns
                `{"scores": outputs, "label": the label of the highest score}`.
            opset_version: int or None, for ONNX, the version of its operations.
            optimizations: list of `tf.lite.Optimize` or None, for LiteRT: Keras's form of
                `quantization`. Pass only one of them.
            representative_dataset: Keras's name of `representative_data`. Pass only one of them.
            target_spec: dict, `tf.lite.TargetSpec` or None, for LiteRT: what the file may use, as
                in `{"supported_types": [tf.float16]}`.
            report: bool, or the path of a JSON file. Export the same model at full rank too,
                measure both, and return the `ExportReport`. A path also writes it to that file.
                Defaults to `False`.
            card: bool, or a `ModelCard` with what only you know. Write a model card beside the
                file: `NAME.tflite.md` for `NAME.tflite`. It has the accuracy on `check_data`, and
                the report if there is one. Defaults to `False`.

        Returns:
            `ExportReport` (size, parameters, multiply-adds, median inference time, largest
            difference, accuracy), or None without `report`.

        Raises:
            FileExistsError: `filepath` exists and `overwrite` is `False`.
            ImportError: a package for ONNX is not installed.
            OSError: the folder is not writable, or the disk is full.
            ValueError: an argument is out of range, the model fails or returns NaN on the inputs of
                the check, the format lacks an operation, or the file does not agree with the model.

        Example:

        >>> inputs = keras.Input((64,))
        >>> model = LowRankModel(inputs, LowRankDense(64, rank=4)(inputs))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.tflite"
        >>> report = model.export(path, format="litert", verbose=False, report=True)
        >>> report.artefact.multiply_adds, report.full_rank.multiply_adds
        (512, 4096)
        """
        return export_model(
            self,
            filepath,
            format,
            verbose,
            input_signature,
            overwrite,
            batch_size=batch_size,
            example_inputs=example_inputs,
            quantization=quantization,
            representative_data=representative_data,
            inference_type=inference_type,
            check_data=check_data,
            accuracy_drop=accuracy_drop,
            preprocessing=preprocessing,
            class_labels=class_labels,
            opset_version=opset_version,
            optimizations=optimizations,
            representative_dataset=representative_dataset,
            target_spec=target_spec,
            report=report,
            card=card,
        )
