"""What travels in a .tflite file beside the graph: class names, and how inputs are prepared."""

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfopt.config import require
from tfopt.tflite.flatbuffer import FlatBuffer

NAME = "tfopt"
_MOST_LABELS_BYTES = 1 << 22


def add_metadata(content: bytes, values: Mapping[str, Any]) -> bytes:
    """The file with values in it, as JSON in its metadata buffer "tfopt"; runtimes pass over it.

    Args:
      content: a .tflite file.
      values: what JSON can hold. tfopt's server and reports know "class_names", one for each value on the last axis of
        the first output, and "preprocessing", such as {"value_range": [0.0, 1.0]}: what pixel values 0 and 255 become.

    Raises:
      TypeError: JSON cannot hold them.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    encoded = json.dumps(values, sort_keys=True).encode()
    model.metadata = [each for each in model.metadata or [] if each.name.decode() != NAME]
    model.metadata.append(schema.MetadataT(name=NAME, buffer=len(model.buffers)))
    model.buffers.append(schema.BufferT(data=list(encoded)))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def read_metadata(file: FlatBuffer) -> dict[str, Any]:
    """What `add_metadata` put into a file; of others, the labels that TFLite's metadata library packed behind it.

    Raises:
      ValueError: it is damaged.
    """
    if NAME in file.metadata:
        try:
            values = json.loads(file.metadata[NAME])
        except ValueError as error:
            raise ValueError(f"the metadata of {file.path} is no JSON: {error}; export it again") from error
        require(isinstance(values, dict), f"the metadata of {file.path} is no JSON object; export it again")
        return values
    names = _packed_labels(pathlib.Path(file.path))
    sizes = {tensor.shape[-1] for tensor in file.outputs.values() if tensor.shape}
    return {"class_names": names} if len(names) in sizes else {}


def _packed_labels(path: pathlib.Path) -> list[str]:
    """The lines of the only text file in an archive that is packed behind the flatbuffer."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return []
    with zipfile.ZipFile(path) as archive:
        texts = [each for each in archive.infolist() if each.filename.endswith(".txt")]
        if len(texts) != 1 or texts[0].file_size > _MOST_LABELS_BYTES:
            return []
        return archive.read(texts[0]).decode("utf-8", "replace").splitlines()
