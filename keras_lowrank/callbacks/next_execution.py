"""How a callback takes part in the next execution of the train function."""


def replace_next_execution(model, replacement):
    """Has `fit` call `replacement(run, iterator)` once, in place of `run(iterator)`.

    To be called in `on_train_batch_begin`. Keras hands one dictionary of logs to all callbacks in
    their order, so that what a callback adds to it is unknown to those before it; what the train
    function returns is known to all of them, to the progress bar and to the history.

    Args:
        model: the `keras.Model` in training.
        replacement: callable; `run` is the train function of the model. It returns logs.
    """
    run = model.train_function

    def once(iterator):
        # First of all: an error in the execution must not leave the replacement in place.
        model.train_function = run
        return replacement(run, iterator)

    model.train_function = once
