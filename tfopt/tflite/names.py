"""Shorter names of tensors: in a small file the converter's make up a tenth of it."""

from ai_edge_litert.tools import flatbuffer_utils

_SEPARATOR = ";"


def shorten_names(content: bytes) -> bytes:
    """The file with shorter names inside its graphs; those of inputs and outputs stay, and no two become the same.

    Constants keep the first operation of their name. What is computed keeps one of each layer: by these
    `verify_tflite` finds the layer that it belongs to.

    Args:
      content: a .tflite file.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        faces = {*graph.inputs, *graph.outputs}
        taken = {each.name for each in graph.tensors}
        for index, tensor in enumerate(graph.tensors):
            if index in faces or not tensor.name:
                continue
            is_constant = model.buffers[tensor.buffer].data is not None
            name = tensor.name.decode()
            for shorter in ([name.partition(_SEPARATOR)[0]] if is_constant else []) + [shortened(name)]:
                if shorter.encode() not in taken:
                    tensor.name = shorter.encode()
                    taken.add(tensor.name)
                    break
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def shortened(name: str) -> str:
    """A name in which each layer is said once.

    The converter strings together the names of all operations that became one.

    >>> shortened("net/bn/batchnorm/mul_1;net/conv/convolution;net/bn/batchnorm/mul;net/bn/batchnorm/sub1")
    'net/bn/batchnorm/mul_1;net/conv/convolution'
    """
    parts: dict[str, str] = {}
    for part in name.split(_SEPARATOR):
        parts.setdefault(part.rpartition("/")[0], part)
    return _SEPARATOR.join(parts.values())
