"""`quantize_model` and `quantize_apply`: TFMOT's quantization-aware training of Keras 3 models."""

from typing import Any

import keras

from tfopt.compat.annotate import QuantizeAnnotate, quantize_annotate_model
from tfopt.compat.aware import AwareModel
from tfopt.compat.cluster import ClusterWeights
from tfopt.compat.prune import PruneLowMagnitude
from tfopt.compat.quantizers import weight_bits
from tfopt.compat.rebuild import copy_layer, layers_of, rebuild, require_graph
from tfopt.compat.schemes import Default8BitQuantizeScheme, QuantizeScheme
from tfopt.config import require
from tfopt.graph import flatten
from tfopt.quantize.aware import rewrite_model
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.variables import all_layers

# Layers that only pass values on: they are in integers where what they read is.
_PASSING = (keras.layers.InputLayer, keras.layers.Flatten, keras.layers.Reshape, keras.layers.Dropout)
_PREFIX = "quant_"
_DEFAULT = Default8BitQuantizeScheme()


def quantize_model(to_quantize: keras.Model, quantized_layer_name_prefix: str | None = _PREFIX) -> keras.Model:
    """A model that trains, and predicts, with the rounding of its int8 file.

    Compile it, train it, and convert it: `tf.lite.TFLiteConverter.from_keras_model` with `tf.lite.Optimize.DEFAULT`, or
    `tfopt.export_tflite`, which checks the file. See `tfopt.quantize_aware` for what it does.

    Args:
      to_quantize: functional or Sequential, nested ones too; it is left as it is.
      quantized_layer_name_prefix: of the names of quantized layers; None: none. Outputs keep their names.

    Raises:
      ValueError: it is no such model, not built, still has wrappers of pruning or clustering, or a layer has no rule.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="y")])
    >>> [layer.name for layer in quantize_model(model).layers[1:]]
    ['input_layer..._quantize', 'quant_y', 'y_quantize', 'y']
    """
    require_graph(to_quantize)
    annotated = layers_of(to_quantize, QuantizeAnnotate)
    require(
        not annotated,
        f"{len(annotated)} layers of {to_quantize.name!r} are annotated: call quantize_apply(model) for these alone, "
        "or quantize_apply(quantize_annotate_model(model)) for all",
    )
    return quantize_apply(quantize_annotate_model(to_quantize), quantized_layer_name_prefix=quantized_layer_name_prefix)


def quantize_apply(
    model: keras.Model,
    scheme: QuantizeScheme = _DEFAULT,
    quantized_layer_name_prefix: str | None = _PREFIX,
) -> keras.Model:
    """The model with its annotated layers quantized; the others stay in float, in the file too.

    Args:
      model: from `quantize_annotate_model`, or with layers from `quantize_annotate_layer`; it is left as it is.
      scheme: how many bits, and whether zeros and clusters are preserved in training.
      quantized_layer_name_prefix: of the names of quantized layers; None: none. Outputs keep their names.

    Raises:
      TypeError: the scheme is none of TFMOT's.
      ValueError: nothing is annotated, the model is not built, still has wrappers of pruning or clustering, or what is
        asked for has no integer rule.
    """
    require_graph(model)
    if type(scheme).__module__ != QuantizeScheme.__module__:
        raise TypeError(
            f"scheme must be one of TFMOT's, such as Default8BitQuantizeScheme(); received {scheme!r}. tfopt rewrites "
            "models by rules of its own: choose bits by layer with a QuantizeConfig"
        )
    require(
        not layers_of(model, PruneLowMagnitude) and not layers_of(model, ClusterWeights),
        f"the model {model.name!r} has wrappers of pruning or clustering: call strip_pruning or strip_clustering first",
    )
    require(
        bool(layers_of(model, QuantizeAnnotate)),
        f"no layer of {model.name!r} is annotated: call quantize_annotate_model(model), or wrap layers in "
        "quantize_annotate_layer",
    )
    require(
        model.built,
        f"the model {model.name!r} is not built, so it has no weights yet: add keras.Input(shape) as its first layer",
    )
    plain, quantized, bits = _unwrap(model)
    floats = _floats(plain, quantized)
    weight, activation = scheme.bits
    rewritten, _ = rewrite_model(
        plain, weight, activation, bits or None, "raise", in_float=lambda operation: id(operation) in floats
    )
    aware = AwareModel(rewritten._inputs_struct, rewritten._outputs_struct, name=model.name)
    _rename(aware, plain, quantized, quantized_layer_name_prefix or "")
    aware.preserve(scheme.preserves)
    return aware


def quantize_scope(*args: dict[str, Any]) -> Any:
    """Inside it, Keras loads quantization-aware models also from HDF5 files.

    Args:
      *args: further classes by name.
    """
    every = keras.saving.get_custom_objects()
    own = {name.partition(">")[2]: each for name, each in every.items() if name.startswith("tfopt>")}
    return keras.utils.CustomObjectScope({name: each for classes in (own, *args) for name, each in classes.items()})


def _unwrap(model: keras.Model) -> tuple[keras.Model, set[int], dict[str, int]]:
    """The model without annotations; the ids of the layers that had one; the bits of those with a configuration."""
    quantized: set[int] = set()
    configs: list[tuple[keras.Layer, Any]] = []

    def unwrap(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, QuantizeAnnotate):
            return copy_layer(layer)
        plain = copy_layer(layer.layer)
        quantized.update(id(each) for each in plain._flatten_layers())
        configs.append((plain, layer.quantize_config))
        return plain

    plain = rebuild(model, unwrap)
    bits = {layer.name: weight_bits(layer, config) for layer, config in configs if config is not None}
    return plain, quantized, bits


def _floats(plain: keras.Model, quantized: set[int]) -> set[int]:
    """The ids of the operations that stay in float: layers without annotation, and raw operators among such."""
    layers = [each for each in all_layers(plain) if not isinstance(each, (keras.Model, *_PASSING))]
    is_whole = all(id(layer) in quantized for layer in layers)
    graph = flatten(plain)
    floats, unrounded = set(), set(graph.inputs)
    for node in graph.nodes:
        operation = node.operation
        if isinstance(operation, _PASSING):
            stays = id(operation) not in quantized and unrounded.issuperset(node.inputs)
        else:
            stays = id(operation) not in quantized if isinstance(operation, keras.Layer) else not is_whole
        if stays:
            floats.add(id(operation))
            unrounded.update(node.outputs)
    return floats


def _rename(aware: keras.Model, plain: keras.Model, quantized: set[int], prefix: str) -> None:
    """Puts the prefix before the names of the layers that stand for quantized ones."""
    names = {layer.name for layer in all_layers(plain) if id(layer) in quantized}
    outputs = set(aware.output_names)
    for layer in aware.layers:
        original = layer.name.removesuffix("_quantized")
        if isinstance(layer, FakeQuant | keras.layers.InputLayer) or layer.name in outputs or original not in names:
            continue
        layer.name = prefix + original
