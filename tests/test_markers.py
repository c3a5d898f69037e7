"""Trained ranges that go through the converter as fake quantization."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.tflite.export import export_tflite
from tfopt.tflite.flatbuffer import parse_tflite, read_tflite
from tfopt.tflite.markers import marker_range, strip_markers
from tfopt.tflite.quantizer import quantize_marked
from tfopt.tflite.run import predict_tflite


class FakeQuantization(layers.Layer):
    """Rounds to the grid of a trained range; `marks`: as the 8 bits that the converter knows."""

    def __init__(self, limits, bits, marks, **arguments):
        super().__init__(**arguments)
        self.limits, self.bits, self.marks = limits, bits, marks

    def call(self, x):
        if self.marks:
            return tf.quantization.fake_quant_with_min_max_vars(x, *marker_range(self.limits, self.bits), num_bits=8)
        if self.bits == 8:
            return tf.quantization.fake_quant_with_min_max_vars(x, *self.limits, num_bits=8)
        largest = max(-self.limits[0], self.limits[1])
        return tf.quantization.fake_quant_with_min_max_vars(x, -largest, largest, num_bits=16, narrow_range=True)


INPUT, CONV, RELU6, PRODUCT, SUM, JOINED, MEAN, LOGITS = (
    *((-3.0, 2.5), (-2.0, 2.2), (0.0, 6.0), (0.0, 1.0), (-2.0, 3.2), (-1.9, 3.4), (-0.5, 1.5), (-2.5, 1.5)),
)


def trained(bits, marks):
    """A network with what a converter folds: a bias behind a convolution, a factor, a padding, a reshape."""

    def quantizer(limits):
        return FakeQuantization(limits, bits, marks)

    inputs = keras.Input((8, 8, 3), name="x")
    x = quantizer(INPUT)(inputs)
    x = conv = quantizer(CONV)(layers.Conv2D(6, 3, padding="same", name="conv")(x))
    x = quantizer(RELU6)(layers.ReLU(6.0)(layers.Rescaling(1.0, 3.0)(x)))
    x = quantizer(PRODUCT)(layers.Rescaling(1 / 6)(x))
    x = quantizer(SUM)(layers.Add()([x, conv]))
    pooled = quantizer(SUM)(layers.MaxPooling2D()(x))
    x = quantizer(SUM)(layers.ZeroPadding2D(1)(pooled))
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = quantizer(JOINED)(layers.Concatenate()([pooled, x]))
    x = quantizer(MEAN)(layers.GlobalAveragePooling2D()(x))
    x = quantizer(LOGITS)(layers.Dense(5, name="dense")(x))
    fixed = (0.0, 255 / 256) if bits == 8 else (-32767 / 32768, 32767 / 32768)
    return keras.Model(inputs, [quantizer(fixed)(layers.Softmax(name="softmax")(x)), x], name="trained")


def pair(bits):
    """The network that is trained, the one that is converted with the same weights, and examples."""
    keras.utils.set_random_seed(0)
    model, marked = trained(bits, False), trained(bits, True)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            kernel = layer.kernel.numpy()
            inner = (0, 1) if layer.name == "depthwise" else tuple(range(kernel.ndim - 1))
            scales = np.abs(kernel).max(inner, keepdims=True) / 127
            layer.set_weights([np.rint(kernel / scales) * scales, rng.normal(0, 0.1, layer.bias.shape)])
    marked.set_weights(model.get_weights())
    return model, marked, rng.normal(size=(64, 8, 8, 3)).astype("float32")


def converted(model, folder):
    export_tflite(model, folder / "marked.tflite")
    return (folder / "marked.tflite").read_bytes()


@pytest.fixture(scope="module")
def of_16_bits(tmp_path_factory):
    """As `pair`, with the marked file's content."""
    model, marked, x = pair(16)
    return model, marked, x, converted(marked, tmp_path_factory.mktemp("marked"))


@pytest.mark.parametrize("bits", [16, pytest.param(8, marks=pytest.mark.slow)])
def test_files_compute_what_was_trained(bits, of_16_bits, tmp_path):
    model, marked, x, content = of_16_bits
    if bits == 8:
        model, marked, x = pair(8)
        content = converted(marked, tmp_path)
    (tmp_path / "m.tflite").write_bytes(quantize_marked(content, bits))
    file = read_tflite(tmp_path / "m.tflite")
    received = predict_tflite(tmp_path / "m.tflite", x, use_xnnpack=False)
    for (name, tensor), expected in zip(file.outputs.items(), model(x), strict=True):
        assert tensor.dtype == f"int{bits}"
        steps = np.abs(np.asarray(expected) - received[name]) / tensor.quantization.scales[0]
        # A kernel may round the other way than float32 does, and the next ones carry it on.
        assert steps.max() <= 2.05
        assert steps.mean() <= 0.4


def test_markers_leave_the_network_and_its_ranges(of_16_bits, tmp_path):
    _, marked, x, content = of_16_bits
    stripped, ranges, grids = strip_markers(content, 16)
    assert not grids
    (tmp_path / "float.tflite").write_bytes(stripped)
    file = read_tflite(tmp_path / "float.tflite")
    graph = file.graphs[0]
    assert not any(tensor.quantization for tensor in graph.tensors)
    assert list(file.outputs) == list(parse_tflite(content).outputs)
    found = [(op.type, ranges.get(graph.tensors[op.outputs[0]].name)) for op in graph.operators]

    def symmetric(limits):
        largest = max(-limits[0], limits[1])
        return pytest.approx((-largest, largest), rel=1e-6)

    # Nothing is folded over a quantizer: the addition is not in the bias, the padding not in the convolution.
    assert found == [
        ("CONV_2D", symmetric(CONV)),
        ("ADD", symmetric(RELU6)),
        ("MUL", symmetric(PRODUCT)),
        ("ADD", symmetric(SUM)),
        ("MAX_POOL_2D", symmetric(SUM)),
        ("PAD", symmetric(SUM)),
        ("DEPTHWISE_CONV_2D", None),
        ("CONCATENATION", symmetric(JOINED)),
        ("MEAN", symmetric(MEAN)),
        ("FULLY_CONNECTED", symmetric(LOGITS)),
        ("SOFTMAX", symmetric((0.0, 32767 / 32768))),
    ]
    assert ranges[graph.tensors[graph.inputs[0]].name] == symmetric(INPUT)
    # Without rounding the two networks are one.
    plain = unquantized(marked)
    for name, expected in zip(file.outputs, plain(x), strict=True):
        received = predict_tflite(tmp_path / "float.tflite", x)[name]
        np.testing.assert_allclose(received, expected, atol=1e-5)


def unquantized(model):
    """The same network without fake quantization."""

    def call(layer, *arguments, **named):
        return arguments[0] if isinstance(layer, FakeQuantization) else layer(*arguments, **named)

    return keras.models.clone_model(model, call_function=call, clone_function=lambda layer: layer)


def test_ranges_of_8_bits_come_out_as_fake_quantization_rounds_them(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, FakeQuantization((-1.0, 1.5), 8, True)(inputs))
    _, ranges, _ = strip_markers(converted(model, tmp_path), 8)
    # The zero point is rounded to an integer: 102.
    assert list(ranges.values()) == [pytest.approx((-102 / 102, 153 / 102), rel=1e-6)]


class OnGrid(layers.Layer):
    """Multiplies by a constant of integers times scales under the operator that tells its grid."""

    def __init__(self, multiply, integers, scales, bits, axis=-1, **arguments):
        super().__init__(**arguments)
        self.multiply, self.bits = multiply, bits
        self.values = (integers * np.asarray(scales)).astype("float32")
        self.ends = np.asarray(scales, "float32") * (2 ** (bits - 1) - 1)

    def call(self, x):
        ends, options = self.ends, {"num_bits": self.bits, "narrow_range": True}
        fake = tf.quantization
        if ends.ndim:
            return self.multiply(x, fake.fake_quant_with_min_max_vars_per_channel(self.values, -ends, ends, **options))
        return self.multiply(x, fake.fake_quant_with_min_max_vars(self.values, -ends, ends, **options))


def test_the_grids_of_constants_are_found(tmp_path):
    rng = np.random.default_rng(0)
    # No channel reaches the largest integer, so the values alone do not tell the scales.
    integers = {"conv": rng.integers(-5, 6, (3, 3, 2, 4)), "wider": rng.integers(-90, 90, (3, 3, 2, 4))}
    scales = {"conv": np.array([0.1, 0.02, 0.3, 0.004]), "wider": np.array(0.01)}
    row = np.array([-0.503, 1.0], "float32")
    x = FakeQuantization((-1.0, 1.0), 16, True)(inputs := keras.Input((6, 6, 2), name="x"))
    x = OnGrid(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), integers["conv"], scales["conv"], 4)(x)
    x = FakeQuantization((-2.0, 2.0), 16, True)(x)

    def transposed(x, kernel):
        return tf.nn.conv2d_transpose(x, kernel, (1, 12, 12, 2), 2)

    x = FakeQuantization((-4.0, 4.0), 16, True)(OnGrid(transposed, integers["wider"], scales["wider"], 8)(x))
    added = layers.Lambda(lambda x: x + tf.quantization.fake_quant_with_min_max_vars(row, -0.6, 1.0))(x)
    model = keras.Model(inputs, FakeQuantization((-5.0, 5.0), 16, True)(added))
    content, _, grids = strip_markers(converted(model, tmp_path), 16)
    graph = parse_tflite(content).graphs[0]
    assert [operator.type for operator in graph.operators] == ["CONV_2D", "TRANSPOSE_CONV", "ADD"]
    conv, wider = (graph.tensors[operator.inputs[1]] for operator in graph.operators[:2])
    for name, tensor, bits, axes in (("conv", conv, 4, (3, 0, 1, 2)), ("wider", wider, 8, (2, 0, 1, 3))):
        grid = grids[tensor.name]
        assert grid.bits == bits
        np.testing.assert_allclose(grid.scales, scales[name].reshape(-1), rtol=1e-6)
        np.testing.assert_array_equal(grid.integers(tensor, 0), integers[name].transpose(axes))
    # Other constants are rounded as in training: to steps of 1.6 / 255, zero being one of them.
    rounded = graph.tensors[graph.operators[2].inputs[1]].data
    np.testing.assert_allclose(rounded, np.rint(row * 255 / 1.6) * 1.6 / 255, rtol=1e-5)
    received = parse_tflite(quantize_marked(converted(model, tmp_path))).graphs[0]
    assert {received.tensors[op.inputs[1]].dtype for op in received.operators} == {"int4", "int8", "int16"}


def test_files_that_are_not_marked_well_are_errors(tmp_path):
    inputs = keras.Input((4,), name="x")
    dense = layers.Dense(3)
    plain = keras.Model(inputs, dense(inputs))
    with pytest.raises(ValueError, match="the file has no markers"):
        strip_markers(converted(plain, tmp_path), 16)
    twice = FakeQuantization((-1.0, 1.0), 16, True)(FakeQuantization((-2.0, 2.0), 16, True)(inputs))
    with pytest.raises(ValueError, match=r"has two trained ranges, .*2.0.* and .*1.0.*: LiteRT has one scale"):
        strip_markers(converted(keras.Model(inputs, dense(twice)), tmp_path), 16)
    with pytest.raises(ValueError, match="must be two finite numbers"):
        marker_range((0.0, float("nan")), 16)
