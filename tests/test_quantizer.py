"""Files of trained ranges and integers, written through ai-edge-quantizer."""

import dataclasses
import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.quantized_files import functional, measured, quantized, write
from tfopt.tflite.export import export_tflite
from tfopt.tflite.flatbuffer import parse_tflite, read_tflite
from tfopt.tflite.grids import Grid, kernels_of
from tfopt.tflite.quantizer import quantize_file
from tfopt.tflite.ranges import affine
from tfopt.tflite.run import predict_tflite

LIMITS = {8: 127, 4: 7}


def every_part():
    """Convolutions with and without normalization, residual addition, concatenation, poolings, dense, softmax."""
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = skip = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.Add(name="add")([x, skip])
    x = layers.MaxPooling2D(name="pool")(x)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="left")(x)
    z = layers.Conv2D(4, 1, name="right")(x)
    x = layers.Concatenate(name="concat")([y, z])
    x = layers.Conv2DTranspose(4, 3, strides=2, name="wider")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(6, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="probabilities")(x), name="every_part")


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """Integers times scales in Keras' layout."""

    values: np.ndarray
    scales: np.ndarray
    bits: int


# Axes of each kernel that lie within an output channel.
INNER = {"depthwise": (0, 1), "wider": (0, 1, 3), "hidden": (0,), "probabilities": (0,)}


def put_on_grids(model, bits):
    """Makes the kernels integers times scales, the largest integer of a channel anywhere from 3 to the limit.

    Returns:
      Kernels with the normalization folded in, by layer.
    """
    rng = np.random.default_rng(1)
    kernels = {}
    for layer in model.layers:
        if not layer.weights or layer.name == "norm":
            continue
        variable, limit = layer.kernel, LIMITS[bits[layer.name]]
        values = variable.numpy()
        largest = np.abs(values).max(INNER.get(layer.name, (0, 1, 2)), keepdims=True)
        reached = rng.integers(3, limit + 1, largest.shape)
        scales = (largest / reached).astype("float32")
        integers = np.clip(np.rint(values / scales), -reached, reached).astype("float32")
        variable.assign(integers * scales)
        if layer.use_bias:
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))
        kernels[layer.name] = Kernel(integers * scales, scales, bits[layer.name])
    # Factors of the normalization that float32 multiplies by without rounding.
    gamma = np.array([1, 0.5, -1, 2, 1, -0.5, 1, 4], "float32")
    norm = model.get_layer("norm")
    norm.set_weights([gamma, rng.normal(0, 0.3, 8), rng.normal(0, 0.3, 8), np.full(8, 1 - norm.epsilon)])
    conv = kernels["conv"]
    kernels["conv"] = dataclasses.replace(conv, values=conv.values * gamma, scales=conv.scales * np.abs(gamma))
    return kernels


# The order of the file's kernels, and of their axes: (channels, height, width, inputs) but for depthwise ones.
LAYOUTS = {
    "conv": (3, 0, 1, 2),
    "depthwise": (3, 0, 1, 2),
    "pointwise": (3, 0, 1, 2),
    "left": (3, 0, 1, 2),
    "right": (3, 0, 1, 2),
    "wider": (2, 0, 1, 3),
    "hidden": (1, 0),
    "probabilities": (1, 0),
}


def linear_operators(graph):
    return [op for op in graph.operators if "CONV" in op.type or op.type == "FULLY_CONNECTED"]


@dataclasses.dataclass
class Case:
    model: keras.Model
    x: np.ndarray
    path: str
    kernels: dict
    ranges: dict
    expected: np.ndarray

    def quantize(self, activation_bits=16, **arguments):
        graph = read_tflite(self.path).graphs[0]
        grids = {
            graph.tensors[op.inputs[1]].name: Grid(self.kernels[name].bits, self.kernels[name].scales.reshape(-1))
            for op, name in zip(linear_operators(graph), LAYOUTS, strict=True)
        }
        return quantize_file(self.path, self.ranges, grids, activation_bits=activation_bits, **arguments)

    @functools.cached_property
    def content(self):
        return self.quantize()


def make_case(folder, bits):
    keras.utils.set_random_seed(0)
    model = every_part()
    kernels = put_on_grids(model, {layer.name: bits.get(layer.name, 8) for layer in model.layers})
    x = np.random.default_rng(0).normal(size=(24, 12, 12, 3)).astype("float32")
    path = str(folder / "float.tflite")
    export_tflite(model, path)
    return Case(model, x, path, kernels, measured(path, x), np.asarray(model(x)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    mixed = {"conv": 4, "depthwise": 4, "wider": 4, "hidden": 4}
    return {bits: make_case(tmp_path_factory.mktemp(str(bits)), mixed if bits == 4 else {}) for bits in (8, 4)}


@pytest.mark.parametrize("bits", [8, 4])
def test_int16_files_compute_what_the_model_does(bits, cases, tmp_path):
    case = cases[bits]
    path = write(tmp_path, case.content)
    for use_xnnpack in (True, False):
        received = predict_tflite(path, case.x, use_xnnpack=use_xnnpack)
        # Probabilities, stored in steps of 1 / 32768 after eleven roundings.
        assert np.abs(received - case.expected).max() <= 1e-4
        assert (received.argmax(1) == case.expected.argmax(1)).mean() == 1


def test_int8_files_compute_what_the_model_does_but_for_their_steps(cases, tmp_path):
    case = cases[8]
    path = write(tmp_path, case.quantize(activation_bits=8))
    for use_xnnpack in (True, False):
        received = predict_tflite(path, case.x, use_xnnpack=use_xnnpack)
        assert 1e-4 < np.abs(received - case.expected).max() <= 3 / 256
    dtypes = {tensor.dtype for tensor in read_tflite(path).graphs[0].tensors if tensor.data is None}
    assert dtypes == {"int8"}


@pytest.mark.parametrize("bits", [8, 4])
def test_the_trained_integers_are_in_the_file(bits, cases):
    case = cases[bits]
    graph = parse_tflite(case.content).graphs[0]
    for operator, (name, layout) in zip(linear_operators(graph), LAYOUTS.items(), strict=True):
        kernel, tensor = case.kernels[name], graph.tensors[operator.inputs[1]]
        integers = np.rint(kernel.values / kernel.scales).transpose(layout)
        np.testing.assert_array_equal(tensor.data, integers.reshape(tensor.shape), name)
        # Channels do not reach the limit, so no scale can be had from the largest weight.
        reached = np.abs(integers).max(tuple(set(range(integers.ndim)) - {0 if name != "depthwise" else 3}))
        assert (reached < LIMITS[kernel.bits]).any()
        assert reached.max() <= LIMITS[kernel.bits]
        is_packed = kernel.bits == 4 and operator.type in ("CONV_2D", "FULLY_CONNECTED")
        assert tensor.dtype == ("int4" if is_packed else "int8")
        assert tensor.quantization.axis == (3 if name == "depthwise" else 0)
        np.testing.assert_array_equal(tensor.quantization.scales, kernel.scales.reshape(-1))


def test_all_activations_are_int16_on_the_trained_scales(cases):
    case = cases[8]
    file = parse_tflite(case.content)
    graph = file.graphs[0]
    activations = [tensor for tensor in graph.tensors if tensor.data is None]
    assert {tensor.dtype for tensor in activations} == {"int16"}
    assert not any(tensor.is_float for tensor in graph.tensors)
    assert [next(iter(file.inputs)), next(iter(file.outputs))] == ["image", "probabilities"]
    made = {graph.tensors[op.outputs[0]].name: op.type for op in graph.operators}
    # Convolutions of branches write on the scale of the concatenation, so nothing is requantized.
    assert "QUANTIZE" not in made.values()
    joined = next(graph.tensors[op.inputs[2]].name for op in graph.operators if op.type == "TRANSPOSE_CONV")
    branches = [graph.tensors[i].name for op in graph.operators if op.type == "CONCATENATION" for i in op.inputs]
    for tensor in activations:
        low, high = case.ranges[joined if tensor.name in branches else tensor.name]
        largest = 32767 / 32768 if made.get(tensor.name) == "SOFTMAX" else max(-low, high)
        np.testing.assert_allclose(tensor.quantization.scales, [largest / 32767], rtol=1e-6)
    biases = [graph.tensors[op.inputs[-1]] for op in graph.operators if "CONV" in op.type]
    assert {tensor.dtype for tensor in biases} == {"int64"}


def test_float_io_converts_at_the_edges_only(cases, tmp_path):
    case = cases[8]
    path = write(tmp_path, case.quantize(float_io=True))
    file = read_tflite(path)
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"float32"}
    types = [operator.type for operator in file.operators]
    assert (types[0], types[-1], types.count("QUANTIZE")) == ("QUANTIZE", "DEQUANTIZE", 1)
    assert sum(tensor.is_float for tensor in file.graphs[0].tensors) == 2
    assert np.abs(predict_tflite(path, case.x) - case.expected).max() <= 1e-4


def test_without_grids_scales_are_those_of_the_largest_weights(cases):
    case = cases[8]
    graph = parse_tflite(quantize_file(case.path, case.ranges, weight_bits=4)).graphs[0]
    for operator in graph.operators:
        if operator.type in ("CONV_2D", "FULLY_CONNECTED"):
            tensor = graph.tensors[operator.inputs[1]]
            assert tensor.dtype == "int4"
            assert (np.abs(tensor.data).reshape(len(tensor.data), -1).max(1) == 7).all()


def test_pruned_and_clustered_kernels_stay_so(tmp_path):
    layer = layers.Dense(8, use_bias=False)
    model = functional(layer, (16,))
    rng = np.random.default_rng(0)
    integers = rng.choice([-90, -33, -20, 0, 0, 0, 5, 40], (16, 8)).astype("float32")
    integers[integers[:, 0] == -90, 0] = 40
    # One scale for all, where the largest weights would give another one for each channel.
    scale = np.float32(0.0123)
    layer.kernel.assign(integers * scale)
    export_tflite(model, tmp_path / "float.tflite")
    x = rng.normal(size=(8, 16)).astype("float32")
    ranges = measured(tmp_path / "float.tflite", x)
    grids = {
        kernel.name: Grid(8, np.array([scale]))
        for kernel, _, _ in kernels_of(read_tflite(tmp_path / "float.tflite").graphs[0])
    }
    graph = parse_tflite(quantize_file(tmp_path / "float.tflite", ranges, grids)).graphs[0]
    stored = graph.tensors[graph.operators[0].inputs[1]]
    np.testing.assert_array_equal(stored.data, integers.T)
    lost = parse_tflite(quantize_file(tmp_path / "float.tflite", ranges)).graphs[0]
    assert len(np.unique(lost.tensors[graph.operators[0].inputs[1]].data)) > len(np.unique(integers))


def one_dense(folder):
    layer = layers.Dense(3)
    model = functional(layer, (4,))
    export_tflite(model, folder / "float.tflite")
    path = folder / "float.tflite"
    return (
        path,
        layer,
        {tensor.name: (-1.0, 1.0) for tensor in read_tflite(path).graphs[0].tensors if tensor.data is None},
    )


def test_bad_input_is_named(tmp_path):
    path, layer, ranges = one_dense(tmp_path)
    first, last = ranges
    with pytest.raises(ValueError, match=f"tensors without a range: '{last}' .FULLY_CONNECTED"):
        quantize_file(path, {first: (-1.0, 1.0)})
    with pytest.raises(ValueError, match="ranges for absent, which the file does not have"):
        quantize_file(path, ranges | {"absent": (0.0, 1.0)})
    for wrong in ((0.0, float("nan")), (1.0, -1.0), (0.0, 0.0), (-float("inf"), 0.0)):
        with pytest.raises(ValueError, match="must be two finite numbers, the lower first"):
            quantize_file(path, ranges | {last: wrong})
    for bits in ({"activation_bits": 4}, {"weight_bits": 16}):
        with pytest.raises(ValueError, match=r"_bits must be .* received (4|16)"):
            quantize_file(path, ranges, **bits)
    with pytest.raises(ValueError, match="grids for absent, which are no kernels"):
        quantize_file(path, ranges, {"absent": Grid(8, np.ones(1))})
    name = next(kernel.name for kernel, _, _ in kernels_of(read_tflite(path).graphs[0]))
    grids = {name: Grid(8, np.abs(layer.kernel.numpy()).max(0) / 100.4)}
    with pytest.raises(ValueError, match=r"are not the trained ones: up to 0\.[0-9]+ steps off"):
        quantize_file(path, ranges, grids)
    content = quantize_file(path, ranges)
    with pytest.raises(ValueError, match="is no file in float32"):
        quantize_file(write(tmp_path, content), ranges)
    with pytest.raises(FileNotFoundError):
        quantize_file(tmp_path / "absent.tflite", ranges)


def test_operators_without_an_integer_form_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"int16 activations are not to be had for ELU \("):
        quantized(functional(lambda x: ops.elu(x)), tmp_path)


def test_scales_are_those_of_training():
    assert affine((-0.5, 2.0), 16) == (2.0 / 32767, 0)
    assert affine((-3.0, 2.0), 16) == (3.0 / 32767, 0)
    assert affine((-1.0, 1.55), 8) == (pytest.approx(0.01), -28)


ALONE = """
import sys
import tfopt, tfopt.tflite.quantizer
assert "ai_edge_quantizer" not in sys.modules
sys.modules["ai_edge_quantizer"] = None  # as if it were not installed
try:
    tfopt.tflite.quantizer.quantize_file("absent.tflite", {})
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_quantizer_is_optional():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert "pip install 'tfopt[int16]'" in done.stdout, done.stderr[-3000:]
