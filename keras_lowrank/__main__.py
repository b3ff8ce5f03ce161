"""`python -m keras_lowrank`: see `keras_lowrank.command_line`."""

from absl import logging

from keras_lowrank.command_line import main

if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    main()
