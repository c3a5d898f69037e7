"""Refuses what a saved model must not bring along, from its configs alone, before anything is built."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfopt.load.ops import OPS
from tfopt.load.saved_model import side_effects
from tfopt.load.source import Source

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
                f"{source.path}: the layer {owner!r} holds marshalled Python code (a Lambda), which could do "
                "anything on this machine. Replace it by an own layer class or keras.ops in the code that made "
                "the model; or, only if you trust the file's origin, load it with safe_mode=False"
            )
    if source.format == "saved_model" and (found := side_effects(source.path)):
        raise ValueError(
            f"{source.path}: its graph has the operations {', '.join(sorted(found))}, which touch files or call "
            "Python. Only if you trust its origin, load it with safe_mode=False"
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
        if name in ("TFOpLambda", "SlicingOpLambda"):
            symbol = entry["config"].get("function")
            if symbol not in OPS:
                raise ValueError(f"{source.path}: the layer {owner!r} calls tf.{symbol}, which has no counterpart "
                                 "in keras.ops known here. Replace it in the code that made the model by a layer "
                                 "or another operation, and save it again")  # fmt: skip
        elif not _is_builtin(entry, name, source.legacy):
            kind = "calls the function" if entry["class_name"] == "function" else "needs the class"
            raise ValueError(
                f"{source.path}: the layer {owner!r} {kind} {name!r}, which is neither Keras' own nor registered. "
                f"Pass it, written for Keras 3: load_model(path, custom_objects={{{name!r}: {name.split('>')[-1]}}})"
            )


def unknown_in_compile_config(source: Source, custom_objects: Mapping[str, Any]) -> list[str]:
    """Names of losses, metrics or optimizers that a Keras 3 model was compiled with and that are not known."""
    return [
        name
        for _, entry in _entries(source.compile_config)
        if (name := _name(entry)) and lookup(entry, custom_objects) is None and not _is_builtin(entry, name, False)
    ]


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
    module = entry.get("module")
    if not legacy:
        return module is None and "module" not in entry or str(module).split(".")[0] in ("keras", "builtins")
    if module is not None and module.split(".")[0] not in ("keras", "tf_keras", "builtins"):
        return False
    import tf_keras

    places = (
        tf_keras.layers, tf_keras.models, tf_keras.initializers, tf_keras.regularizers, tf_keras.constraints,
        tf_keras.activations, tf_keras.mixed_precision, tf_keras.layers.experimental.preprocessing,
        tf_keras.layers.experimental,
    )  # fmt: skip
    return name in ("Functional", "PolicyV1", "TensorShape", "TypeSpec") or any(hasattr(at, name) for at in places)
