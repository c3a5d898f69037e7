"""Export, reading and running of .tflite files."""

import functools
import gc
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.measure.file import measure_tflite
from tfopt.tflite.examples import InputSpec, read_examples
from tfopt.tflite.export import export_tflite
from tfopt.tflite.flatbuffer import Quantization, Tensor, _unpack, parse_tflite, read_tflite
from tfopt.tflite.run import predict_tflite

# Largest difference to Keras, as a fraction of the largest output.
TOLERANCES = {"none": 1e-5, "float16": 5e-3, "dynamic": 0.05, "int8": 0.1, "int16x8": 0.05}
ALL = sorted(TOLERANCES)


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    # The converter collects garbage each time; spared TensorFlow's own objects, an export takes half as long.
    gc.freeze()
    yield
    gc.unfreeze()


def conv_net():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            layers.Conv2D(16, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="conv_net",
    )


def depthwise_net():
    inputs = keras.Input((10, 10, 3), name="image")
    x = layers.Conv2D(32, 3, activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.Conv2D(48, 1)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="depthwise_net")


def two_by_two(nested=False):
    """Two inputs, two outputs, none of them in alphabetical order."""
    left, extra = keras.Input((8,), name="left"), keras.Input((6,), name="extra")
    x = layers.Dense(40, activation="relu")(layers.Concatenate()([left, extra]))
    x = layers.Dense(40, activation="relu")(x)
    zeta, alpha = layers.Dense(3, name="zeta")(x), layers.Dense(1, activation="sigmoid", name="alpha")(x)
    if nested:
        return keras.Model({"left": left, "extra": extra}, {"second": zeta, "first": alpha})
    return keras.Model([left, extra], [zeta, alpha], name="two_by_two")


def dense_net():
    return keras.Sequential(
        [
            keras.Input((20,), name="x"),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="tanh"),
            layers.Dense(3, name="y"),
        ],
        name="dense_net",
    )


def normal(model, count=32, seed=0):
    """Standard normal examples for a model of one input, or a tuple of them for several."""
    generator = np.random.default_rng(seed)
    arrays = [generator.normal(size=(count, *each.shape[1:])).astype("float32") for each in model.inputs]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Gives (model, its examples, what export_tflite returned) of an architecture in a mode, made once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def make(build, quantization):
        keras.utils.set_random_seed(0)
        model = build()
        x = normal(model)
        path = folder / f"{model.name}_{quantization}.tflite"
        data = x if quantization.startswith("int") else None
        return model, x, export_tflite(model, path, quantization, data)

    return make


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("build", [conv_net, depthwise_net, dense_net])
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
    expected = model(
        {name: values.astype("float32") for name, values in x.items()} if nested else [*x.values()]
    )
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
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(4, 3, strides=4), layers.GlobalMaxPooling2D()]
    )
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
    with pytest.raises(
        ValueError, match=r"runs a loop in .*lstm.*cannot be calibrated for int8: .*unroll=True"
    ):
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


def ones(*shape):
    return np.ones(shape, "float32")


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


def test_examples_are_the_first_ones_of_any_kind_of_data():
    x, y = np.arange(40, dtype="float32").reshape(20, 2), np.arange(20)

    class Splits:
        def batches(self, split):
            assert split == "train"
            return tf.data.Dataset.from_tensor_slices((x, y)).batch(3)

    specs = [InputSpec("x", (2,), "float32")]
    dataset = tf.data.Dataset.from_tensor_slices((x, y, y)).batch(4)
    for data in (Splits(), dataset, (x, y), (x, y, y)):
        examples = read_examples(data, specs, 7, "train", "data")
        np.testing.assert_array_equal(examples.inputs["x"], x[:7])
        np.testing.assert_array_equal(examples.labels, y[:7])
    assert read_examples(x, specs, 100, "train", "data").labels is None
    pair = [InputSpec("a", (2,), "float32"), InputSpec("b", (2,), "float32")]
    for data in ((x, 2 * x), [x, 2 * x], {"b": 2 * x, "a": x}, ((x, 2 * x), y)):
        examples = read_examples(data, pair, 5, "train", "data")
        np.testing.assert_array_equal(examples.inputs["b"], 2 * x[:5])


def test_calibration_takes_no_more_than_asked(exported, tmp_path):
    model, x, measured = exported(dense_net, "int8")
    outliers = np.concatenate([x, 1000 * x])
    export_tflite(model, tmp_path / "m.tflite", "int8", outliers, calibration_examples=len(x))
    scales = [
        read_tflite(p).inputs["x"].quantization.scales[0] for p in (tmp_path / "m.tflite", measured.path)
    ]
    assert scales[0] == scales[1]


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


def test_the_converter_is_silent(tmp_path, capfd):
    export_tflite(dense_net(), tmp_path / "m.tflite", "int8", ones(4, 20))
    assert capfd.readouterr() == ("", "")


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
