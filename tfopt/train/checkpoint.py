"""The file from which an interrupted training goes on: arrays and numbers, no pickles."""

import json
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.files import atomic_path

Checkpoint = tuple[dict[str, np.ndarray], dict[str, list[float]], int]


def write_checkpoint(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], history: Mapping[str, list[float]], epochs_done: int
) -> None:
    """Writes a checkpoint atomically.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "checkpoint.npz")
    >>> write_checkpoint(path, {"a/0": np.ones(2)}, {"loss": [0.5]}, 1)
    >>> read_checkpoint(path)
    ({'a/0': array([1., 1.])}, {'loss': [0.5]}, 1)
    """
    meta = json.dumps({"history": dict(history), "epochs_done": epochs_done}).encode()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        everything: dict[str, Any] = {"meta.json": np.frombuffer(meta, np.uint8), **arrays}
        np.savez(file, **everything)


def read_checkpoint(path: pathlib.Path) -> Checkpoint | None:
    """(arrays, history, finished epochs) of a checkpoint; None where there is none.

    Raises:
      ValueError: the file is damaged; zip's checksums tell.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta.json").tobytes())
        return arrays, meta["history"], meta["epochs_done"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"the checkpoint {path} is damaged ({error}): delete it to start this stage again") from error
