"""Augmentations as a layer of a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.augment.base import Augmentation, chain
from tfopt.augment.seeds import fold
from tfopt.config import require


@keras.saving.register_keras_serializable("tfopt")
class AugmentationLayer(keras.layers.Layer):
    """Augments what a model is trained on; when it predicts, nothing changes.

    In the pipeline (`Data(augment=...)`) the processors of the host do the work while an accelerator trains, each image
    has its own seed, and a resumed training sees the same images. As a layer, the work is part of the training step.

    Args:
      augmentations: one after the other, of one kind; they must not change the shape or type.
      value_range: of float images: what stands for black and for the highest value.
      seed: of the random numbers, which are others at each call; None: drawn.

    Raises:
      TypeError: something else than augmentations.
      ValueError: augmentations that change the shape or type, or inputs that they cannot take.

    >>> from tfopt.augment import Flip
    >>> layer = AugmentationLayer([Flip(1.0)])
    >>> layer(tf.constant([[[[0.0], [1.0]]]]), training=True).numpy().ravel()
    array([1., 0.], dtype=float32)
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        value_range: tuple[float, float] = (0.0, 1.0),
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Bytes stay bytes.
        super().__init__(**{"autocast": False, **kwargs})
        # XLA has no operations that sort images apart or move their pixels; Keras then compiles without it.
        self.supports_jit = False
        for each in augmentations:
            if not isinstance(each, Augmentation):
                raise TypeError(f"augmentations must be those of tfopt.augment, received {each!r}")
        low, high = value_range
        require(low < high, f"value_range must rise, received {value_range}")
        self.augmentations, self.value_range = tuple(augmentations), (low, high)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Changes a batch while training."""
        if not training or not self.augmentations:
            return inputs
        upper, lower = tf.unstack(tf.cast(self.generator.next(), tf.int64))
        seeds = fold(upper * 2**32 + lower, tf.range(tf.shape(inputs)[0], dtype=tf.int64))
        low, high = self.value_range
        scales = inputs.dtype.is_floating and (low, high) != (0.0, 1.0)
        changed = chain(self.augmentations, (inputs - low) / (high - low) if scales else inputs, seeds)
        changed = changed * (high - low) + low if scales else changed
        require(
            changed.shape.is_compatible_with(inputs.shape) and changed.dtype == inputs.dtype,
            f"{self.name} makes {changed.dtype.name} of shape {changed.shape} of {inputs.dtype.name} of shape "
            f"{inputs.shape}: leave out what changes the type or the shape",
        )
        return changed

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {
            **super().get_config(),
            "augmentations": [{"kind": type(each).__name__, **dataclasses.asdict(each)} for each in self.augmentations],
            "value_range": self.value_range,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AugmentationLayer":
        """From what `get_config` gave."""
        return cls(**{**config, "augmentations": [_augmentation(each) for each in config["augmentations"]]})


def _augmentation(content: Mapping[str, Any]) -> Augmentation:
    from tfopt import augment, signals, text

    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    name = fields.pop("kind")
    known: dict[str, Any] = {}
    for module in (augment, signals, text):
        known.update(vars(module))
    found = known.get(name)
    if not (isinstance(found, type) and issubclass(found, Augmentation)):
        raise ValueError(f"there is no augmentation {name!r} in tfopt: one of your own cannot be loaded from a file")
    if isinstance(fields.get("ranges"), Mapping):
        fields["ranges"] = augment.Ranges(**fields["ranges"])
    return found(**fields)
