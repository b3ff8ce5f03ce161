"""Keras models on the command line: look into one, convert it, convert it back, and export it.

    python -m keras_lowrank inspect MODEL.keras
    python -m keras_lowrank inspect MODEL.keras --html report.html
    python -m keras_lowrank convert MODEL.keras --tolerance=0.1
    python -m keras_lowrank convert MODEL.keras LOW_RANK.keras --budget=100000 --exclude=head
    python -m keras_lowrank convert LOW_RANK.keras PLAIN.keras --style=smaller
    python -m keras_lowrank export MODEL.keras saved_models/NAME/1
    python -m keras_lowrank export MODEL.keras --format=litert --quantization=int8 \
        --representative_data=images.npy --check_data=test.npz
    python -m keras_lowrank export MODEL.keras --format=litert --input_shape=64 --import=my_layers

What is written goes beside MODEL.keras where no other place is named: to MODEL_low_rank.keras or
MODEL_plain.keras; to MODEL.tflite, MODEL.onnx, or the folder MODEL/1 of a SavedModel. The exit
status is 0; 2 after an error in the arguments themselves; 1 after any other error. An error is one
line on stderr, and no file is then written.
"""

from keras_lowrank.command_line.main import main

__all__ = ["main"]
