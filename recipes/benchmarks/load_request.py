"""A request to a server of tfopt, prepared once: KServe V2 with binary tensors."""

import dataclasses
import json
import pathlib
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.benchmarks.load_client import Load
from tfopt.config import require
from tfopt.serve.rest_v2 import DATATYPES, HEADER_LENGTH


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Files with a request and its right answer, and what a `Load` needs besides.

    Args:
      load: of the default rate and time; `dataclasses.replace` sets others.
      answer: what the server has answered.
    """

    load: Load
    answer: bytes


def prepare(
    url: str,
    folder: pathlib.Path,
    name: str = "model",
    examples: int = 1,
    arrays: Mapping[str, np.ndarray] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Prepared:
    """Asks a server what a model takes, and once for what it answers.

    Args:
      url: of the server, such as "http://127.0.0.1:8501".
      folder: for the files.
      name: of the model.
      examples: in a request, at least 1, where `arrays` are not given.
      arrays: inputs by name, in the types that the model takes or stores; None: random ones.
      headers: further ones, such as a token.

    Raises:
      ValueError: the URL is none that the load generator speaks.
      OSError: the server cannot be reached, or answers with an error.
    """
    parts = urllib.parse.urlsplit(url)
    require(
        parts.scheme == "http" and parts.hostname is not None and parts.port is not None,
        f"expected a URL such as http://127.0.0.1:8501, received {url}: the load generator speaks no TLS",
    )
    headers = dict(headers or {})
    if arrays is None:
        arrays = _random(_get(f"{url}/v2/models/{name}", headers), examples)
    described, pieces = [], []
    for key, values in arrays.items():
        datatype = next(each for each, dtype in DATATYPES.items() if dtype == values.dtype.name)
        pieces.append(np.ascontiguousarray(values).tobytes())
        size = {"binary_data_size": len(pieces[-1])}
        described.append({"name": key, "datatype": datatype, "shape": list(values.shape), "parameters": size})
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    headers |= {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    body, answer = folder / "request.bin", folder / "answer.bin"
    body.write_bytes(b"".join([head, *pieces]))
    path = f"/v2/models/{name}/infer"
    request = urllib.request.Request(url + path, body.read_bytes(), headers)
    with urllib.request.urlopen(request) as response:
        answer.write_bytes(response.read())
    load = Load(parts.hostname or "", parts.port or 0, path, str(body), headers, expected=str(answer))
    return Prepared(load, answer.read_bytes())


def _get(url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers))) as response:
        return json.load(response)


def _random(metadata: Mapping[str, Any], examples: int) -> dict[str, np.ndarray]:
    generator, found = np.random.default_rng(0), {}
    for info in metadata["inputs"]:
        dtype = np.dtype(DATATYPES[info["datatype"]])
        # Open axes but the first are 1 long.
        shape = [examples if place == 0 and size < 0 else max(1, size) for place, size in enumerate(info["shape"])]
        values = generator.random(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        found[info["name"]] = values.astype(dtype)
    return found
