"""Inspects, converts, exports and merges Keras models on the command line.

    python -m keras_lowrank inspect MODEL.keras
    python -m keras_lowrank inspect MODEL.keras --html report.html
    python -m keras_lowrank convert MODEL.keras --tolerance=0.1
    python -m keras_lowrank convert MODEL.keras LOW_RANK.keras --budget=100000 --exclude=head
    python -m keras_lowrank convert LOW_RANK.keras PLAIN.keras --style=smaller
    python -m keras_lowrank export MODEL.keras saved_models/NAME/1
    python -m keras_lowrank export MODEL.keras --format=litert --quantization=int8 \
        --representative_data=images.npy --check_data=test.npz
    python -m keras_lowrank export MODEL.keras --format=litert --input_shape=64 --import=my_layers
    python -m keras_lowrank adapters COUNTING.adapters.h5
    python -m keras_lowrank merge MODEL.keras COUNTING.adapters.h5 MERGED.keras

Without an output path, files are written next to MODEL.keras: MODEL_low_rank.keras,
MODEL_plain.keras, MODEL_merged.keras, MODEL.tflite, MODEL.onnx, or the folder MODEL/1 of a
SavedModel. An error prints one line on stderr and writes no file. The exit status is 0, 2 for an
error in the arguments, or 1 for any other error.
"""

from keras_lowrank.command_line.main import main

__all__ = ["main"]
