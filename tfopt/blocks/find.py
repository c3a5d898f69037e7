"""`find_blocks`: the residual blocks of a model that can be taken out whole."""

import dataclasses

import keras

from tfopt.graph import Graph, Node, Ref, deep_graphs, flatten


@dataclasses.dataclass(frozen=True)
class Block:
    """A branch beside a direct connection: x + f(x).

    Args:
      name: of the layer, or operator, that adds.
      layers: the names of what is in the branch, in running order.
      direct: which of the two summands is the direct connection, 0 or 1.
    """

    name: str
    layers: tuple[str, ...]
    direct: int


@deep_graphs()
def find_blocks(model: keras.Model) -> list[Block]:
    """The residual blocks that can be taken out, in running order.

    A block is the branch of a sum of two tensors of the same shape that begins at the other one of them and leads
    nowhere else. Where the direct way goes through a convolution, as where a network becomes narrower or coarser, the
    branch has no such beginning: those blocks stay.

    Args:
      model: a built functional or Sequential model; nested models are looked into.

    Raises:
      ValueError: a subclassed model.

    Source: Veit et al., Residual Networks Behave Like Ensembles of Relatively Shallow Networks, 2016,
    arXiv:1605.06431 (residual networks without single blocks).

    >>> inputs = keras.Input((8, 8, 4))
    >>> branch = keras.layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    >>> outputs = keras.layers.Add(name="sum")([inputs, branch])
    >>> find_blocks(keras.Model(inputs, outputs))
    [Block(name='sum', layers=('conv',), direct=0)]
    """
    graph = flatten(model)
    shared = {id(node.operation) for node in graph.nodes if graph.calls(node.operation) > 1}
    found = []
    for node in graph.nodes:
        summands = node.inputs
        is_sum = node.type == "Add" and len(summands) == 2 and summands[0].shape == summands[1].shape
        if not is_sum or summands[0] == summands[1] or id(node.operation) in shared:
            continue
        for direct in (0, 1):
            branch = _branch(graph, node, summands[direct], summands[1 - direct])
            # What other calls use stays, so that nothing would be gained; what has no weights is no block.
            if branch and any(id(each.operation) not in shared and each.operation.variables for each in branch):
                found.append(Block(node.name, tuple(each.name for each in branch), direct))
                break
    return found


def _branch(graph: Graph, total: Node, start: Ref, end: Ref) -> list[Node]:
    """The nodes between two summands, in running order; none where they read or feed anything else."""
    inside: set[int] = set()
    waiting = [end]
    while waiting:
        ref = waiting.pop()
        if ref == start:
            continue
        node = graph.maker(ref)
        if node is None or not node.inputs:
            # It begins at another input of the model, or at a constant.
            return []
        if id(node) not in inside:
            inside.add(id(node))
            waiting += node.inputs
    nodes = [node for node in graph.nodes if id(node) in inside]
    for node in nodes:
        for ref in node.outputs:
            others = [each for each in graph.consumers(ref) if id(each) not in inside and each is not total]
            if others or ref in graph.outputs:
                return []
    return nodes
