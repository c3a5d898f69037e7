"""The KServe V2 inference protocol over REST: what its bodies mean, with binary tensors.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and
https://github.com/kserve/open-inference-protocol, with Triton's binary data and classification extensions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.config import require
from tfopt.serve.classes import top_classes
from tfopt.serve.description import DATATYPES, STRING, Description, TensorInfo
from tfopt.serve.repository import Version
from tfopt.serve.tensors import dump, parse, to_array, to_values
from tfopt.serve.wire import from_bytes, to_bytes

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data", "classification")
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_MOST_AXES = 32


def datatype(dtype: str) -> str:
    """The protocol's name of a type."""
    return _NAMES.get(dtype, dtype.upper())


def split(body: bytes, header_length: str | None) -> tuple[Any, memoryview]:
    """The JSON of a request, and the binary tensors behind it.

    Raises:
      ValueError: the length of the JSON is none.
    """
    if header_length is None:
        return parse(body), memoryview(b"")
    is_length = header_length.isascii() and header_length.isdecimal() and len(header_length) < 19
    require(
        is_length and int(header_length) <= len(body),
        f"{HEADER_LENGTH} must be 0 to {len(body)}, the length of the body, received {header_length[:40]!r}",
    )
    size = int(header_length)
    return parse(body[:size]), memoryview(body)[size:]


def read_request(body: Any, binary: memoryview, description: Description) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs of an inference request, and whether quantized ones came as they are stored.

    Raises:
      ValueError: it is no such request; says why.
    """
    require(isinstance(body, dict), "expected a JSON object")
    require(isinstance(body.get("id"), str | None), '"id" must be a text')
    given = body.get("inputs")
    require(isinstance(given, list) and len(given) > 0, '"inputs" must be a list with at least one tensor')
    assert isinstance(given, list)
    infos = {info.name: info for info in description.inputs}
    found: dict[str, np.ndarray] = {}
    stored = False
    start = 0
    for each in given:
        info = _info(each, infos, "input")
        require(info.name not in found, f"the input {info.name!r} is given twice")
        dtype = DATATYPES.get(str(each.get("datatype")), "")
        require(
            dtype in (info.dtype, info.stored),
            f"the input {info.name!r} has the datatype {str(each.get('datatype'))[:40]!r}, expected "
            f"{' or '.join(map(datatype, dict.fromkeys((info.dtype, info.stored))))}",
        )
        shape = _shape(each.get("shape"), info)
        size = _parameters(each).get("binary_data_size")
        if size is None:
            found[info.name] = _from_json(each, info, dtype, shape)
        else:
            is_size = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= len(binary) - start
            require(
                is_size,
                f"binary_data_size of {info.name!r} is {str(size)[:40]}, and {len(binary) - start} bytes are left",
            )
            require("data" not in each, f"the input {info.name!r} has both data and binary_data_size")
            found[info.name] = _from_binary(binary[start : start + size], info, dtype, shape)
            start += size
        stored |= info.is_quantized and dtype == info.stored
    require(start == len(binary), f"{len(binary) - start} bytes are left behind the last binary tensor")
    missing = [name for name in infos if name not in found]
    require(not missing, f"missing inputs: {', '.join(missing)}")
    return found, stored


def _info(each: Any, infos: Mapping[str, TensorInfo], what: str) -> TensorInfo:
    require(isinstance(each, dict), f"each {what} must be an object")
    name = each.get("name")
    require(
        isinstance(name, str) and name in infos,
        f"there is no {what} {str(name)[:200]!r}; there are: {', '.join(infos)}",
    )
    return infos[name]


def _parameters(each: Mapping[str, Any]) -> Mapping[str, Any]:
    # Clients that write out every field write null.
    parameters = {} if each.get("parameters") is None else each["parameters"]
    require(isinstance(parameters, dict), '"parameters" must be an object')
    return parameters


def _shape(shape: Any, info: TensorInfo) -> tuple[int, ...]:
    is_shape = (
        isinstance(shape, list)
        and len(shape) <= _MOST_AXES
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63 for size in shape)
    )
    require(is_shape, f"the shape of {info.name!r} must be a list of whole numbers, at least 0")
    return tuple(shape)


def _from_json(each: Mapping[str, Any], info: TensorInfo, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    require("data" in each, f"the input {info.name!r} has neither data nor the parameter binary_data_size")
    array = to_array(each["data"], info, dtype)
    require(
        array.size == math.prod(shape),
        f"the input {info.name!r} has {array.size:,} values, its shape {list(shape)} needs {math.prod(shape):,}",
    )
    return array.reshape(shape)


def _from_binary(content: memoryview, info: TensorInfo, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return from_bytes(content, dtype, shape)
    except ValueError as error:
        raise ValueError(f"the input {info.name!r}: {error}") from error


Chosen = list[tuple[str, Mapping[str, Any]]]


def read_outputs(body: Mapping[str, Any], description: Description, stored: bool) -> tuple[Chosen, bool, bool]:
    """Which outputs are asked for.

    Args:
      body: of the request.
      description: of the model.
      stored: whether the inputs came as they are stored: so do the outputs, unless the parameter "quantized" says
        otherwise.

    Returns:
      Each output with its parameters; whether they are binary unless these say otherwise; whether as they are stored.

    Raises:
      ValueError: one of them does not exist.
    """
    infos = {info.name: info for info in description.outputs}
    given = body.get("outputs") or []
    require(isinstance(given, list), '"outputs" must be a list')
    chosen = [(_info(each, infos, "output").name, _parameters(each)) for each in given]
    require(len({name for name, _ in chosen}) == len(chosen), "an output is asked for twice")
    binary = _parameters(body).get("binary_data_output", False)
    require(isinstance(binary, bool), "binary_data_output must be true or false")
    for _, parameters in chosen:
        require(isinstance(parameters.get("binary_data", False), bool), "binary_data must be true or false")
    raw = _parameters(body).get("quantized", stored)
    require(isinstance(raw, bool), "quantized must be true or false")
    return chosen or [(name, {}) for name in infos], binary, raw


def write_answer(
    body: Mapping[str, Any],
    version: Version,
    outputs: Mapping[str, np.ndarray],
    chosen: Chosen,
    binary: bool,
) -> tuple[bytes, int | None]:
    """The answer to an inference request, and the length of its JSON where binary tensors follow.

    Raises:
      ValueError: classes are asked for that do not exist.
    """
    described, pieces = [], []
    for name, parameters in chosen:
        values = outputs[name]
        if "classification" in parameters:
            values = _classes(values, version.description, parameters["classification"])
        dtype = STRING if values.dtype.kind in "OSU" else values.dtype.name
        answer: dict[str, Any] = {"name": name, "datatype": datatype(dtype), "shape": list(values.shape)}
        if parameters.get("binary_data", binary):
            content = bytes(to_bytes(values)[1])
            answer["parameters"] = {"binary_data_size": len(content)}
            pieces.append(content)
        else:
            answer["data"] = to_values(values.reshape(-1), name)
        described.append(answer)
    head: dict[str, Any] = {"model_name": version.name, "model_version": str(version.number)}
    if body.get("id") is not None:
        head["id"] = body["id"]
    encoded = dump({**head, "outputs": described})
    return (b"".join([encoded, *pieces]), len(encoded)) if pieces else (encoded, None)


def _classes(values: np.ndarray, description: Description, count: Any) -> np.ndarray:
    """As Triton writes them, "score:index:label"."""
    best = top_classes(values, description, count)
    texts = [[f"{each['score']:f}:{each['index']}:{each['label']}".rstrip(":") for each in row] for row in best]
    array = np.array(texts, object)
    return array if values.ndim == 2 else array[0]


def metadata(version: Version, numbers: Sequence[int]) -> dict[str, Any]:
    """What a model takes and gives."""
    description = version.description
    return {
        "name": version.name,
        "versions": [str(number) for number in numbers],
        "platform": {"litert": "litert_tflite", "keras": "keras"}.get(description.kind, "tensorflow_savedmodel"),
        "inputs": [_tensor(info, description) for info in description.inputs],
        "outputs": [_tensor(info, description) for info in description.outputs],
        "parameters": dict(description.metadata),
    }


def _tensor(info: TensorInfo, description: Description) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": info.name,
        "datatype": datatype(info.dtype),
        "shape": description.sizes(info),
    }
    if info.is_quantized:
        found["parameters"] = {
            "stored_datatype": datatype(info.stored),
            "scale": info.scale,
            "zero_point": info.zero_point,
        }
    return found
