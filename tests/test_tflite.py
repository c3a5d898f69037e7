"""Exported .tflite files compute what their Keras models compute."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.tflite_models import conv_net, dense_net, depthwise_net, exporter, normal, ones, two_by_two
from tfopt.data import as_data
from tfopt.tflite.examples import InputSpec, read_examples
from tfopt.tflite.export import export_tflite
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.names import shorten_names
from tfopt.tflite.run import predict_tflite
from tfopt.train.models import ds_cnn

# Largest difference to Keras, as a fraction of the largest output.
TOLERANCES = {"none": 1e-5, "float16": 5e-3, "dynamic": 0.05, "int8": 0.1, "int16x8": 0.05}
ALL = sorted(TOLERANCES)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exporter(tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize(
    ("build", "quantization"),
    [
        # Depthwise convolutions in one mode; the other networks have each mode.
        pytest.param(build, mode, marks=[pytest.mark.slow] * (build is depthwise_net and mode != "int8"))
        for build in (conv_net, depthwise_net, dense_net)
        for mode in ALL
    ],
)
def test_every_mode_computes_what_keras_computes(build, quantization, exported):
    model, x, measured = exported(build, quantization)
    expected, received = np.asarray(model(x)), predict_tflite(measured.path, x)
    assert np.abs(expected - received).max() <= TOLERANCES[quantization] * np.abs(expected).max()
    assert (measured.float_ops == []) == quantization.startswith("int")
    assert measured.flex_ops == []
    file = read_tflite(measured.path)
    io = {"int8": "int8", "int16x8": "int16"}.get(quantization, "float32")
    (name, given), (output, result) = *file.inputs.items(), *file.outputs.items()
    assert (name, given.dtype, given.shape) == (model.inputs[0].name, io, (1, *x.shape[1:]))
    assert (output, result.dtype, result.shape) == (model.layers[-1].name, io, (1, expected.shape[1]))


def test_shorter_names_change_nothing_else(tmp_path):
    """Against the converter's file with its own names: same tensors and answers, same layers named, fewer bytes."""
    model = ds_cnn((8, 8, 1), 3, filters=8)
    x = normal(model, 4)
    model.export(tmp_path / "saved", verbose=False)
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert()
    paths = [tmp_path / "long.tflite", tmp_path / "short.tflite"]
    for path, each in zip(paths, (content, shorten_names(content)), strict=True):
        path.write_bytes(each)
    before, after = (read_tflite(path) for path in paths)
    assert np.array_equal(predict_tflite(paths[0], x), predict_tflite(paths[1], x))
    assert [each.name for each in after.inputs.values()] == [each.name for each in before.inputs.values()]
    names = [[each.name for each in file.graphs[0].tensors] for file in (before, after)]
    assert len(set(names[1])) == len(set(names[0])) == len(names[0])
    assert sum(map(len, names[1])) < 0.8 * sum(map(len, names[0]))
    for long, short in zip(*names, strict=True):
        assert set(short.split(";")) <= set(long.split(";"))
    layers_in = [{part.split("/")[1] for name in each for part in name.split(";") if "/" in part} for each in names]
    assert layers_in[0] == layers_in[1]
    assert len(layers_in[0]) > 10
    assert shorten_names(paths[1].read_bytes()) == paths[1].read_bytes()
    exported = export_tflite(model, tmp_path / "exported.tflite")
    assert max(each.name.count(";") for each in read_tflite(exported.path).graphs[0].tensors) == 2


def test_quantized_files_are_smaller(exported):
    sizes = {mode: exported(dense_net, mode)[2].bytes for mode in ALL}
    assert sizes["float16"] < 0.65 * sizes["none"]
    assert max(sizes[mode] for mode in ("dynamic", "int8", "int16x8")) < 0.5 * sizes["none"]


@pytest.mark.parametrize(("quantization", "nested"), [("none", False), ("int8", True), ("int8", False)])
def test_two_inputs_and_outputs_keep_names_and_order(quantization, nested, tmp_path):
    keras.utils.set_random_seed(0)
    model = two_by_two(nested)
    generator = np.random.default_rng(0)
    x = {"left": generator.normal(size=(20, 8)), "extra": generator.normal(size=(20, 6))}
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(20))).batch(7) if quantization == "int8" else None
    export_tflite(model, tmp_path / "m.tflite", quantization, data)
    file = read_tflite(tmp_path / "m.tflite")
    assert list(file.inputs) == [each.name for each in model.inputs]
    assert list(file.outputs) == (["second", "first"] if nested else ["zeta", "alpha"])
    assert list(file.signatures) == ["serving_default"]
    expected = model({name: values.astype("float32") for name, values in x.items()} if nested else [*x.values()])
    received = predict_tflite(tmp_path / "m.tflite", x)
    for name, values in zip(file.outputs, expected.values() if nested else expected, strict=True):
        assert np.abs(values - received[name]).max() <= 0.1 * np.abs(values).max()


@pytest.mark.parametrize(("quantization", "dtype"), [("int8", "int8"), ("int16x8", "int16")])
def test_float_io_keeps_the_inside_in_integers(quantization, dtype, tmp_path):
    model = conv_net()
    x = normal(model)
    measured = export_tflite(model, tmp_path / "m.tflite", quantization, x, float_io=True)
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"float32"}
    assert measured.float_ops == []
    assert measured.ops["QUANTIZE"] == measured.ops["DEQUANTIZE"] == 1
    inside = [t for t in file.graphs[0].tensors if t.is_float]
    assert len(inside) == 2


def test_dynamic_batch(tmp_path):
    model = conv_net()
    export_tflite(model, tmp_path / "m.tflite", batch_size=None)
    file = read_tflite(tmp_path / "m.tflite")
    assert file.inputs["image"].shape == (-1, 12, 12, 3)
    x = normal(model, 37)
    np.testing.assert_allclose(predict_tflite(tmp_path / "m.tflite", x), model(x), atol=1e-6)


def test_static_batch_of_several_is_filled_up(exported, tmp_path):
    model, x, measured = exported(dense_net, "int8")
    export_tflite(model, tmp_path / "m.tflite", "int8", x, batch_size=4)
    assert read_tflite(tmp_path / "m.tflite").inputs["x"].shape == (4, 20)
    x = normal(model, 10, seed=1)
    received = predict_tflite(tmp_path / "m.tflite", x, raw=True)
    assert received.shape == (10, 3)
    np.testing.assert_array_equal(received, predict_tflite(measured.path, x, raw=True))


def test_raw_outputs_are_the_integers(exported):
    _, x, measured = exported(dense_net, "int8")
    raw, real = (predict_tflite(measured.path, x, raw=raw) for raw in (True, False))
    output = read_tflite(measured.path).outputs["y"]
    assert raw.dtype == np.int8
    assert real.dtype == np.float32
    np.testing.assert_allclose(output.dequantize(raw), real)
    assert len(np.unique(raw)) > 20


def test_ten_thousand_images_run_in_reasonable_time(tmp_path):
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(4, 3, strides=4), layers.GlobalMaxPooling2D()])
    export_tflite(model, tmp_path / "m.tflite", "int8", normal(model))
    x = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3)).astype("uint8")
    assert predict_tflite(tmp_path / "m.tflite", x).shape == (10_000, 4)


def test_recurrent_layers(tmp_path):
    def build(unroll):
        return keras.Sequential(
            [keras.Input((6, 8)), layers.LSTM(24, unroll=unroll), layers.Dense(3)], name="recurrent"
        )

    keras.utils.set_random_seed(0)
    model = build(False)
    x = normal(model)
    assert export_tflite(model, tmp_path / "m.tflite").ops["WHILE"] == 1
    np.testing.assert_allclose(predict_tflite(tmp_path / "m.tflite", x), model(x), atol=1e-5)
    with pytest.raises(ValueError, match=r"runs a loop in .*lstm.*cannot be calibrated for int8: .*unroll=True"):
        export_tflite(model, tmp_path / "m.tflite", "int8", x)
    with pytest.raises(ValueError, match="static batch only: pass batch_size=1"):
        export_tflite(model, tmp_path / "m.tflite", batch_size=None)
    unrolled = build(True)
    unrolled.set_weights(model.get_weights())
    assert export_tflite(unrolled, tmp_path / "m.tflite", "int8", x).float_ops == []
    expected = np.asarray(model(x))
    assert np.abs(predict_tflite(tmp_path / "m.tflite", x) - expected).max() < 0.1 * np.abs(expected).max()


def test_a_gru_exports_as_dynamic(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 8)), layers.GRU(24), layers.Dense(3)])
    x = normal(model)
    export_tflite(model, tmp_path / "m.tflite", "dynamic")
    np.testing.assert_allclose(predict_tflite(tmp_path / "m.tflite", x), model(x), atol=0.02)


def test_an_embedding_keeps_its_integer_input(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32", name="ids"),
            layers.Embedding(50, 32),
            layers.GlobalAveragePooling1D(),
        ]
    )
    x = np.random.default_rng(0).integers(0, 50, (40, 6))
    measured = export_tflite(model, tmp_path / "m.tflite", "int8", x)
    assert measured.float_ops == []
    assert read_tflite(tmp_path / "m.tflite").inputs["ids"].dtype == "int32"
    assert [tensor.shape for tensor in measured.tensors] == [(50, 32)]
    np.testing.assert_allclose(predict_tflite(tmp_path / "m.tflite", x), model(x), atol=2e-3)


def test_a_subclassed_model_of_one_tensor(tmp_path):
    class Small(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4)

        def call(self, features):
            return self.dense(features)

    model = Small()
    with pytest.raises(ValueError, match=r"is not built: .* call the model once"):
        export_tflite(model, tmp_path / "m.tflite")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    expected = model(x)
    export_tflite(model, tmp_path / "m.tflite")
    assert list(read_tflite(tmp_path / "m.tflite").inputs) == ["features"]
    np.testing.assert_allclose(predict_tflite(tmp_path / "m.tflite", x), expected, atol=1e-6)


def test_a_subclassed_model_of_several_tensors_is_refused(tmp_path):
    class Sum(keras.Model):
        def call(self, tensors):
            return tensors[0] + tensors[1]

    model = Sum()
    model([np.zeros((2, 3), "float32"), np.zeros((2, 3), "float32")])
    with pytest.raises(ValueError, match="only subclassed models with a single tensor as input"):
        export_tflite(model, tmp_path / "m.tflite")


def test_mixed_precision_is_exported_in_float32(tmp_path):
    policy = "mixed_bfloat16"
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            layers.Conv2D(8, 3, activation="relu", dtype=policy),
            layers.Dropout(0.5, dtype=policy),
            layers.Flatten(dtype=policy),
            layers.Dense(5, dtype="float32"),
        ]
    )
    export_tflite(model, tmp_path / "m.tflite")
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in file.graphs[0].tensors if tensor.is_float} == {"float32"}
    x = normal(model)
    difference = np.abs(predict_tflite(tmp_path / "m.tflite", x) - model(x)).max()
    assert 0 < difference < 0.05


def test_examples_are_the_first_of_datasets_and_evenly_spaced_of_arrays():
    x, y = np.arange(40, dtype="float32").reshape(20, 2), np.arange(20)

    class Splits:
        def batches(self, split):
            assert split == "train"
            return tf.data.Dataset.from_tensor_slices((x, y)).batch(3)

    specs = [InputSpec("x", (2,), "float32")]
    dataset = tf.data.Dataset.from_tensor_slices((x, y, y)).batch(4)
    spread = [0, 2, 5, 8, 11, 14, 17]
    for data, rows in ((Splits(), range(7)), (dataset, range(7)), ((x, y), spread), ((x, y, y), spread)):
        examples = read_examples(data, specs, 7, "train", "data")
        np.testing.assert_array_equal(examples.inputs["x"], x[rows])
        np.testing.assert_array_equal(examples.labels, y[rows])
    assert read_examples(x, specs, 100, "train", "data").labels is None
    pair = [InputSpec("a", (2,), "float32"), InputSpec("b", (2,), "float32")]
    for data in ((x, 2 * x), [x, 2 * x], {"b": 2 * x, "a": x}, ((x, 2 * x), y)):
        examples = read_examples(data, pair, 5, "train", "data")
        np.testing.assert_array_equal(examples.inputs["b"], 2 * x[::4])


def test_examples_of_sorted_data_are_of_every_class():
    x = np.repeat(np.arange(10.0, dtype="float32"), 20)[:, None]
    specs = [InputSpec("x", (1,), "float32")]
    for data in (x, as_data((x, x[:, 0].astype(int)))):
        assert len(np.unique(read_examples(data, specs, 50, "train", "data").inputs["x"])) == 10


def test_calibration_takes_no_more_than_asked(exported, tmp_path):
    model, x, measured = exported(dense_net, "int8")
    outliers = np.stack([x, 1000 * x], axis=1).reshape(-1, *x.shape[1:])
    export_tflite(model, tmp_path / "m.tflite", "int8", outliers, calibration_examples=len(x))
    scales = [read_tflite(p).inputs["x"].quantization.scales[0] for p in (tmp_path / "m.tflite", measured.path)]
    assert scales[0] == scales[1]


def test_the_converter_is_silent(tmp_path, capfd):
    export_tflite(dense_net(), tmp_path / "m.tflite", "int8", ones(4, 20))
    assert capfd.readouterr() == ("", "")
