"""What export refuses, in words: bad arguments and data, and files that would not hold what was asked for."""

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from tests.tflite_models import dense_net, ones
from tfopt.tflite.export import export_tflite
from tfopt.tflite.run import check_runs, predict_tflite


def unbuilt():
    return keras.Sequential([layers.Dense(3)], name="unbuilt")


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (dense_net, {"quantization": "int4"}, "must be one of none, float16, dynamic, int8, int16x8.*'int4'"),
        (dense_net, {"quantization": "int8"}, "needs calibration_data"),
        (dense_net, {"quantization": "int16x8"}, "needs calibration_data"),
        (dense_net, {"float_io": True}, "float_io is for int8 and int16x8"),
        (dense_net, {"batch_size": 0}, "batch_size must be at least 1"),
        (unbuilt, {}, "'unbuilt' is not built: give a Sequential model a keras.Input"),
        (
            lambda: keras.Sequential([keras.Input((2,), name="a-b"), layers.Dense(3)]),
            {},
            "'a-b'.*cannot be named so",
        ),
        (
            lambda: keras.Sequential([keras.Input(batch_shape=(2, 3)), layers.Dense(3)]),
            {},
            "built for batches of 2.*pass batch_size=2",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3)]),
            {"quantization": "dynamic"},
            "changed none of the 1 weight tensors.*under 1,024",
        ),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(build, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_tflite(build(), tmp_path / "m.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"expected a Keras 3 model .* received builtins.str"):
        export_tflite("model", tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (np.full((4, 20), np.nan), ValueError, "calibration_data holds 80 NaN or infinite"),
        (np.full((4, 20), np.inf), ValueError, "NaN or infinite value.* for the input 'x'"),
        (ones(4, 3), ValueError, r"shape \(4, 3\) for the input 'x', expected \(batch, 20\)"),
        (ones(0, 20), ValueError, "calibration_data is empty"),
        (
            tf.data.Dataset.from_tensor_slices(ones(4, 20)),
            ValueError,
            r"Is the dataset batched\? Call .batch",
        ),
        (tf.data.Dataset.from_tensor_slices(ones(4, 20)).batch(2).take(0), ValueError, "is empty"),
        ((ones(4, 20), ones(3)), ValueError, r"different lengths: \[3, 4\]"),
        ([ones(4, 20), ones(4, 20)], ValueError, "gives 2 input.*the model has 1: x"),
        ({"z": ones(4, 20)}, ValueError, "has no x: it gives z"),
        (np.array([["a"] * 20]), ValueError, "expected numbers"),
        ("images", TypeError, "must be a batched tf.data.Dataset.*received str"),
    ],
)
def test_bad_calibration_data(data, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_tflite(dense_net(), tmp_path / "m.tflite", "int8", data)
    assert list(tmp_path.iterdir()) == []


def needs(function):
    return keras.Sequential([keras.Input((4, 4)), layers.Lambda(function), layers.Dense(40)], name="odd")


def test_flex_ops_are_refused_unless_allowed(tmp_path):
    model = needs(keras.ops.erf)
    with pytest.raises(ValueError, match="'odd' needs TensorFlow ops that LiteRT does not have: Erf"):
        export_tflite(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []
    measured = export_tflite(model, tmp_path / "m.tflite", allow_flex=True)
    assert measured.flex_ops == ["Erf"]
    with pytest.raises(ValueError, match="needs Erf, which LiteRT's own runtime does not have"):
        predict_tflite(tmp_path / "m.tflite", ones(1, 4, 4))


def test_custom_ops_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs custom ops that LiteRT does not have: Erfinv"):
        export_tflite(needs(tf.math.erfinv), tmp_path / "m.tflite")


def test_a_float_island_in_an_int8_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"int8 file still holds float tensors: SIN \(odd.*Sin\)"):
        export_tflite(needs(tf.math.sin), tmp_path / "m.tflite", "int8", ones(4, 4, 4))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_litert_cannot_run_is_named(tmp_path):
    """Scales so uneven that a kernel cannot be prepared: the file is well-formed all the same."""
    model = keras.Sequential([keras.Input((4, 4, 2), name="x"), layers.Conv2D(2, 1, name="y")])
    data = np.random.default_rng(0).normal(0, 1, (20, 4, 4, 2)).astype("float32")
    path = tmp_path / "m.tflite"
    export_tflite(model, path, "int8", data)
    check_runs(path)
    content = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = content.subgraphs[0]
    graph.tensors[graph.operators[0].outputs[0]].quantization.scale = [1e-30]
    builder = flatbuffers.Builder(1024)
    builder.Finish(content.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(RuntimeError, match="the converter wrote a file that LiteRT cannot run: .*failed to prepare"):
        check_runs(path)
