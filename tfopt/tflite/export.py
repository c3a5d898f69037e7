"""Keras model -> .tflite file that holds what was promised."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from tfopt.config import require
from tfopt.files import atomic_path
from tfopt.measure.file import CONVERSIONS, Measurement, measure_tflite, weight_tensors
from tfopt.quantize.frozen import activation_bits, frozen, is_quantized
from tfopt.quantize.island import SCOPE
from tfopt.tflite.examples import Examples, read_examples
from tfopt.tflite.flatbuffer import FlatBuffer, Graph, Operator, parse_tflite
from tfopt.tflite.metadata import add_metadata
from tfopt.tflite.model import call_named, float32_model, input_specs, static_batch
from tfopt.tflite.names import shorten_names
from tfopt.tflite.quantizer import quantize_marked
from tfopt.tflite.quiet import quiet
from tfopt.tflite.run import check_runs

Quantization = Literal["none", "float16", "dynamic", "int8", "int16x8"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
# Modes whose activations are integers, with the type of inputs and outputs; they need calibration.
INTEGER_IO = {"int8": tf.int8, "int16x8": tf.int16}

# The converter's order of work varies from call to call: of one unrolled LSTM, one call in five left a SPLIT in
# float32 and the next did not.
_TRIES = 4


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    quantization: Quantization = "none",
    calibration_data: Any = None,
    float_io: bool = False,
    batch_size: int | None = 1,
    allow_flex: bool = False,
    calibration_examples: int = 300,
    metadata: Mapping[str, Any] | None = None,
) -> Measurement:
    """Writes a Keras model as a .tflite file and checks in the file that it is what was asked for.

    The signature "serving_default" has the names of the model's inputs and outputs, in the model's order.
    A model in mixed precision is exported in float32.

    Args:
      model: built; functional, Sequential, or subclassed with a single tensor as input.
      path: of the file, replaced atomically; nothing is written when a check fails.
      quantization: "none": float32. "float16": weights in float16, computed in float32. "dynamic": large
        weights in int8, activations in float32 between operators. "int8": weights, activations, inputs and
        outputs in int8. "int16x8": weights in int8, the rest in int16; slow on CPUs.
      calibration_data: examples that show the range of each activation, for int8 and int16x8: a batched
        `tf.data.Dataset` of x, (x, y) or (x, y, weights), arrays, or tfopt's `Data` (its train split).
        Several inputs: a tuple or dict by name.
      float_io: float32 inputs and outputs for int8 and int16x8 files.
      batch_size: static batch size of the file, at least 1; None: dynamic.
      allow_flex: permit operators that need TensorFlow's Flex delegate.
      calibration_examples: how many examples are used at most: see `calibrate`.
      metadata: what travels in the file, such as {"class_names": ["cat", "dog"]}; see `add_metadata`.

    Returns:
      What `measure_tflite` finds in the file.

    Raises:
      TypeError: `model` is no Keras 3 model, or the calibration data are of an unknown kind.
      ValueError: an argument is wrong, or the file would need Flex or custom ops, or hold float tensors.
      RuntimeError: LiteRT's converter cannot express the model, or LiteRT cannot run what it wrote.

    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_tflite(model, os.path.join(folder, "m.tflite")).ops
    {'FULLY_CONNECTED': 1}
    """
    model = float32_model(model)
    if is_quantized(model):
        quantization = _check_trained(model, quantization, calibration_data)
    else:
        _check_calibration(quantization, calibration_data)
    _check_arguments(model, quantization, float_io, batch_size)
    examples = None
    if quantization in INTEGER_IO and not is_quantized(model):
        specs = input_specs(model)
        examples = read_examples(calibration_data, specs, calibration_examples, "train", "calibration_data")
    with tempfile.TemporaryDirectory() as folder:
        with frozen(model):
            outputs, loops = _write_saved_model(model, folder, batch_size)
        require(
            not loops or examples is None,
            f"{model.name!r} runs a loop in {', '.join(loops)}, which cannot be calibrated for {quantization}"
            ': build recurrent layers with unroll=True, or use quantization="dynamic"',
        )
        # The converter does not write what is trained with 16 bits.
        wanted = "none" if is_quantized(model) and quantization == "int16x8" else quantization
        for _ in range(_TRIES):
            content = _convert(folder, model.name, wanted, examples, float_io, batch_size, allow_flex)
            content = quantize_marked(content, float_io=float_io) if wanted != quantization else content
            file = parse_tflite(content, str(path))
            if quantization not in INTEGER_IO or not _float_inside(file, float_io):
                break
    content = _in_order(content, file, [spec.name for spec in input_specs(model)], outputs)
    check_promise(file, quantization, float_io, allow_flex)
    content = shorten_names(content)
    if metadata:
        content = add_metadata(content, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        check_runs(temporary)
    return measure_tflite(path)


def trained_quantization(model: keras.Model) -> Quantization:
    """What a quantization-aware model is exported as: "int8", or "int16x8" with activations of 16 bits."""
    return "int16x8" if activation_bits(model) == 16 else "int8"


def _check_trained(model: keras.Model, quantization: str, calibration_data: Any) -> Quantization:
    """What a quantization-aware model is exported as: the integers whose ranges it has learnt."""
    trained = trained_quantization(model)
    require(
        quantization in ("none", trained),
        f"{model.name!r} is quantization-aware and is exported with the integers it was trained for: leave "
        f"quantization out; received {quantization!r}",
    )
    require(
        calibration_data is None,
        f"{model.name!r} is quantization-aware: it knows its ranges from training, leave calibration_data out",
    )
    return trained


def _check_calibration(quantization: str, calibration_data: Any) -> None:
    require(
        quantization not in INTEGER_IO or calibration_data is not None,
        f'quantization="{quantization}" needs calibration_data: some 100 to 300 typical examples, such as '
        "training batches, from which the range of each activation is taken",
    )


def _check_arguments(model: keras.Model, quantization: str, float_io: bool, batch_size: int | None) -> None:
    require(
        quantization in QUANTIZATIONS,
        f"quantization must be one of {', '.join(QUANTIZATIONS)}; received {quantization!r}",
    )
    require(
        not float_io or quantization in INTEGER_IO,
        f'float_io is for int8 and int16x8: with quantization="{quantization}" inputs and outputs are float32 already',
    )
    require(
        batch_size is None or batch_size >= 1,
        f"batch_size must be at least 1, or None for a dynamic one; received {batch_size!r}",
    )
    fixed = static_batch(model)
    require(
        fixed is None or fixed == batch_size,
        f"the model {model.name!r} is built for batches of {fixed}, asked for is batch_size={batch_size}: "
        f"pass batch_size={fixed}, or build the model with an open batch",
    )


def _write_saved_model(model: keras.Model, folder: str, batch_size: int | None) -> tuple[list[str], list[str]]:
    """Writes a SavedModel with a named, static signature.

    Returns:
      The output names in the model's order, and the names of the loops in the graph.
    """
    specs = input_specs(model)
    signature = [tf.TensorSpec((batch_size, *spec.shape), spec.dtype, name=spec.name) for spec in specs]
    names: list[str] = []

    @tf.function(input_signature=signature, autograph=False)
    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = call_named(model, list(tensors))
        names[:] = outputs
        return outputs

    module = tf.Module()
    module.serve = serve
    # A Keras 3 model that hangs on a tf.Module does not hand over its tf.Variables: they would stay
    # READ_VARIABLE ops in the file, which then neither fuse nor quantize.
    module.variables_to_save = [variable.value for variable in model.variables]
    with quiet():
        tf.saved_model.save(module, folder, signatures={"serving_default": serve})
    return names, _loops(serve.get_concrete_function().graph.as_graph_def())


def _loops(graph: Any) -> list[str]:
    """Loops of a graph: the converter's calibrator crashes the process on them."""
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    return [node.name for body in bodies for node in body if node.op in ("While", "StatelessWhile")]


def _convert(
    folder: str,
    name: str,
    quantization: str,
    examples: Examples | None,
    float_io: bool,
    batch_size: int | None,
    allow_flex: bool,
) -> bytes:
    # The converter reads the folder's variables when it is made, and talks while it does.
    with quiet():
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    builtins = tf.lite.OpsSet.TFLITE_BUILTINS
    # A quantization-aware model brings its ranges along; the sets for integers would ask for examples.
    if examples is not None:
        builtins = {
            "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            "int16x8": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        }[quantization]
    converter.target_spec.supported_ops = [builtins] + [tf.lite.OpsSet.SELECT_TF_OPS] * allow_flex
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if examples is not None:
        converter.representative_dataset = _representative(examples, batch_size or 1)
    if quantization in INTEGER_IO and not float_io:
        converter.inference_input_type = converter.inference_output_type = INTEGER_IO[quantization]
    try:
        with quiet():
            return converter.convert()
    except Exception as error:  # the converter raises ConverterError, RuntimeError, ValueError, …
        raise _explain(str(error), name, quantization) from error


def _representative(examples: Examples, size: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(examples), size):
            rows = np.arange(start, start + size) % len(examples)  # a static batch is always full
            yield {name: array[rows] for name, array in examples.inputs.items()}

    return batches


def _explain(message: str, name: str, quantization: str) -> Exception:
    """Turns what the converter wrote into an error that names the operators."""
    flex = re.search(r"(?:Flex|TF Select) ops: ([^\n]*)", message)
    if flex:
        return ValueError(
            f"{name!r} needs TensorFlow ops that LiteRT does not have: {flex.group(1).strip()}. Replace the "
            "layers that make them, or pass allow_flex=True for a file that runs only with the Flex delegate"
        )
    custom = re.search(r"Custom ops: ([^\n]*)", message)
    if custom:
        return ValueError(
            f"{name!r} needs custom ops that LiteRT does not have: {custom.group(1).strip()}. Replace the "
            "layers that make them"
        )
    if "TensorListReserve" in message:
        return ValueError(
            f"{name!r} has a recurrent layer, whose loop LiteRT runs with a static batch only: pass "
            "batch_size=1, or build the layer with unroll=True"
        )
    return RuntimeError(
        f"LiteRT's converter cannot express {name!r} with quantization={quantization!r}: "
        f"{message.strip()[:1000] or 'it gave no reason'}"
    )


def _in_order(content: bytes, file: FlatBuffer, inputs: list[str], outputs: list[str]) -> bytes:
    """Puts inputs and outputs, which the converter sorts by name, into the model's order, in place."""
    signature = file.signature
    for kind, wanted, received in (
        ("input", inputs, signature.inputs),
        ("output", outputs, signature.outputs),
    ):
        require(
            sorted(wanted) == sorted(received),
            f"the converter renamed the {kind}s {', '.join(wanted)} to {', '.join(received)}: give them "
            "plain names of letters, digits and underscores",
        )
    changed = bytearray(content)
    graph = schema.Model.GetRootAs(changed, 0).Subgraphs(0)
    graph.InputsAsNumpy()[:] = [signature.inputs[name] for name in inputs]
    graph.OutputsAsNumpy()[:] = [signature.outputs[name] for name in outputs]
    return bytes(changed)


def check_promise(file: FlatBuffer, quantization: str, float_io: bool, allow_flex: bool) -> None:
    """Raises a ValueError where a file is not what was asked for: operators, number formats."""
    require(
        allow_flex or not file.flex_ops,
        f"the file needs TensorFlow's Flex delegate for {', '.join(file.flex_ops)}: replace the layers "
        "that make these ops, or pass allow_flex=True",
    )
    require(
        not file.custom_ops,
        f"the file needs custom ops, which no LiteRT runtime has: {', '.join(file.custom_ops)}",
    )
    if quantization in INTEGER_IO:
        inside = _float_inside(file, float_io)
        require(
            not inside,
            f"the {quantization} file still holds float tensors: {'; '.join(inside[:8])}"
            f"{f'; and {len(inside) - 8} more' if len(inside) > 8 else ''}. Replace the layers that make "
            'them, or use quantization="dynamic"',
        )
    promised = {"float16": ("float16",), "dynamic": ("int8", "int4")}.get(quantization)
    weights = weight_tensors(file)
    if promised and weights:
        require(
            any(weight.tensor.dtype in promised for weight in weights),
            f'quantization="{quantization}" changed none of the {len(weights)} weight tensors: the converter '
            'leaves small ones (under 1,024 values) in float32. Use "none", or "int8" for all of them',
        )


def _float_inside(file: FlatBuffer, float_io: bool) -> list[str]:
    """Operators with float tensors, as "TYPE (tensor)".

    Allowed are layers that were asked to stay in float, the graphs that they run, and what converts between them and
    integers; with `float_io` also what converts inputs and outputs.
    """
    main = file.graphs[0]
    islands = _island_operators(main)
    run_by_islands = _graphs_of(file, islands)
    convertible = {i for op in islands for i in op.tensors} | ({*main.inputs, *main.outputs} if float_io else set())

    def offends(graph: Graph, operator: Operator) -> bool:
        if operator in islands or graph in run_by_islands:
            return False
        allowed = convertible if graph is main and operator.type in CONVERSIONS else set()
        return any(graph.tensors[i].is_float and i not in allowed for i in operator.tensors)

    found = [(graph, op) for graph in file.graphs for op in graph.operators if offends(graph, op)]
    # The operators that compute are the cause, the conversions around them the consequence.
    found.sort(key=lambda pair: pair[1].type in CONVERSIONS)
    return [f"{op.type} ({', '.join(graph.tensors[i].name for i in op.outputs)})" for graph, op in found]


def _island_operators(graph: Graph) -> list[Operator]:
    """The operators that each `FloatIsland` made: its scope is part of their outputs' names."""
    found: list[Operator] = []
    made: set[int] = set()
    for operator in graph.operators:
        names = ";".join(graph.tensors[i].name for i in operator.outputs)
        is_inside = any(re.fullmatch(rf"{SCOPE}(_\d+)?", part) for part in re.split("[/;]", names))
        # The converter moves a reshape behind an island in front of the rounding between them.
        is_moved = operator.type == "RESHAPE" and operator.inputs[0] in made
        if operator.type not in CONVERSIONS and (is_inside or is_moved):
            found.append(operator)
            made.update(operator.outputs)
    return found


def _graphs_of(file: FlatBuffer, operators: Sequence[Operator]) -> list[Graph]:
    """The graphs that operators run, and those that run inside."""
    graphs = [file.graphs[i] for op in operators for i in op.graphs]
    return graphs + [each for graph in graphs for each in _graphs_of(file, graph.operators)]
