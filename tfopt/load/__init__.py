"""Loads saved models of Keras 2 and 3 as Keras 3 models."""

import warnings
from collections.abc import Mapping
from typing import Any

import keras

from tfopt.files import Path
from tfopt.graph import deep_graphs
from tfopt.load.safety import refuse_code, refuse_unknown
from tfopt.load.source import Source, examine, named_as

__all__ = ["load_model"]


def load_model(path: Path, custom_objects: Mapping[str, Any] | None = None, safe_mode: bool = True) -> keras.Model:
    """Loads a saved model of Keras 2 or Keras 3 as a Keras 3 model.

    It takes `.keras` and `.h5` files of both, `.keras` files that are HDF5 inside, and SavedModel folders
    that Keras 2 wrote; the content decides, not the suffix. Keras 2 files are read by tf_keras, rebuilt
    layer by layer, and compared with tf_keras on a random batch: outputs agree to 1e-5 of their largest
    value, or of 1 if that is larger (masked steps aside; 2e-3 and 2e-2 where layers compute in float16 and
    bfloat16).

    Names stay, except that "/" becomes "_" and inputs given as a dict are named as its keys; weights and
    trainable flags stay. What a model was compiled with stays for Keras 3 files; from a Keras 2 file the
    model is not compiled. A SavedModel without Keras layers (model.export, plain TensorFlow) is refused:
    it holds compiled functions only.

    Args:
      path: the file, or the folder of a SavedModel.
      custom_objects: name to class or function, written for Keras 3, of what is not Keras' own. What is
        registered with `keras.saving.register_keras_serializable` need not be given. A SavedModel holds what
        a custom layer computed, and the given class is compared with it; the other formats hold only its
        config and weights, so that there the class is taken at its word.
      safe_mode: whether to refuse marshalled Python code (Lambda layers). Set to False only if you trust the
        origin of the file: its code could do anything on this machine.

    Raises:
      FileNotFoundError: when there is nothing at `path`; names the nearest file.
      TypeError: when a custom object is a tf_keras class.
      ValueError: when it is damaged, holds no Keras layers, or has something that is refused or unknown;
        says what, and what to do.
      RuntimeError: when the outputs differ from those of tf_keras; names the first layer that differs.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "model.keras")
    >>> keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out")]).save(file)
    >>> load_model(file).get_layer("out").units
    2
    """
    custom_objects = dict(custom_objects or {})
    source = examine(path)
    if safe_mode:
        refuse_code(source)
    _check_custom_objects(custom_objects)
    refuse_unknown(source, custom_objects)
    if source.legacy:
        from tfopt.load.legacy import load_legacy

        return load_legacy(source, custom_objects, safe_mode)
    return _load_keras3(source, custom_objects, safe_mode)


def _check_custom_objects(custom_objects: Mapping[str, Any]) -> None:
    for name, each in custom_objects.items():
        if isinstance(each, type) and any(base.__module__.startswith("tf_keras.") for base in each.__mro__):
            raise TypeError(
                f"custom_objects[{name!r}] is a class of tf_keras (Keras 2), but the loaded model is a Keras "
                "3 model: give the same class written with `import keras`"
            )


@deep_graphs()
def _load_keras3(source: Source, custom_objects: dict[str, Any], safe_mode: bool) -> keras.Model:
    with named_as(source) as path:
        try:
            return keras.saving.load_model(path, custom_objects, compile=True, safe_mode=safe_mode)
        except OSError as error:
            raise ValueError(f"{source.path} is damaged or truncated: {error}. Save or copy it again") from error
        except (TypeError, ValueError) as error:
            if source.compile_config is None:
                raise
            model = keras.saving.load_model(path, custom_objects, compile=False, safe_mode=safe_mode)
            warnings.warn(
                f"{source.path} is loaded uncompiled: what it was compiled with cannot be restored "
                f"({error}). Pass its own losses and metrics in custom_objects, or compile the model",
                stacklevel=3,
            )
            return model
