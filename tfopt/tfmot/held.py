"""A quantization-aware model of TFMOT's as a Keras 3 model: to evaluate, to save, and to export."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# The inference; the tf_keras model that TFMOT made its own from; the weights of that.
ASSETS = ("graph.pb", "float.h5", "weights.npz")


@keras.saving.register_keras_serializable("tfopt")
class Held(keras.layers.Layer):
    """Computes what TFMOT's model computes in inference, from its graph, and keeps its tf_keras file.

    The trained kernels are variables of this layer, so that promises can be checked; the graph has them as constants,
    and nothing here can be trained.

    Args:
      graph_inputs: names of the tensors of the graph, in the order of the model's inputs.
      graph_outputs: likewise.
      shapes: of the outputs, with None for the batch.
      kernels: shape of each kernel by the name of its variable.
      preserve: what TFMOT's scheme preserves.
    """

    engine = "TFMOT"

    def __init__(
        self,
        graph_inputs: Sequence[str],
        graph_outputs: Sequence[str],
        shapes: Sequence[Sequence[int | None]],
        kernels: Mapping[str, Sequence[int]],
        preserve: str,
        **kwargs: Any,
    ) -> None:
        kwargs["trainable"] = False
        super().__init__(**kwargs)
        self.graph_inputs, self.graph_outputs = list(graph_inputs), list(graph_outputs)
        self.shapes, self.shapes_of = [tuple(each) for each in shapes], dict(kernels)
        self.kernels = {
            name: self.add_weight(shape=tuple(shape), initializer="zeros", trainable=False, name=name)
            for name, shape in self.shapes_of.items()
        }
        self.preserve, self.assets = preserve, dict.fromkeys(ASSETS, b"")
        self._function: Any = None

    def build(self, *shapes: Any) -> None:
        """Nothing is left to make."""
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The outputs of TFMOT's model."""
        if self._function is None:
            definition = tf.compat.v1.GraphDef.FromString(self.assets[ASSETS[0]])
            whole = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
            find = whole.graph.get_tensor_by_name
            self._function = whole.prune(list(map(find, self.graph_inputs)), list(map(find, self.graph_outputs)))
        outputs = self._function(*[tf.cast(each, tf.float32) for each in keras.tree.flatten(inputs)])
        return outputs[0] if len(outputs) == 1 else outputs

    def compute_output_spec(self, *inputs: Any, **kwargs: Any) -> Any:
        """The outputs' shapes."""
        specs = [keras.KerasTensor(shape, dtype="float32") for shape in self.shapes]
        return specs[0] if len(specs) == 1 else specs

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {"graph_inputs": self.graph_inputs, "graph_outputs": self.graph_outputs}
        return {
            **super().get_config(),
            **own,
            "shapes": self.shapes,
            "kernels": self.shapes_of,
            "preserve": self.preserve,
        }

    def save_assets(self, folder: str) -> None:
        """Writes the files that TFMOT's model consists of."""
        for name, content in self.assets.items():
            pathlib.Path(folder, name).write_bytes(content)

    def load_assets(self, folder: str) -> None:
        """The reverse of `save_assets`."""
        self.assets = {name: pathlib.Path(folder, name).read_bytes() for name in ASSETS}


def hold(
    like: keras.Model,
    names: Mapping[str, Sequence[str]],
    preserve: str,
    folder: pathlib.Path,
    kernels: Mapping[str, np.ndarray],
) -> tuple[keras.Model, dict[str, str]]:
    """Makes the Keras 3 model that holds TFMOT's.

    Args:
      like: the model that TFMOT's was made from: it gives inputs, and shapes and names of outputs.
      names: "graph_inputs" and "graph_outputs".
      preserve: what TFMOT's scheme preserves.
      folder: has the files ASSETS.
      kernels: by their variables' paths in `like`.

    Returns:
      The model, and the new path of each kernel by its old one.
    """
    names_of = {path: path.replace("/", "_") for path in kernels}
    layer = Held(
        names["graph_inputs"],
        names["graph_outputs"],
        [tuple(each.shape) for each in like.outputs],
        {names_of[path]: list(each.shape) for path, each in kernels.items()},
        preserve,
        name="tfmot",
    )
    layer.load_assets(str(folder))
    for path, values in kernels.items():
        layer.kernels[names_of[path]].assign(values)
    inputs = [
        keras.Input(batch_shape=each.shape, dtype=each.dtype, name=each._keras_history.operation.name)
        for each in like.inputs
    ]
    outputs = keras.tree.flatten(layer(inputs if len(inputs) > 1 else inputs[0]))
    # Named as before, so that the file's outputs are.
    named = [
        keras.layers.Identity(name=each._keras_history.operation.name)(tensor)
        for each, tensor in zip(like.outputs, outputs, strict=True)
    ]
    model = keras.Model(
        keras.tree.pack_sequence_as(like.input, inputs) if len(inputs) > 1 else inputs[0],
        keras.tree.pack_sequence_as(like.output, named) if len(named) > 1 else named[0],
        name=like.name,
    )
    return model, {path: layer.kernels[name].path for path, name in names_of.items()}


def held_in(model: keras.Model) -> Held | None:
    """The layer of a model that holds one of TFMOT's; None where it holds none."""
    return next((layer for layer in model._flatten_layers() if isinstance(layer, Held)), None)
