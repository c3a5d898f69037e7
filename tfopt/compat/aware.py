"""`AwareModel`: a quantization-aware model that TFLiteConverter converts, and that preserves zeros and clusters."""

import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfopt.clusters import FixedClusters
from tfopt.invariants import Constraints, FixedMask, add_constraints
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.frozen import frozen


@keras.saving.register_keras_serializable("tfopt")
class AwareModel(keras.Model):
    """What `quantize_model` and `quantize_apply` return.

    `tf.lite.TFLiteConverter.from_keras_model(model)` and `model.export` read it as its integer file computes: with
    integer weights and ranges as constants. Wherever it is called it computes with its variables.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._preserves: tuple[str, ...] = ()
        self._keeping: dict[str, Constraints] = {}
        # Calls of a model look in its class. Who takes this attribute of the model itself, as both exporters do, wants
        # a function to trace; under it ranges must be constants, from which the converter makes integers.
        self.__dict__["__call__"] = self._call_for_export

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Keras' own; the converter's second way is refused where its first one was."""
        # Open where tf_keras is loaded, it would swallow the error of `_call_for_export` and write a file of chance.
        if tf.inside_function() and tf.compat.v1.get_default_graph().name.startswith("_wrapped_model"):
            with tf.init_scope():
                self._require_ranges()
        return super().__call__(*args, **kwargs)

    def preserve(self, what: tuple[str, ...]) -> None:
        """Has the weights keep what they are now.

        Args:
          what: "zeros": weights that are zero stay zero. "clusters": weights that share a value go on sharing one.
        """
        self._preserves = tuple(what)
        self._attach()

    def make_train_function(self, force: bool = False) -> Any:
        """Keras' own, with what is to be preserved as constraints: those of a loaded model are made here."""
        if force or self.train_function is None:
            self._attach()
        return super().make_train_function(force)

    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Keras' own; zeros and clusters are those of the new weights then."""
        loaded = super().load_weights(*args, **kwargs)
        self._attach()
        self.train_function = None
        return loaded

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "preserves": list(self._preserves)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "AwareModel":
        """From what `get_config` gave."""
        config = dict(config)
        preserves = config.pop("preserves")
        model = super().from_config(config, custom_objects=custom_objects)
        model._preserves = tuple(preserves)
        return model

    def _attach(self) -> None:
        for variable in self.trainable_variables:
            if len(variable.shape) < 2 or not self._preserves:
                continue
            if variable.path not in self._keeping:
                self._keeping[variable.path] = Constraints([])
                add_constraints(variable, [self._keeping[variable.path]])
            values = keras.ops.convert_to_numpy(variable)
            parts: list[Any] = []
            # What is zero everywhere was never trained.
            if "zeros" in self._preserves and (values == 0).any() and values.any():
                parts.append(FixedMask(variable))
            if "clusters" in self._preserves and len(np.unique(values)) < values.size:
                parts.append(FixedClusters(variable))
            self._keeping[variable.path].parts = tuple(parts)

    def _call_for_export(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            with tf.init_scope():
                self._require_ranges()
                stack.enter_context(frozen(self))
            return self(*args, **kwargs)

    def _require_ranges(self) -> None:
        quantizers = [layer for layer in self._flatten_layers() if isinstance(layer, FakeQuant)]
        missing = [layer.name for layer in quantizers if not layer.is_calibrated]
        if missing:
            message = (
                f"the model {self.name!r} does not know the ranges of {len(missing)} of its tensors yet: train it for "
                "some steps, or show it data with tfopt.calibrate(model, data), before it is converted"
            )
            # TFLiteConverter swallows the error; without tf_keras it then fails with one of its own that says nothing.
            logging.error(message)
            raise ValueError(message)
