"""`LowRankModel.export`."""

from keras_lowrank.export.pipeline import export_model


class Exportable:
    """Gives a `keras.Model` an `export` that checks what it writes."""

    def export(
        self,
        filepath,
        format="tf_saved_model",
        verbose=None,
        input_signature=None,
        overwrite=False,
        *,
        batch_size=None,
        example_inputs=None,
        quantization=None,
        representative_data=None,
        inference_type="float32",
        check_data=None,
        accuracy_drop=0.01,
        preprocessing=None,
        class_labels=None,
        opset_version=None,
        optimizations=None,
        representative_dataset=None,
        target_spec=None,
        report=False,
    ):
        """Writes the model for inference, after a check against the model.

        Every low-rank layer becomes two products, `(U S)` and `V^T`, or one dense product where
        that is cheaper. The artefact is written to a temporary folder, checked, and moved to
        `filepath` in one step; after a failure, what was there is as it was.

        Args:
            filepath: str or path: the folder of a SavedModel, or a file that ends in `.tflite` or
                `.onnx`.
            format: str, `"tf_saved_model"`, `"litert"` (`"tflite"` is the same) or `"onnx"`, which
                needs `pip install 'keras_lowrank[onnx]'`.
            verbose: bool or None. Print a line on the result, and the report. None is `True`.
            input_signature: as in `keras.Model.export`. None takes the inputs of `preprocessing` if
                that is a model with inputs, else the model's own, with a free batch size.
            overwrite: bool. Replace what is at `filepath`. Defaults to `False`.
            batch_size: int or None, the batch size to fix in the file. LiteRT in a browser needs
                one: `batch_size=1`. None leaves it as `input_signature` has it.
            example_inputs: inputs to check on, as `predict` takes them: a few are enough. Without,
                those of `representative_data` or `check_data`, or random numbers. A model that
                takes a logarithm, divides by a mask or decodes images needs them.
            quantization: None, or for LiteRT `"float16"` (weights in half precision: half the
                size), `"dynamic_int8"` (weights in int8, activations in float: a quarter), or
                `"int8"` (both in int8).
            representative_data: for `"int8"`, typical inputs that the ranges of the activations
                are taken from, some hundred of them: arrays as `predict` takes them, a
                `tf.data.Dataset` of batches, or a callable as TFLite's converter takes it.
            inference_type: str, for `"int8"`, the type of the file's inputs and outputs:
                `"float32"`, or `"int8"` or `"uint8"` for devices without floating point.
            check_data: `(x, y)`, inputs and targets, labels or one-hot, to compare accuracies on.
            accuracy_drop: float, how much lower than the model's the accuracy on `check_data` may
                be. Defaults to 0.01, one point.
            preprocessing: Keras layer or model that the artefact applies before the model.
            class_labels: list of str. A SavedModel then answers
                `{"scores": outputs, "label": the label of the highest score}`.
            opset_version: int or None, for ONNX, the version of its operations.
            optimizations: list of `tf.lite.Optimize` or None, for LiteRT: Keras's way to ask for
                `quantization`. Pass one of the two.
            representative_dataset: Keras's name for `representative_data`. Pass one of the two.
            target_spec: dict or `tf.lite.TargetSpec` or None, for LiteRT: what the file may use, as
                `{"supported_types": [tf.float16]}`.
            report: bool, or the path of a JSON file to write it to. Measure the artefact beside
                the same model at full rank, a second export, and return the `ExportReport`.
                Defaults to `False`.

        Returns:
            `ExportReport` (size, parameters, multiply-adds, median time of an inference, largest
            difference, accuracy) or, without a report, None.

        Raises:
            FileExistsError: something is at `filepath` and `overwrite` is `False`.
            ImportError: a package that ONNX needs is not installed.
            OSError: a folder that may not be written, or a full disk.
            ValueError: an argument outside its range; a model that fails on random input, or gives
                NaN; an operation that the format has not; or an artefact that does not agree with
                the model. In float, outputs may differ by `1e-4` (relative to outputs above 1).
                Quantised, the accuracy on `check_data` decides or, without, the root mean square
                of the difference relative to that of the outputs: 1% for float16, 10% for int8.
                Nothing is left at `filepath` then.

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
        )
