"""The file from which an interrupted training goes on: arrays and numbers, no pickles."""

import hashlib
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.files import atomic_path

Checkpoint = tuple[dict[str, np.ndarray], dict[str, list[float]], int]


def write_checkpoint(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], history: Mapping[str, list[float]], epochs_done: int
) -> None:
    """Writes a checkpoint atomically: an .npz file with the SHA-256 of its bytes behind them.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "checkpoint.npz")
    >>> write_checkpoint(path, {"a/0": np.ones(2)}, {"loss": [0.5]}, 1)
    >>> read_checkpoint(path)
    ({'a/0': array([1., 1.])}, {'loss': [0.5]}, 1)
    """
    meta = json.dumps({"history": dict(history), "epochs_done": epochs_done}).encode()
    everything: dict[str, Any] = {"meta.json": np.frombuffer(meta, np.uint8), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **everything)
    content = buffer.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content + hashlib.sha256(content).digest())


def read_checkpoint(path: pathlib.Path) -> Checkpoint | None:
    """(arrays, history, finished epochs) of a checkpoint; None where there is none.

    Raises:
      ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    whole, size = path.read_bytes(), hashlib.sha256().digest_size
    content, checksum = whole[:-size], whole[-size:]
    # Zip's own checksums leave out its headers.
    if hashlib.sha256(content).digest() != checksum:
        raise ValueError(
            f"the checkpoint {path} is damaged (its checksum does not match): delete it to start this stage again"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(arrays.pop("meta.json").tobytes())
    return arrays, meta["history"], meta["epochs_done"]
