"""Models of `keras.applications`, whole: quantized, trained a step, exported without a float tensor.

`python -m recipes.benchmarks.qat_coverage` runs all of them. These are slow too; tests/test_quantize_layers.py has each
layer by itself.
"""

import pytest

from recipes.benchmarks.qat_coverage import cover
from tfopt.tflite.flatbuffer import read_tflite

MODELS = [
    pytest.param("MobileNetV2", {"alpha": 0.35}, marks=pytest.mark.slow),
    pytest.param("MobileNetV3Small", {"alpha": 0.75}, marks=pytest.mark.slow),
    pytest.param("MobileNet", {"alpha": 0.25}, marks=pytest.mark.slow),
    pytest.param("EfficientNetB0", {}, marks=pytest.mark.slow),
    pytest.param("DenseNet121", {}, marks=pytest.mark.slow),
    pytest.param("ResNet50V2", {}, marks=pytest.mark.slow),
    pytest.param("ConvNeXtTiny", {}, marks=pytest.mark.slow),
    pytest.param("NASNetMobile", {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_the_file_is_all_integers(name, options, tmp_path):
    found = cover(name, tmp_path / "m.tflite", options)
    assert found.reason == "ok"
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"int8"}
    assert not [tensor.name for tensor in file.graphs[0].tensors if tensor.is_float]
    # No layer adds more than a rounding or two of its own.
    assert found.layer_lsb < 1.5
