"""What recipes of images begin with: a float model, trained or loaded, and what happens to training images."""

from collections.abc import Callable

import keras

import tfopt


def float_model(
    model: str | None,
    filters: int,
    epochs: int,
    learning_rate: float,
    more_epochs: int = 0,
    more_rate: float = 5e-4,
    factory: Callable[..., keras.Model] = tfopt.models.ds_cnn,
) -> list[tfopt.Stage]:
    """A network to train, or a model to load and train on; the last stage is the one that has the float model."""
    if model is None:
        fit = tfopt.Fit(tfopt.Cosine(learning_rate))
        return [tfopt.Build(factory, {"filters": filters}), tfopt.Train(epochs, fit=fit)]
    more = [tfopt.Train(more_epochs, fit=tfopt.Fit(tfopt.Cosine(more_rate)))] if more_epochs else []
    return [tfopt.LoadModel(model), *more]


def augmented(flip: bool, shift: int) -> list[tfopt.Stage]:
    """Training images mirrored, and moved by up to `shift` pixels; nothing where neither is asked for."""
    kinds = [tfopt.augment.Flip()] * flip + [tfopt.augment.PadCrop(shift)] * (shift > 0)
    return [tfopt.Augment(tuple(kinds))] if kinds else []
