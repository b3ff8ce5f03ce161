"""What the callbacks that read ranks ask of a model."""

import keras


class LowRankCallback(keras.callbacks.Callback):
    """A callback of a `LowRankModel`."""

    def set_model(self, model):
        if not hasattr(model, "ranks"):
            raise ValueError(
                f"`{type(self).__name__}` needs a `LowRankModel`, whose layers have ranks. "
                f"Received: a {type(model).__name__} {model.name!r}"
            )
        super().set_model(model)
