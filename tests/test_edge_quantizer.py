"""What ai-edge-quantizer leaves in float32, or gets wrong, comes out right."""

import numpy as np
import pytest
from keras import layers, ops

from tests.quantized_files import functional, largest_error, quantized
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.run import predict_tflite

# What ai-edge-quantizer itself would leave in float32, or compute wrongly.
STAND_INS = {
    "RELU6": lambda x: ops.relu6(x),
    "LEAKY_RELU": lambda x: ops.leaky_relu(x, 0.1),
    "MINIMUM": lambda x: ops.minimum(x, 0.3 * x),
    "REDUCE_MAX": lambda x: layers.GlobalMaxPooling2D()(x),
    "TILE": lambda x: layers.UpSampling2D()(x),
    "ABS": lambda x: ops.abs(x),
    "NEG": lambda x: -x,
    "EXP": lambda x: ops.exp(0.3 * x),
    "LOG": lambda x: ops.log(ops.relu(x) + 1.0),
    "BATCH_MATMUL": lambda x: ops.matmul(x, np.random.default_rng(0).normal(size=(6, 4, 5)).astype("float32")),
}


FAST = ("RELU6", "NEG", "EXP", "BATCH_MATMUL", "CONV_2D", "FULLY_CONNECTED")


def fast_first(kinds):
    return [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FAST)) for kind in kinds]


@pytest.mark.parametrize("kind", fast_first(STAND_INS))
def test_operators_that_the_quantizer_does_not_know(kind, tmp_path):
    model = functional(STAND_INS[kind])
    path, x = quantized(model, tmp_path)
    file = read_tflite(path)
    assert kind in [operator.type for operator in file.operators]
    assert not any(tensor.is_float for tensor in file.graphs[0].tensors)
    # LiteRT looks exp and log up in a table of 513 entries.
    assert largest_error(model, path, x) <= (3e-3 if kind in ("EXP", "LOG") else 1e-4)


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_outputs_that_nobody_reads_are_integers_too(activation_bits, tmp_path):
    model = functional(lambda x: ops.split(x, 2, -1)[1] * 0.5)
    path, x = quantized(model, tmp_path, activation_bits)
    assert not any(tensor.is_float for tensor in read_tflite(path).graphs[0].tensors)
    for use_xnnpack in (True, False):
        assert largest_error(model, path, x, use_xnnpack=use_xnnpack) <= 2 / 2**activation_bits


def test_a_branch_that_is_read_elsewhere_is_requantized_for_its_concatenation(tmp_path):
    def build(x):
        small = ops.relu(0.1 * x)
        return ops.concatenate([small, x * 3.0], -1) + ops.concatenate([small, small], -1)

    model = functional(build)
    path, x = quantized(model, tmp_path)
    assert "QUANTIZE" in [operator.type for operator in read_tflite(path).operators]
    assert largest_error(model, path, x) <= 1e-4


LAYERS = {
    "CONV_2D": lambda: layers.Conv2D(4, 3),
    "DEPTHWISE_CONV_2D": lambda: layers.DepthwiseConv2D(3),
    "TRANSPOSE_CONV": lambda: layers.Conv2DTranspose(4, 3),
    "FULLY_CONNECTED": lambda: layers.Dense(4),
}


def with_weak_channels(kind, factor):
    """A layer whose first channel has small weights and a bias that is not, and whose second one is all zeros."""
    layer = LAYERS[kind]()
    model = functional(lambda x: layer(layers.Flatten()(x) if kind == "FULLY_CONNECTED" else x))
    kernel = layer.kernel.numpy()
    axis = {"DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 2}.get(kind, kernel.ndim - 1)
    channels = np.moveaxis(kernel, axis, 0)
    channels[0] *= factor
    channels[1] = 0
    layer.kernel.assign(kernel)
    layer.bias.assign([0.7, -0.9, 0.1, 0.0])
    return model


@pytest.mark.parametrize("kind", fast_first(LAYERS))
def test_channels_of_tiny_or_no_weights_keep_their_bias(kind, tmp_path):
    # In steps of the weights the bias needs 35 to 42 bits, where ai-edge-quantizer keeps 32.
    model = with_weak_channels(kind, 1e-5)
    path, x = quantized(model, tmp_path)
    graph = read_tflite(path).graphs[0]
    operator = next(each for each in graph.operators if each.type == kind)
    stored = graph.tensors[operator.inputs[-1]]
    assert stored.dtype == "int64"
    assert np.abs(stored.data[0]) > 2**33
    expected, received = np.asarray(model(x)), predict_tflite(path, x)
    weak = np.abs(expected - received).reshape(-1, 4)[:, :2]
    assert weak.max() <= 2e-4


def test_a_bias_beyond_32_bits_is_an_error_where_kernels_accumulate_32(tmp_path):
    with pytest.raises(ValueError, match=r"the bias .* accumulates up to 2\.15e\+09: .* Train them with a scale of"):
        quantized(with_weak_channels("CONV_2D", 1e-7), tmp_path, activation_bits=8)
    # Zeros alone are none.
    model = with_weak_channels("CONV_2D", 1.0)
    path, x = quantized(model, tmp_path, activation_bits=8)
    assert np.abs(np.asarray(model(x)) - predict_tflite(path, x))[..., 1].max() <= 0.02
