"""`quantize_aware`: a float Keras model in; out comes one that trains as its integer file will compute."""

from collections.abc import Callable, Sequence
from typing import Literal

import keras
from absl import logging

from tfopt.config import require
from tfopt.graph import Node, deep_graphs, flatten, functional
from tfopt.quantize.bits import ACTIVATION_BITS, BitSelection, WeightBits
from tfopt.quantize.frozen import is_quantized
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported
from tfopt.quantize.rules import rule_for
from tfopt.tflite.edge_quantizer import import_quantizer
from tfopt.train.precision import float32_by_default


def quantize_aware(
    model: keras.Model,
    weight_bits: int = 8,
    activation_bits: int = 8,
    layers: BitSelection = None,
    on_unsupported: Literal["raise", "float"] = "raise",
) -> keras.Model:
    """Rewrites a model so that it trains, and predicts, with the rounding of its integer file.

    The result is an ordinary Keras model with the same inputs, outputs and names: compile it, fit it, save it as
    .keras, and export it with `export_tflite`, which needs no calibration data then. It computes in float32 whatever
    the dtype policy of the model. Start with `calibrate`, or let the first training batches find the ranges.

    Args:
      model: functional or Sequential, built and trained; nested models are inlined, shared layers stay shared. It is
        left as it is; the result has copies of its weights.
      weight_bits: 2 to 8. 4 bits make files of half the size, unless they are `InInt8(4)`; other numbers are held in
        int8, and save after gzip.
      activation_bits: 8, or 16 for files that lose next to nothing and are slow on CPUs (extra `int16`).
      layers: which weights get how many bits, see `WeightBits`; None: all get `weight_bits`.
      on_unsupported: what becomes of a layer without an integer rule. "raise": an error names all of them. "float":
        they stay in float32, in the file too; `float_islands` lists them.

    Raises:
      TypeError: it is no Keras 3 model.
      ModuleNotFoundError: 16 bits are asked for, and ai-edge-quantizer is not installed.
      ValueError: the model is subclassed, not built or quantized already; a layer has no rule; bits do not exist;
        `layers` selects nothing.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, 2018, arXiv:1712.05877; the operators' restrictions: LiteRT 8-bit quantization specification.

    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])
    >>> [type(layer).__name__ for layer in quantize_aware(model).layers]
    ['InputLayer', 'FakeQuant', 'QuantizedLinear', 'FakeQuant', 'Identity']
    """
    return rewrite_model(model, weight_bits, activation_bits, layers, on_unsupported)[0]


@deep_graphs()
def rewrite_model(
    model: keras.Model,
    weight_bits: int,
    activation_bits: int,
    layers: BitSelection,
    on_unsupported: str,
    in_float: Callable[[keras.Operation], bool] = lambda operation: False,
) -> tuple[keras.Model, dict[str, str]]:
    """What `quantize_aware` returns, and the new path of each variable that was copied, by its old one.

    `in_float` is true of the layers and raw operators that are to stay in float although they have integer rules.
    """
    _check(model, activation_bits, on_unsupported)
    bits = WeightBits(model, weight_bits, layers)
    with float32_by_default():
        graph, source = flatten(model), functional(model, model.name)
        names = [tensor._keras_history.operation.name for tensor in source._outputs]
        rewrite = Rewrite(graph, bits, activation_bits, names)
        inputs = [
            keras.Input(
                batch_shape=tensor.shape,
                dtype=_dtype(tensor, graph.consumers(ref)),
                name=tensor._keras_history.operation.name,
            )
            for ref, tensor in zip(graph.inputs, source._inputs, strict=True)
        ]
        for ref, tensor in zip(graph.inputs, inputs, strict=True):
            rewrite.put(ref, tensor, unrounded=any(in_float(node.operation) for node in graph.consumers(ref)))
        unsupported: dict[str, str] = {}

        def rule(node: Node) -> Rule:
            if in_float(node.operation):
                raise Unsupported("it was not asked for")
            return rule_for(node)

        def on_missing_rule(node: Node, reason: str) -> None:
            if in_float(node.operation):
                rewrite.keep_float(node, reason)
                return
            unsupported[node.name] = reason
            if on_unsupported == "float":
                rewrite.keep_float(node, reason)
            else:
                rewrite.skip(node)

        rewrite.run(rule, on_missing_rule)
        _report(model, unsupported, on_unsupported, activation_bits)
        bits.check_used()
        aware = keras.Model(
            keras.tree.pack_sequence_as(source._inputs_struct, inputs),
            keras.tree.pack_sequence_as(source._outputs_struct, rewrite.outputs()),
            name=model.name,
        )
    return aware, rewrite.copy_variables()


def _check(model: keras.Model, activation_bits: int, on_unsupported: str) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"expected a Keras 3 model, received {type(model).__module__}.{type(model).__name__}; for a file or a "
            "Keras 2 model use tfopt.load_model"
        )
    require(
        activation_bits in ACTIVATION_BITS and not isinstance(activation_bits, bool),
        f"activation_bits must be 8 or 16, received {activation_bits!r}",
    )
    require(
        on_unsupported in ("raise", "float"),
        f'on_unsupported must be "raise" or "float", received {on_unsupported!r}',
    )
    if activation_bits == 16:
        require(
            on_unsupported == "raise",
            'on_unsupported="float" is for activation_bits=8: with 16 the whole file is in integers. Leave it out to '
            "see which layers have no rule",
        )
        import_quantizer()
    require(
        not is_quantized(model),
        f"the model {model.name!r} is quantization-aware already: start from the float model",
    )
    by_keras = [layer.name for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)]
    require(
        not by_keras,
        f"Keras has quantized the layers {', '.join(by_keras)}: start from the model before model.quantize()",
    )
    policies = sorted({layer.compute_dtype for layer in model._flatten_layers()} - {"float32"})
    if policies:
        logging.warning(
            "the model %r computes in %s; its quantization-aware copy computes in float32, as 16-bit floats cannot "
            "hold the rounding",
            model.name,
            ", ".join(policies),
        )


def _dtype(tensor: keras.KerasTensor, consumers: Sequence[Node]) -> str:
    """The input's type: float32 for any floats, but int32 for indices, which Keras lets be floats."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if "float" not in dtype:
        return dtype
    are_indices = any(isinstance(node.operation, keras.layers.Embedding) for node in consumers)
    return "int32" if are_indices else "float32"


def _report(model: keras.Model, unsupported: dict[str, str], on_unsupported: str, activation_bits: int) -> None:
    way_out = ', or pass on_unsupported="float" to leave them in float' if activation_bits == 8 else ""
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in unsupported.items())
    require(
        not unsupported or on_unsupported == "float",
        f"{len(unsupported)} operations of the model {model.name!r} cannot be quantized: {reasons}. Replace "
        f"them{way_out}",
    )
    if unsupported:
        logging.warning("%d operations of %r stay in float: %s", len(unsupported), model.name, reasons)
