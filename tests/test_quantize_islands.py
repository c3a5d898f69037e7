"""Layers that stay in float: named, saved, and the only float in the file."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs
from tfopt.measure.file import CONVERSIONS
from tfopt.tflite.flatbuffer import read_tflite

layers = keras.layers


def sine_of(x):
    return keras.ops.sin(x)


def model_with(step):
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="before")(inputs)
    x = step(x)
    x = layers.Conv2D(4, 3, activation="relu", name="after")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="out")(x))


CASES = {
    "raw operator": (sine_of, "sin", "Sin"),
    "layer": (layers.GroupNormalization(2, name="groups"), "groups", "GroupNormalization"),
}


@pytest.mark.parametrize("case", CASES)
def test_only_the_island_is_float(case, tmp_path):
    step, name, reason = CASES[case]
    model = model_with(step)
    with pytest.raises(ValueError, match=f'1 operations .*{name}.*on_unsupported="float"'):
        tfopt.quantize_aware(model)
    aware = tfopt.quantize_aware(model, on_unsupported="float")
    islands = tfopt.float_islands(aware)
    assert list(islands) == [name]
    assert reason in islands[name]
    x, y = blobs(48)
    tfopt.calibrate(aware, x)
    aware.compile("adam", "sparse_categorical_crossentropy")
    aware.fit(x, y, verbose=0, shuffle=False)
    aware.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert tfopt.float_islands(again) == islands
    assert np.array_equal(again.predict(x, verbose=0), aware.predict(x, verbose=0))
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"int8"}
    main = file.graphs[0]
    computed = {
        operator.type: {main.tensors[i].dtype for i in operator.outputs}
        for operator in main.operators
        if operator.type not in CONVERSIONS
    }
    assert all(computed[kind] == {"int8"} for kind in ("CONV_2D", "FULLY_CONNECTED", "SOFTMAX"))
    assert any("float32" in kinds for kinds in computed.values())
    found = tfopt.verify_tflite(aware, tmp_path / "m.tflite", (x, y), use_xnnpack=False)
    assert found.mean_lsb < 1.0


def test_no_islands_where_all_have_rules():
    model = model_with(layers.ReLU())
    assert tfopt.float_islands(tfopt.quantize_aware(model, on_unsupported="float")) == {}
