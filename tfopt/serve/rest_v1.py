"""TensorFlow Serving's REST API: what its bodies mean.

Source: https://www.tensorflow.org/tfx/serving/api_rest
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.config import require
from tfopt.serve.classes import top_classes
from tfopt.serve.description import SIGNATURE, STRING, Description, TensorInfo
from tfopt.serve.repository import Version
from tfopt.serve.tensors import to_array, to_values

_KEYS = ("signature_name", "instances", "inputs", "classification")
_DTYPES = {"float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF", STRING: "DT_STRING"}


def read_request(body: Any, description: Description) -> dict[str, np.ndarray]:
    """The inputs of a predict request, from rows ("instances") or columns ("inputs").

    Raises:
      ValueError: it is no such request; says why.
    """
    require(isinstance(body, dict), f"expected a JSON object, received {_json_type(body)}")
    unknown = sorted(set(body) - set(_KEYS))
    require(not unknown, f"the request has unknown keys: {', '.join(unknown)[:200]}; there are: {', '.join(_KEYS)}")
    signature = body.get("signature_name", "")
    require(
        signature in ("", SIGNATURE, description.signature),
        f"signature_name must be {description.signature!r} or left out, received {str(signature)[:200]!r}",
    )
    require(("instances" in body) != ("inputs" in body), 'give "instances" (rows) or "inputs" (columns), one of them')
    read, key = (_columns, "inputs") if "inputs" in body else (_from_rows, "instances")
    columns = read(body[key], description)
    infos = {info.name: info for info in description.inputs}
    missing, extra = [name for name in infos if name not in columns], [name for name in columns if name not in infos]
    require(
        not missing and not extra,
        f"expected the inputs {', '.join(infos)}"
        + (f"; missing: {', '.join(missing)}" if missing else "")
        + (f"; unknown: {', '.join(extra)[:200]}" if extra else ""),
    )
    return {name: to_array(columns[name], info) for name, info in infos.items()}


def _columns(values: Any, description: Description) -> dict[str, Any]:
    if len(description.inputs) == 1 and not _is_named(values, description.inputs[0]):
        return {description.inputs[0].name: values}
    require(isinstance(values, dict), f'"inputs" must be an object by input name, received {_json_type(values)}')
    return values


def _from_rows(rows: Any, description: Description) -> dict[str, Any]:
    require(isinstance(rows, list) and len(rows) > 0, '"instances" must be a list with at least one example')
    if len(description.inputs) == 1 and not any(_is_named(row, description.inputs[0]) for row in rows):
        return {description.inputs[0].name: rows}
    require(all(isinstance(row, dict) for row in rows), 'each of "instances" must be an object by input name')
    names = set(rows[0])
    require(all(set(row) == names for row in rows), 'the objects in "instances" have different names')
    return {name: [row[name] for row in rows] for name in rows[0]}


def _is_named(value: Any, info: TensorInfo) -> bool:
    """Whether a value is an object by name, and not {"b64": …}, a string."""
    return isinstance(value, dict) and not (info.dtype == STRING and value.keys() == {"b64"})


def write_answer(
    body: Mapping[str, Any], outputs: Mapping[str, np.ndarray], description: Description
) -> dict[str, Any]:
    """The answer to a predict request, in rows or columns as the request.

    Raises:
      ValueError: rows were asked for and the outputs have none, or classes that do not exist.
    """
    values = {name: to_values(each, name) for name, each in outputs.items()}
    answer: dict[str, Any]
    if "inputs" in body:
        answer = {"outputs": values if len(values) > 1 else next(iter(values.values()))}
    elif len(values) == 1:
        answer = {"predictions": next(iter(values.values()))}
    else:
        sizes = {each.shape[:1] for each in outputs.values()}
        require(
            len(sizes) == 1 and () not in sizes, 'the outputs have no rows: ask with "inputs" in place of "instances"'
        )
        answer = {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}
    if "classification" in body:
        answer["classes"] = top_classes(next(iter(outputs.values())), description, body["classification"])
    return answer


def status(versions: Sequence[Version]) -> dict[str, Any]:
    """The state of a model's versions."""
    return {
        "model_version_status": [
            {
                "version": str(each.number),
                "state": each.state,
                "status": {"error_code": "UNKNOWN" if each.error else "OK", "error_message": each.error},
            }
            for each in versions
        ]
    }


def metadata(version: Version) -> dict[str, Any]:
    """The signature of a model, and what travels in its file."""
    description = version.description
    signature = {
        "inputs": {info.name: _tensor(info, description) for info in description.inputs},
        "outputs": {info.name: _tensor(info, description) for info in description.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": version.name, "signature_name": "", "version": str(version.number)},
        "metadata": {
            "signature_def": {"signature_def": {description.signature: signature}},
            "tfopt": dict(description.metadata),
        },
    }


def _tensor(info: TensorInfo, description: Description) -> dict[str, Any]:
    return {
        "dtype": _DTYPES.get(info.dtype, f"DT_{info.dtype.upper()}"),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in description.sizes(info)],
            "unknown_rank": False,
        },
        "name": info.name,
    }


def _json_type(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
