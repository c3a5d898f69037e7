"""What kind of file a path is, who wrote it, and the configs in it; nothing of it is run."""

import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py

from tfopt.files import Path
from tfopt.record import Record

_HDF5 = b"\x89HDF\r\n\x1a\n"
_OTHER_SUFFIXES = {
    ".tflite": "a LiteRT (TFLite) file, whose layers were compiled away. Load the Keras model that it was "
    "made from, or run it with ai_edge_litert.interpreter.Interpreter",
    ".onnx": "an ONNX file. Load the Keras model that it was made from, or rebuild it in Keras",
    ".pt": "a PyTorch file. Rebuild the model in Keras and set its weights",
    ".safetensors": "a file of weights without layers. Build the model in code and set its weights",
    ".index": "a checkpoint: weights without layers. Build the model in code, then restore them with "
    "tf.train.Checkpoint(model=model).read(path)",
    ".json": "an architecture without weights. Use keras.models.model_from_json, then load the weights",
}
_OTHER_SUFFIXES[".pth"] = _OTHER_SUFFIXES[".pt"]
_OTHER_CONTENTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself. Fetch it with git lfs pull",
    b"<!doctype": "a web page, probably an error page that a download saved. Download the file again",
    b"<html": "a web page, probably an error page that a download saved. Download the file again",
}


@dataclasses.dataclass(frozen=True)
class Source(Record):
    """A saved model: its path, format, the Keras version that wrote it ("" if unknown), and its configs.

    `format` is "zip", "hdf5" or "saved_model". `configs` are the parsed JSON configs of the model, or for a
    SavedModel those of each Keras object in it. `compile_config` tells what the model was compiled with.
    """

    path: pathlib.Path
    format: str
    version: str
    configs: tuple[dict[str, Any], ...]
    compile_config: Any = None

    @property
    def legacy(self) -> bool:
        """Whether Keras 2 (tf_keras) wrote it."""
        return not self.version.startswith("3")


def examine(path: Path) -> Source:
    """Finds out what a path holds and reads the configs in it.

    Raises:
      FileNotFoundError: when there is nothing at `path`; names the nearest file.
      ValueError: when it is damaged, or holds something else than a Keras model; says what.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. {_nearest(path)}")
    if path.is_dir():
        from tfopt.load import saved_model

        return saved_model.examine(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty (0 bytes): it was not written to the end. Save or copy it again")
    if head.startswith(b"PK"):
        return _examine_zip(path)
    if head.startswith(_HDF5):
        return _examine_hdf5(path)
    if path.name in ("saved_model.pb", "keras_metadata.pb"):
        raise ValueError(f"{path} is one file of a SavedModel: give its folder {path.parent} instead")
    raise ValueError(f"{path} is {_what(path, head)}")


@contextlib.contextmanager
def named_as(source: Source) -> Iterator[str]:
    """The path under a name with the suffix of its format: both Keras go by the suffix, not the content."""
    suffix = {"zip": ".keras", "hdf5": ".h5", "saved_model": ""}[source.format]
    if source.path.name.endswith(suffix):
        yield os.fspath(source.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder, f"model{suffix}")
        link.symlink_to(source.path.absolute())
        yield os.fspath(link)


@contextlib.contextmanager
def deflated(path: Path) -> Iterator[str]:
    """A copy of a zip archive whose members are compressed.

    From Python 3.13 on, zipfile seeks in the file itself where a member is stored plainly, and TensorFlow's file
    object, through which tf_keras reads, refuses to seek to the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "model.keras")
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
        yield copy


def _what(path: pathlib.Path, head: bytes) -> str:
    """What a file is that is no Keras model, and what to do."""
    for magic, what in _OTHER_CONTENTS.items():
        if head.lower().startswith(magic):
            return what
    suffix = ".tflite" if head[4:8] == b"TFL3" else path.suffix.lower()
    return _OTHER_SUFFIXES.get(
        suffix,
        f"no Keras model: it starts with {head[:8]!r} ({path.stat().st_size:,} bytes). Expected a .keras or "
        ".h5 file, or the folder of a SavedModel. If it was one, it is damaged: save or copy it again",
    )


def _nearest(path: pathlib.Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir():
            folder = folder.parent
        return f"Its folder {path.parent} does not exist either; {folder.absolute()} does"
    names = [each.name for each in folder.iterdir()]
    for cutoff in (0.6, 0.3):
        if near := difflib.get_close_matches(path.name, names, n=1, cutoff=cutoff):
            return f"The nearest name in {folder.absolute()} is {near[0]!r}"
    return f"The folder {folder.absolute()} holds " + (", ".join(sorted(names)[:10]) or "nothing")


def _damaged(path: pathlib.Path, how: object) -> ValueError:
    return ValueError(
        f"{path} is damaged or truncated ({path.stat().st_size:,} bytes): {how}. Save, copy or download it again"
    )


def _parse(path: pathlib.Path, text: bytes | str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"its model config is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise _damaged(path, f"its model config is a {type(config).__name__}, not an object")
    return config


def _examine_zip(path: pathlib.Path) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                raise ValueError(f"{path} is {_OTHER_SUFFIXES['.pt']}")
            if not {"config.json", "metadata.json"} & set(names):
                raise ValueError(
                    f"{path} is a zip file, but no .keras file: it holds no config.json but "
                    f"{', '.join(names[:5]) or 'nothing'}"
                )
            missing = {"config.json", "metadata.json", "model.weights.h5"} - set(names)
            if missing and not any(name.endswith(".weights.json") for name in names):
                raise _damaged(path, f"it lacks {', '.join(sorted(missing))}")
            if bad := archive.testzip():
                raise _damaged(path, f"the checksum of {bad} in it is wrong")
            config = _parse(path, archive.read("config.json"))
            metadata = _parse(path, archive.read("metadata.json"))
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise _damaged(path, error) from error
    version = str(metadata.get("keras_version", ""))
    return Source(path, "zip", version, (config,), config.get("compile_config"))


def _examine_hdf5(path: pathlib.Path) -> Source:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _damaged(path, error) from error
    with file:
        attributes, groups = dict(file.attrs), set(file)
    if "model_config" not in attributes:
        if "layer_names" in attributes or {"layers", "_layer_checkpoint_dependencies", "vars"} & groups:
            raise ValueError(
                f"{path} holds weights only, no layers: build the model in code, then "
                f"model.load_weights({os.fspath(path)!r}). To have both in one file, model.save('name.keras')"
            )
        raise ValueError(
            f"{path} is an HDF5 file, but no Keras model: it has no model_config. It holds "
            f"{', '.join(sorted(groups)[:5]) or 'nothing'}"
        )
    if "model_weights" not in groups:
        raise _damaged(path, "it has a model_config, but no model_weights")
    version = attributes.get("keras_version", "")
    version = version.decode() if isinstance(version, bytes) else str(version)
    training = attributes.get("training_config")
    compile_config = None if training is None else _parse(path, training)
    return Source(path, "hdf5", version, (_parse(path, attributes["model_config"]),), compile_config)
