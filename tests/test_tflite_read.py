"""Reading .tflite files: weights, types, and files that are damaged."""

import pathlib

import numpy as np
import pytest

from tests.tflite_models import dense_net, exporter, ones
from tfopt.measure.file import measure_tflite
from tfopt.tflite.flatbuffer import Quantization, Tensor, _unpack, parse_tflite, read_tflite
from tfopt.tflite.run import predict_tflite


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exporter(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def small_file(exported):
    return pathlib.Path(exported(dense_net, "int8")[2].path)


def test_every_truncation_is_told(small_file):
    content = small_file.read_bytes()
    for size in (*range(1, len(content), 53), len(content) - 1):
        with pytest.raises(ValueError, match=r"m\.tflite is damaged or cut short"):
            parse_tflite(content[:size], "m.tflite")


@pytest.mark.parametrize("use", [measure_tflite, read_tflite, lambda path: predict_tflite(path, ones(1, 20))])
def test_damaged_empty_foreign_and_missing_files(use, small_file, tmp_path):
    path = tmp_path / "m.tflite"
    for content in (b"", b"PK\x03\x04 a zip file", small_file.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.tflite is damaged or cut short"):
            use(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.tflite"):
        use(tmp_path / "none.tflite")


@pytest.mark.parametrize("quantization", ["none", "float16", "int8"])
def test_reading_gives_the_weights_back(quantization, exported):
    model, _, measured = exported(dense_net, quantization)
    main = read_tflite(measured.path).graphs[0]
    (kernel,) = (t for t in main.tensors if t.data is not None and t.shape == (64, 20))
    # Rounding is off by half a step at most, in float16 by 2^-11 of the value.
    steps = kernel.quantization.scales[:, None] / 2 if quantization == "int8" else 1e-3
    expected = np.asarray(model.layers[0].kernel).T
    assert (np.abs(kernel.dequantize().astype("float32") - expected) <= steps * 1.001).all()


def test_packed_types_and_channel_scales():
    packed = np.array([0x8F, 0x07], np.uint8)
    np.testing.assert_array_equal(_unpack(packed, 4, signed=True), [-1, -8, 7, 0])
    np.testing.assert_array_equal(_unpack(packed, 4, signed=False), [15, 8, 7, 0])
    np.testing.assert_array_equal(_unpack(packed, 2, signed=True), [-1, -1, 0, -2, -1, 1, 0, 0])
    scales = Quantization(np.array([1.0, 0.5], "float32"), np.array([0, 1]), axis=1)
    tensor = Tensor(0, "w", (2, 2), "int8", scales, np.array([[1, 3], [2, 1]], "int8"), 1)
    np.testing.assert_array_equal(tensor.dequantize(), [[1, 1], [2, 0]])
    np.testing.assert_array_equal(tensor.quantize(tensor.dequantize()), tensor.data)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (ones(3, 5), r"x has shape \(3, 5\) for the input 'x', expected \(batch, 20\)"),
        (np.full((2, 20), np.nan), "x holds 40 NaN"),
        (ones(0, 20), "x is empty"),
    ],
)
def test_bad_inputs_to_a_file(x, message, small_file):
    with pytest.raises(ValueError, match=message):
        predict_tflite(small_file, x)


def test_threads_must_be_positive(small_file):
    with pytest.raises(ValueError, match="threads must be at least 1, received 0"):
        predict_tflite(small_file, ones(1, 20), threads=0)
