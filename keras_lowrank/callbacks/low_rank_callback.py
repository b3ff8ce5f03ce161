"""The base class of callbacks that read ranks."""

import keras


class LowRankCallback(keras.callbacks.Callback):
    """A callback that needs a `LowRankModel`."""

    def set_model(self, model: keras.Model) -> None:
        if not hasattr(model, "ranks"):
            raise ValueError(
                f"`{type(self).__name__}` needs a `LowRankModel`, whose layers have ranks. "
                f"Received: a {type(model).__name__} {model.name!r}"
            )
        super().set_model(model)
