"""Reads what Keras recorded about itself in a SavedModel folder; runs nothing of it."""

import json
import pathlib
from typing import Any

import tensorflow as tf
from google.protobuf import message

from tfopt.load.source import Source

_GRAPH_ONLY = (
    "{path} is a SavedModel without Keras layers: model.export, tf.saved_model.save and plain TensorFlow "
    "write compiled functions only, which cannot become a layered Keras model again. Save the model itself "
    "with model.save('name.keras') and load that; or, to use this one as it is, call it as one frozen layer: "
    "keras.layers.TFSMLayer({path!r}, call_endpoint={endpoint!r})"
)
_SIDE_EFFECTS = {"ReadFile", "WriteFile", "PyFunc", "PyFuncStateless", "EagerPyFunc"}


def examine(path: pathlib.Path) -> Source:
    """Reads the Keras configs in a SavedModel folder.

    Raises:
      ValueError: when the folder is no SavedModel, is damaged, or has no Keras layers.
    """
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        names = sorted(each.name for each in path.iterdir())
        models = [name for name in names if name.endswith((".keras", ".h5", ".hdf5"))]
        hint = f"Did you mean {path / models[0]}?" if models else f"It holds {', '.join(names[:10]) or 'nothing'}"
        raise ValueError(f"{path} is a folder, but no SavedModel: it has no saved_model.pb. {hint}")
    graph = _parse_graph(path)
    if not (path / "variables" / "variables.index").is_file():
        raise ValueError(f"{path} is damaged: it has no variables/variables.index. Copy the whole folder again")
    nodes = _metadata(path, graph)
    configs = tuple(node for identifier, node in nodes if not identifier.endswith("_metric"))
    if not configs:
        endpoint = next(iter(key for key in graph.signature_def if not key.startswith("__")), "serve")
        raise ValueError(_GRAPH_ONLY.format(path=str(path), endpoint=endpoint))
    return Source(path, "saved_model", "2", configs, tuple(node for _, node in nodes))


def _parse_graph(path: pathlib.Path) -> Any:
    try:
        return tf.__internal__.saved_model.parse_saved_model(str(path)).meta_graphs[0]
    except (OSError, IndexError) as error:
        raise ValueError(f"{path} is damaged: its saved_model.pb cannot be read ({error}). Copy it again") from error


def _metadata(path: pathlib.Path, graph: Any) -> list[tuple[str, dict[str, Any]]]:
    """Identifier and config of each Keras object; TensorFlow before 2.5 kept them in the graph itself."""
    from tf_keras.protobuf import saved_metadata_pb2

    file = path / "keras_metadata.pb"
    if file.is_file():
        metadata = saved_metadata_pb2.SavedMetadata()
        try:
            metadata.ParseFromString(file.read_bytes())
        except message.DecodeError as error:
            size = file.stat().st_size
            raise ValueError(f"{file} is damaged or truncated ({size:,} bytes). Copy it again") from error
        nodes = list(metadata.nodes)
    else:
        objects = [node.user_object for node in graph.object_graph_def.nodes]
        nodes = [each for each in objects if each.identifier.startswith("_tf_keras") and each.metadata]
    return [(node.identifier, json.loads(node.metadata)) for node in nodes]


def side_effects(path: pathlib.Path) -> set[str]:
    """The operations in a SavedModel's graphs that read or write files or call back into Python."""
    graph = _parse_graph(path)
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
    return {node.op for node in nodes} & _SIDE_EFFECTS
