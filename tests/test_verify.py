"""Parity between a Keras model and its .tflite file."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfopt
from tfopt.tflite.export import export_tflite
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.metric import choose_metric
from tfopt.tflite.run import predict_tflite
from tfopt.tflite.verify import kind_of_file, verify_tflite

MODES = ["none", "float16", "dynamic", "int8", "int16x8"]


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    # The converter collects garbage each time; spared TensorFlow's own objects, an export takes half as long.
    gc.freeze()
    yield
    gc.unfreeze()


def residual_net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_norm")(x)
    x = layers.ReLU(name="stem_relu")(x)
    y = layers.Conv2D(16, 3, padding="same", activation="swish", name="branch")(x)
    y = layers.Conv2D(16, 3, padding="same", name="branch_1")(y)
    x = layers.ReLU(name="merged")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    outputs = layers.Dense(10, activation="softmax", name="probabilities")(x)
    model = keras.Model(inputs, outputs, name="residual_net")
    generator = np.random.default_rng(0)
    norm = model.get_layer("stem_norm")
    norm.gamma.assign(generator.uniform(0.5, 1.5, 16))
    norm.moving_mean.assign(generator.normal(0, 0.3, 16))
    norm.moving_variance.assign(generator.uniform(0.5, 1.5, 16))
    return model


def images(count=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 12, 12, 3)).astype("float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    model = residual_net()
    for mode in MODES:
        export_tflite(model, folder / f"{mode}.tflite", mode, images() if mode.startswith("int") else None)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_a_sound_file_agrees(files, mode):
    model, x = residual_net(), images(64, seed=1)
    result = verify_tflite(model, files / f"{mode}.tflite", x)
    assert result.examples == 64
    assert result.argmax_agreement >= (0.95 if mode == "int8" else 0.98)
    assert result.first_divergent_layer is None
    assert (result.metric, result.keras_metric, result.tflite_metric) == (None, None, None)
    assert max(layer.error for layer in result.layers) < result.tolerance / 2
    if mode == "int8":
        assert 0.1 < result.mean_lsb < 1
        assert result.max_lsb < 5
    noise = result.noise
    assert (noise.examples, noise.model_argmax_agreement) == (64, result.argmax_agreement)
    assert noise.argmax_agreement >= 0.95
    assert noise.max_abs_error <= 3 * result.max_abs_error
    assert noise.model_mean_lsb == result.mean_lsb
    steps = [layer.lsb for layer in result.layers]
    if mode.startswith("int"):
        assert 0 <= noise.mean_lsb < 0.5
        assert all(step > 0 for step in steps)
    else:
        assert (result.max_lsb, result.mean_lsb) == (noise.max_lsb, noise.mean_lsb) == (None, None)
        assert set(steps) == {None}
    assert kind_of_file(read_tflite(files / f"{mode}.tflite")) == {"none": "float32"}.get(mode, mode)


def test_layers_are_found_in_order_with_what_is_fused_into_them(files):
    result = verify_tflite(residual_net(), files / "int8.tflite", images())
    fused = {layer.name: layer.fused for layer in result.layers}
    assert list(fused) == ["stem_relu", "branch", "branch_1", "merged", "average", "probabilities"]
    assert fused["stem_relu"] == ["stem", "stem_norm"]
    assert fused["merged"] == ["add"]
    assert fused["branch"] == []


CORRUPTED = {
    "stem": "stem_relu",
    "stem_norm": "stem_relu",
    "branch": "branch",
    "branch_1": "branch_1",
    "probabilities": "probabilities",
}


@pytest.mark.parametrize(
    ("mode", "corrupted", "expected"),
    [
        # Each layer and each mode once.
        pytest.param(mode, *names, marks=[pytest.mark.slow] * (mode != "int8" and names[0] != "stem"))
        for mode in MODES
        for names in CORRUPTED.items()
    ],
)
def test_a_corrupted_layer_is_found(files, mode, corrupted, expected):
    model = residual_net()
    kernel = model.get_layer(corrupted).weights[0]
    kernel.assign(np.random.default_rng(0).permutation(kernel.numpy().ravel()).reshape(kernel.shape) * 1.5)
    result = verify_tflite(model, files / f"{mode}.tflite", images(8))
    assert result.first_divergent_layer == expected
    found = next(layer for layer in result.layers if layer.name == expected)
    assert found.error > result.tolerance
    assert corrupted in [expected, *found.fused]


@pytest.mark.parametrize("bits", [8, 16])
def test_outputs_cut_by_what_follows_are_no_faults(bits, tmp_path):
    """Branches of a concatenation have its range; a ReLU cuts one of them, which another layer reads whole."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 1, name="branch")(inputs)
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 1, use_bias=False, name="read_twice")(inputs))
    z = layers.AveragePooling2D(2, 1, "same", name="pool")(y)
    together = layers.ReLU(name="cut")(layers.Concatenate(name="concat")([x, y]))
    model = keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(layers.Concatenate()([together, z]))))
    aware = tfopt.quantize_aware(model, activation_bits=bits)
    seen = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    tfopt.calibrate(aware, seen)
    export_tflite(aware, tmp_path / "m.tflite")
    # Beyond what was seen, so that ranges cut.
    found = verify_tflite(aware, tmp_path / "m.tflite", 3 * seen[:16])
    assert len(found.layers) >= 3
    assert all(layer.lsb < 0.7 for layer in found.layers)


def test_nested_and_shared_layers_have_names_of_their_own(tmp_path):
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((20,)), layers.Dense(20, "relu", name="a"), layers.Dense(20, "tanh", name="b")],
        name="inner",
    )
    shared = layers.Dense(20, "relu", name="shared")
    inputs = keras.Input((20,), name="x")
    model = keras.Model(inputs, layers.Dense(4, name="out")(inner(shared(shared(inputs)))))
    export_tflite(model, tmp_path / "m.tflite")
    x = np.random.default_rng(0).normal(size=(8, 20))
    names = [layer.name for layer in verify_tflite(model, tmp_path / "m.tflite", x).layers]
    assert names == ["shared", "shared", "inner/a", "inner/b", "out"]
    inner.get_layer("b").bias.assign(np.ones(20))
    assert verify_tflite(model, tmp_path / "m.tflite", x).first_divergent_layer == "inner/b"


def test_the_model_is_left_as_it_was(files):
    model = residual_net()
    before = {layer.name: vars(layer).keys() for layer in model.layers}
    verify_tflite(model, files / "int8.tflite", images(4))
    assert {layer.name: vars(layer).keys() for layer in model.layers} == before
    assert all("call" not in vars(layer) for layer in model.layers)


def test_tolerance_can_be_set(files):
    strict = verify_tflite(residual_net(), files / "int8.tflite", images(8), tolerance=1e-4)
    assert strict.first_divergent_layer == "stem_relu"
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        verify_tflite(residual_net(), files / "int8.tflite", images(8), tolerance=0)


def test_figures_are_those_of_a_hand_calculation(files):
    model, x = residual_net(), images(20, seed=2)
    labels = np.arange(20) % 10
    result = verify_tflite(model, files / "int8.tflite", (x, labels))
    expected, received = np.asarray(model(x)), predict_tflite(files / "int8.tflite", x)
    scale = read_tflite(files / "int8.tflite").outputs["probabilities"].quantization.scales[0]
    difference = np.abs(expected - received)
    assert result.max_abs_error == pytest.approx(difference.max())
    assert result.max_lsb == pytest.approx(difference.max() / scale)
    assert result.mean_lsb == pytest.approx(difference.mean() / scale)
    assert result.metric == "accuracy"
    assert result.keras_metric == pytest.approx(np.mean(expected.argmax(1) == labels))
    assert result.tflite_metric == pytest.approx(np.mean(received.argmax(1) == labels))
    assert result.argmax_agreement == np.mean(expected.argmax(1) == received.argmax(1))


def test_data_with_splits_and_a_limit(files):
    class Splits:
        def batches(self, split):
            assert split == "test"
            return tf.data.Dataset.from_tensor_slices((images(), np.eye(10)[np.arange(32) % 10])).batch(10)

    result = verify_tflite(residual_net(), files / "none.tflite", Splits(), max_examples=25)
    assert (result.examples, result.metric) == (25, "accuracy")


@pytest.mark.parametrize(
    ("activation", "loss", "labels", "metric"),
    [
        ("sigmoid", None, "binary", "binary_accuracy"),
        (None, keras.losses.BinaryCrossentropy(from_logits=True), "binary", "binary_accuracy"),
        (None, "mse", "real", "mean_absolute_error"),
        (None, None, "real", "mean_absolute_error"),
    ],
)
def test_one_unit(activation, loss, labels, metric, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,), name="x"), layers.Dense(1, activation, name="y")])
    if loss is not None:
        model.compile(loss=loss)
    export_tflite(model, tmp_path / "m.tflite")
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    outputs = np.asarray(model(x))[:, 0]
    y = (outputs > (0.5 if activation else 0)).astype(int) if labels == "binary" else outputs + 2.0
    result = verify_tflite(model, tmp_path / "m.tflite", (x, y))
    assert result.metric == metric
    assert result.keras_metric == pytest.approx(1.0 if labels == "binary" else 2.0, abs=1e-5)
    assert result.tflite_metric == pytest.approx(result.keras_metric, abs=1e-5)
    assert result.argmax_agreement == (1.0 if labels == "binary" else None)


def test_metric_by_loss_before_labels():
    outputs = np.random.default_rng(0).random((5, 3))
    assert choose_metric("sparse_categorical_crossentropy", np.zeros(5), outputs).name == "accuracy"
    assert choose_metric(keras.losses.MeanSquaredError(), np.zeros(5, int), outputs).name == "mean_absolute_error"
    assert choose_metric(None, outputs, outputs).name == "mean_absolute_error"
    assert choose_metric(None, None, outputs[:, :1]) is None


def test_two_outputs_are_all_compared(tmp_path):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,), name="left"), keras.Input((3,), name="extra")
    x = layers.Concatenate()([a, b])
    model = keras.Model([a, b], [layers.Dense(3, name="zeta")(x), layers.Dense(2, name="alpha")(x)])
    export_tflite(model, tmp_path / "m.tflite")
    data = (np.random.default_rng(0).normal(size=(9, 4)), np.random.default_rng(1).normal(size=(9, 3)))
    result = verify_tflite(model, tmp_path / "m.tflite", (data, (np.arange(9) % 3, np.zeros(9))))
    assert (result.metric, result.argmax_agreement) == ("accuracy", 1.0)
    model.get_layer("alpha").bias.assign([3.0, 0.0])
    result = verify_tflite(model, tmp_path / "m.tflite", data)
    assert result.max_abs_error == pytest.approx(3, abs=1e-4)
    assert (result.argmax_agreement, result.first_divergent_layer) == (1.0, "alpha")


def test_a_recurrent_layer_is_compared_as_one(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 8)), layers.LSTM(24, name="lstm"), layers.Dense(3, name="out")])
    export_tflite(model, tmp_path / "m.tflite")
    x = np.random.default_rng(0).normal(size=(8, 6, 8))
    result = verify_tflite(model, tmp_path / "m.tflite", x)
    assert [layer.name for layer in result.layers] == ["lstm", "out"]
    assert result.first_divergent_layer is None
    kernel = model.get_layer("lstm").cell.kernel
    kernel.assign(-kernel)
    assert verify_tflite(model, tmp_path / "m.tflite", x).first_divergent_layer == "lstm"


def test_mixed_precision_is_compared_in_float32(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(30, "relu", dtype="mixed_bfloat16"),
            layers.Dense(3, dtype="float32"),
        ]
    )
    export_tflite(model, tmp_path / "m.tflite")
    result = verify_tflite(model, tmp_path / "m.tflite", np.random.default_rng(0).normal(size=(8, 20)))
    assert result.max_abs_error < 1e-5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((images(4), np.array([0, 1, 2, 10])), "labels go from 0 to 10, but the output has 10 classes"),
        ((images(4), np.zeros((4, 3), int)), r"labels have shape \(4, 3\), expected \(4,\) integers"),
        (np.full((2, 12, 12, 3), np.nan), "data holds 864 NaN"),
        (images(0), "data is empty"),
        (np.zeros((2, 5)), "data has shape"),
    ],
)
def test_bad_data(files, data, message):
    with pytest.raises(ValueError, match=message):
        verify_tflite(residual_net(), files / "int8.tflite", data)


def test_a_file_of_another_model_is_told(files):
    other = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2, name="y")])
    with pytest.raises(ValueError, match=r"has the inputs x, the file .* has image: it was exported from another"):
        verify_tflite(other, files / "int8.tflite", np.zeros((2, 4)))
    wider = keras.Sequential(
        [keras.Input((9, 9, 3), name="image"), layers.Flatten(), layers.Dense(10, name="probabilities")]
    )
    with pytest.raises(ValueError, match=r"'image' has shape \(2, 9, 9, 3\) in the model"):
        verify_tflite(wider, files / "int8.tflite", np.zeros((2, 9, 9, 3)))


def test_a_damaged_file(files, tmp_path):
    (tmp_path / "m.tflite").write_bytes((files / "int8.tflite").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"m\.tflite is damaged or cut short"):
        verify_tflite(residual_net(), tmp_path / "m.tflite", images(2))
