"""Numbers of bits: by layer, packed in the file or held in int8."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs
from tests.test_quantize import SIZES, fitted, integers
from tfopt.measure.file import weight_tensors
from tfopt.quantize.bits import InInt8
from tfopt.quantize.integers import largest_integer
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.parity import require_parity


@pytest.mark.parametrize("bits", [4, 8])
def test_the_files_integers_are_the_trained_ones(bits, trained, tmp_path):
    model = fitted(tfopt.quantize_aware(trained, weight_bits=bits))
    tfopt.export_tflite(model, tmp_path / "m.tflite")
    stored = integers(tmp_path / "m.tflite")
    kernel = model.get_layer("conv").layer.kernel.numpy()
    scale = np.abs(kernel).max((0, 1, 2)) / largest_integer(bits)
    sign = np.sign(model.get_layer("conv").batch_norm.gamma.numpy())
    expected = (np.round(kernel / scale) * sign).transpose(3, 0, 1, 2)
    assert any(values.shape == expected.shape and np.array_equal(values, expected) for values in stored.values())
    assert max(np.abs(values).max() for values in stored.values()) == largest_integer(bits)
    dtypes = {weight.tensor.dtype for weight in weight_tensors(read_tflite(tmp_path / "m.tflite"))}
    assert dtypes == {f"int{bits}"}


def bits_in_file(model, folder):
    x, _ = blobs(40)
    tfopt.calibrate(model, x)
    tfopt.export_tflite(model, folder / "m.tflite")
    stored = weight_tensors(read_tflite(folder / "m.tflite"))
    return {weight.values.size: weight.tensor.dtype for weight in stored}


@pytest.mark.parametrize(
    ("weight_bits", "layers", "four"),
    [
        # Without a choice of layers: other tests read such files too.
        pytest.param(8, None, [], marks=pytest.mark.slow),
        pytest.param(4, None, ["conv", "hidden", "out"], marks=pytest.mark.slow),
        (8, {"hidden": 4}, ["hidden"]),
        pytest.param(4, {"conv": 8}, ["hidden", "out"], marks=pytest.mark.slow),
        (4, ["conv"], ["conv"]),
        (4, lambda layer: layer.name == "out", ["out"]),
        (8, {"conv": 4, "hidden": InInt8(4)}, ["conv"]),
        (8, lambda layer: 4 if isinstance(layer, keras.layers.Dense) else None, ["hidden", "out"]),
    ],
)
def test_bits_by_layer(weight_bits, layers, four, trained, tmp_path):
    model = tfopt.quantize_aware(trained, weight_bits, layers=layers)
    found = bits_in_file(model, tmp_path)
    assert found == {size: "int4" if name in four else "int8" for name, size in SIZES.items()}


@pytest.mark.parametrize(("bits", "largest"), [(2, 1), (3, 3), (4, 7), (6, 31)])
def test_other_numbers_of_bits_are_held_in_int8(bits, largest, trained, tmp_path):
    model = fitted(tfopt.quantize_aware(trained, InInt8(bits)))
    x, _ = blobs(40)
    model.save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    tfopt.export_tflite(model, tmp_path / "m.tflite")
    stored = weight_tensors(read_tflite(tmp_path / "m.tflite"))
    assert {weight.tensor.dtype for weight in stored} == {"int8"}
    assert {int(np.abs(weight.values).max()) for weight in stored} == {largest}
    require_parity(tfopt.verify_tflite(model, tmp_path / "m.tflite", x))


def test_what_is_not_packed_is_small_after_gzip_only(trained, tmp_path):
    files = {}
    for bits, packed in ((8, True), (4, True), (4, False)):
        aware = tfopt.quantize_aware(trained, bits if packed else InInt8(bits))
        tfopt.calibrate(aware, blobs(40)[0])
        files[bits, packed] = tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert files[4, False].bytes == files[8, True].bytes > files[4, True].bytes
    assert files[4, True].gzip_bytes < files[4, False].gzip_bytes < 0.9 * files[8, True].gzip_bytes
