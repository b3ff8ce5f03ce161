"""How a callback replaces one execution of the train function."""

from collections.abc import Callable, Iterator
from typing import Any

import keras


def replace_next_execution(
    model: keras.Model, replacement: Callable[[Callable, Iterator], dict[str, Any]]
) -> None:
    """Lets `fit` call `replacement(run, iterator)` once, instead of `run(iterator)`.

    Call it in `on_train_batch_begin`. Keras passes one dictionary of logs from callback to
    callback, so earlier callbacks miss what a later one adds. Every callback, the progress bar and
    the history see the logs that the train function returns.

    Args:
        model: the `keras.Model` in training.
        replacement: callable that returns logs. `run` is the model's train function.
    """
    run = model.train_function

    def once(iterator: Iterator) -> dict[str, Any]:
        # Restored first, so that an error in the execution does not leave the replacement.
        model.train_function = run
        return replacement(run, iterator)

    model.train_function = once
