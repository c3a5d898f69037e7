"""Refuses what a saved model must not bring along, from its configs alone, before anything is built."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfopt.load.ops import OPS
from tfopt.load.saved_model import side_effects
from tfopt.load.source import Source

_UNEXPORTED = (
    "Functional",
    "ConvLSTMCell",
    "PolicyV1",
    "TensorShape",
    "TypeSpec",
    "DTypePolicy",
    "DTypePolicyMap",
)
_COMPILED = ("compile_config", "training_config")


def refuse_code(source: Source) -> None:
    """Refuses a saved model that holds marshalled Python code or, as a SavedModel, touches files.

    Raises:
      ValueError: names the layer that holds the code, and the way out.
    """
    for owner, entry in _entries((source.configs, source.compile_config)):
        if entry.get("class_name") == "__lambda__" or any(
            key.endswith("_type") and value == "lambda" for key, value in entry.items()
        ):
            raise ValueError(
                f"{source.path}: the layer {owner!r} holds marshalled Python code (a Lambda), which could "
                "do anything on this machine. Replace it by an own layer class or keras.ops in the code that "
                "made the model; or, only if you trust the file's origin, load it with safe_mode=False"
            )
    if source.format == "saved_model" and (found := side_effects(source.path)):
        raise ValueError(
            f"{source.path}: its graph has the operations {', '.join(sorted(found))}, which touch files or "
            "call Python. Only if you trust its origin, load it with safe_mode=False"
        )


def refuse_unknown(source: Source, custom_objects: Mapping[str, Any]) -> None:
    """Refuses a saved model with classes, functions or operations that cannot be rebuilt in Keras 3.

    No module that a file names is ever imported: an object is Keras' own, registered, or in custom_objects.

    Raises:
      ValueError: names the layer and what to give.
    """
    for owner, entry in _entries(source.configs, skip=_COMPILED):
        name = _name(entry)
        if name is None or name.startswith("__") or lookup(entry, custom_objects) is not None:
            continue
        if name == "TensorFlowOpLayer":
            raise ValueError(
                f"{source.path}: the layer {owner!r} is an operation as TensorFlow 2.0 to 2.3 recorded it, "
                "which is not supported. Build the model from its code with a newer TensorFlow, load the "
                "weights, and save it again"
            )
        if name in ("TFOpLambda", "SlicingOpLambda"):
            symbol = entry["config"].get("function")
            if symbol not in OPS:
                raise ValueError(
                    f"{source.path}: the layer {owner!r} calls tf.{symbol}, which has no counterpart in "
                    "keras.ops known here. Replace it in the code that made the model by a layer or another "
                    "operation, and save it again"
                )
        elif not _is_builtin(entry, name, source.legacy):
            what = "calls the function" if entry["class_name"] == "function" else "needs the class"
            given = f"custom_objects={{{name!r}: {name.split('>')[-1]}}}"
            raise ValueError(
                f"{source.path}: the layer {owner!r} {what} {name!r}, which is neither Keras' own nor "
                f"registered. Pass it, written for Keras 3: load_model(path, {given})"
            )


def lookup(entry: Mapping[str, Any], custom_objects: Mapping[str, Any]) -> Any:
    """The custom class or function that a serialized object means, or None."""
    name = _name(entry)
    for key in (entry.get("registered_name"), name, name and name.split(">")[-1]):
        if key and key != "function":
            found = keras.saving.get_registered_object(key, custom_objects=dict(custom_objects))
            if found is not None:
                return found
    return None


def _entries(value: Any, owner: str = "", skip: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object in nested configs, with the name of the layer that it belongs to."""
    if isinstance(value, dict):
        config = value.get("config")
        own = value.get("name") or (config.get("name") if isinstance(config, dict) else None)
        owner = own if isinstance(own, str) else owner
        yield owner, value
        for key, each in value.items():
            if key not in skip:
                yield from _entries(each, owner, skip)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _entries(each, owner, skip)


def _name(entry: Mapping[str, Any]) -> str | None:
    name = entry.get("config") if entry.get("class_name") == "function" else entry.get("class_name")
    return name if isinstance(name, str) and "config" in entry else None


def _is_builtin(entry: Mapping[str, Any], name: str, legacy: bool) -> bool:
    """Whether a serialized object is Keras' own; the module that it claims is compared, never imported."""
    claimed = entry.get("module", "keras")
    package = claimed.split(".")[0] if isinstance(claimed, str) else "" if not legacy else "keras"
    own = ("keras", "builtins", "tf_keras", "tensorflow") if legacy else ("keras", "builtins")
    if package not in own:
        return False
    if not legacy and package == "keras" and "module" in entry:
        return True  # Keras 3 looks there itself, and refuses what is not a layer or the like.
    root: Any = importlib.import_module("tf_keras") if legacy else keras
    places = [
        root.layers,
        root.models,
        root.initializers,
        root.regularizers,
        root.constraints,
        root.activations,
    ]
    if legacy:
        experimental = root.layers.experimental
        places += [root.mixed_precision, experimental, experimental.preprocessing]
    return name in _UNEXPORTED or any(hasattr(place, name) for place in places)
