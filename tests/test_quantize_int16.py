"""Quantization-aware training with activations of 16 bits, to files whose ranges and integers are the trained ones."""

import dataclasses
import functools
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfopt
from tests.conftest import blobs, quick, small_model
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.frozen import frozen
from tfopt.quantize.linear import QuantizedLinear
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.parity import require_parity
from tfopt.tflite.run import predict_tflite
from tfopt.tflite.verify import Verification

FAST = tfopt.Fit(learning_rate=3e-3)


def every_part():
    """Convolutions with and without normalization, residual addition, concatenation, poolings, dense, softmax."""
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.8)(x)
    x = skip = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.MaxPooling2D()(layers.Add()([layers.Conv2D(8, 1, name="pointwise")(x), skip]))
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="left")(x)
    x = layers.Concatenate()([y, layers.Conv2D(4, 1, name="right")(x)])
    x = layers.AveragePooling2D(2)(layers.Conv2DTranspose(4, 3, strides=2, name="wider")(x))
    # A ReLU that no operator of the file can take in.
    x = layers.ReLU()(layers.GlobalAveragePooling2D()(x))
    x = layers.Dense(6, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="probabilities")(x), name="every_part")


@dataclasses.dataclass
class Case:
    model: keras.Model
    path: str
    verification: Verification


def make(folder, bits):
    keras.utils.set_random_seed(0)
    aware = tfopt.quantize_aware(every_part(), weight_bits=bits, activation_bits=16)
    images, labels = blobs(96)
    tfopt.calibrate(aware, images)
    aware.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", jit_compile=False)
    aware.fit(images, labels, batch_size=24, epochs=2, verbose=0, shuffle=False)
    path = str(folder / "m.tflite")
    tfopt.export_tflite(aware, path)
    return Case(aware, path, tfopt.verify_tflite(aware, path, blobs(200, seed=1)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return functools.cache(lambda bits: make(tmp_path_factory.mktemp(str(bits)), bits))


@pytest.mark.parametrize("bits", quick([8, 4], 8))
def test_files_compute_what_was_trained(bits, cases):
    found = cases(bits).verification
    require_parity(found)
    assert found.kind == "int16x8"
    assert found.argmax_agreement == 1.0
    assert found.mean_lsb < 0.5
    assert found.max_lsb <= 3
    # Multipliers of LiteRT's kernels have 16 bits, and softmax looks exponentials up in a table.
    assert all(layer.lsb < (1.0 if layer.name == "probabilities_quantize" else 0.5) for layer in found.layers)
    # The model's own rounding is that of 16 bits: its values are no floats.
    file = read_tflite(cases(bits).path)
    steps = np.asarray(cases(bits).model(blobs(20)[0])) * 32768
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-2)
    assert file.outputs["probabilities"].quantization.scales == [1 / 32768]


@pytest.mark.parametrize("bits", quick([8, 4], 8))
def test_all_activations_are_int16(bits, cases):
    file = read_tflite(cases(bits).path)
    assert list(file.inputs) == ["image"]
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"int16"}
    tensors = file.graphs[0].tensors
    assert {tensor.dtype for tensor in tensors if tensor.data is None} == {"int16"}
    assert not any(tensor.is_float for tensor in tensors)
    # Branches write on the scale of the concatenation, padding and ReLUs are part of the convolutions.
    types = [operator.type for operator in file.operators]
    assert "QUANTIZE" not in types
    assert types.count("RELU") == 1


# The order of the axes in the file, where it is not (channels, height, width, inputs).
LAYOUTS = {"wider": (2, 0, 1, 3), "hidden": (1, 0), "probabilities": (1, 0)}


@pytest.mark.parametrize("bits", quick([8, 4], 8))
def test_weights_are_the_trained_integers_on_their_scales(bits, cases):
    graph = read_tflite(cases(bits).path).graphs[0]
    model = cases(bits).model
    with frozen(model):
        trained = {
            layer.layer.name: (layer.frozen[0], layer.frozen[1])
            for layer in model.layers
            if isinstance(layer, QuantizedLinear)
        }
    operators = [op for op in graph.operators if "CONV" in op.type or op.type == "FULLY_CONNECTED"]
    assert len(operators) == len(trained) == 8
    for operator, (name, (integers, scales)) in zip(operators, trained.items(), strict=True):
        stored = graph.tensors[operator.inputs[1]]
        expected = integers.transpose(LAYOUTS.get(name, (3, 0, 1, 2))).reshape(stored.shape)
        np.testing.assert_array_equal(stored.data, expected, name)
        assert np.abs(expected).max() == (127 if bits == 8 else 7)
        spread = np.broadcast_to(scales.reshape(-1), stored.quantization.scales.shape)
        np.testing.assert_allclose(stored.quantization.scales, spread, rtol=1e-6)
        is_packed = bits == 4 and operator.type in ("CONV_2D", "FULLY_CONNECTED")
        assert stored.dtype == ("int4" if is_packed else "int8")


@pytest.mark.slow
def test_float_inputs_and_outputs(cases, tmp_path):
    tfopt.export_tflite(cases(8).model, tmp_path / "m.tflite", float_io=True)
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"float32"}
    assert sum(tensor.is_float for tensor in file.graphs[0].tensors) == 2
    found = tfopt.verify_tflite(cases(8).model, tmp_path / "m.tflite", blobs(50))
    require_parity(found)
    assert found.max_lsb <= 3


@pytest.mark.parametrize("bits", quick([8, 4], 8))
def test_a_model_survives_saving(bits, cases, tmp_path):
    cases(bits).model.save(tmp_path / "m.keras")
    reloaded = keras.models.load_model(tmp_path / "m.keras")
    images, _ = blobs(30)
    np.testing.assert_array_equal(reloaded(images), cases(bits).model(images))
    tfopt.export_tflite(reloaded, tmp_path / "m.tflite")
    # Constants of the same values, whatever the order in which the file has them.
    constants = [
        sorted(tensor.data.tobytes() for tensor in read_tflite(path).graphs[0].tensors if tensor.data is not None)
        for path in (cases(bits).path, tmp_path / "m.tflite")
    ]
    assert constants[0] == constants[1]


@pytest.mark.slow
def test_parity_is_not_to_be_had_with_another_range(cases):
    model = cases(8).model
    quantizer = model.get_layer("hidden_clip")
    before = quantizer.high.numpy()
    try:
        quantizer.high.assign(before * 0.9)
        found = tfopt.verify_tflite(model, cases(8).path, blobs(50))
    finally:
        quantizer.high.assign(before)
    named = "where .* differ by 0 and 32 are allowed.* first layer that diverges is 'hidden_clip'"
    with pytest.raises(RuntimeError, match=named):
        require_parity(found)


ACTIVATIONS = ("sigmoid", "tanh", "silu", "hard_silu", "elu", "gelu", "leaky_relu", "softplus", "hard_tanh")


def test_activations_of_16_bits(tmp_path):
    inputs = [keras.Input((16,), name=name) for name in ACTIVATIONS]
    outputs = [layers.Activation(each.name, name=f"{each.name}_output")(each) for each in inputs]
    aware = tfopt.quantize_aware(model := keras.Model(inputs, outputs), activation_bits=16)
    # Cut, so that all batches have one range: a mean of several would cut what is beyond.
    x = [np.random.default_rng(0).normal(0, 2, (64, 16)).clip(-4, 4).astype("float32") for _ in ACTIVATIONS]
    tfopt.calibrate(aware, tuple(x))
    path = tmp_path / "m.tflite"
    tfopt.export_tflite(aware, path)
    file = read_tflite(path)
    assert {tensor.dtype for tensor in file.graphs[0].tensors if tensor.data is None} == {"int16"}
    received, rounded = predict_tflite(path, tuple(x)), aware(x)
    for name, expected, own in zip(ACTIVATIONS, model(x), rounded, strict=True):
        tensor = file.outputs[f"{name}_output"]
        step = tensor.quantization.scales[0]
        # LiteRT looks functions up in tables of 513 entries.
        assert np.abs(own - received[f"{name}_output"]).mean() / step < 1.0, name
        assert np.abs(expected - received[f"{name}_output"]).max() < 2e-3 * np.abs(expected).max(), name


def test_functions_that_share_a_sum(tmp_path):
    x = keras.Input((16,))
    model = keras.Model(x, [layers.Activation("hard_silu")(x), layers.Activation("hard_sigmoid")(x)])
    seen = np.random.default_rng(0).normal(0, 2, (64, 16)).astype("float32")
    aware = tfopt.quantize_aware(model, activation_bits=16)
    tfopt.calibrate(aware, seen)
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert tfopt.verify_tflite(aware, tmp_path / "m.tflite", seen).mean_lsb < 1.0


def test_a_symmetric_range_cuts_as_the_relu_does():
    quantizer = FakeQuant(clip=(0.0, 6.0), bits=16)
    quantizer.calibrates = True
    quantizer(np.float32([-3.0, 2.0, 9.0]))
    quantizer.calibrates = False
    for training in (False, True):
        np.testing.assert_array_equal(quantizer(np.float32([-3.0, 6.0, 9.0]), training=training), [0.0, 6.0, 6.0])
    assert float(quantizer.live_scale()) == pytest.approx(6 / 32767)


@pytest.mark.slow
def test_stages_call_the_file_what_it_is(data, tmp_path):
    keras.utils.set_random_seed(0)
    work = tfopt.Work(small_model(), data, tmp_path / "run")
    done = tfopt.run([tfopt.QuantizeAware(1, activation_bits=16, fit=FAST), tfopt.ExportTFLite(max_drop=1.0)], work)
    artefact = done.report.artefacts["tflite"]
    assert artefact["quantization"] == artefact["parity"]["kind"] == "int16x8"
    assert done.report.stages[-1].notes[0].startswith("int16x8 file of")
    assert {tensor.dtype for tensor in read_tflite(artefact["path"]).inputs.values()} == {"int16"}


def activated(layer):
    inputs = keras.Input((4,), name="x")
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (layers.PReLU(), "PReLU"),
        (layers.ReLU(threshold=0.5), "a ReLU with a threshold"),
        (layers.Activation("log_softmax"), "log_softmax"),
    ],
)
def test_what_has_8_bits_only_is_said_before_training(layer, name):
    with pytest.raises(ValueError, match=f"cannot be quantized: .*LiteRT .*{name}.* Replace them$"):
        tfopt.quantize_aware(activated(layer), activation_bits=16)


def test_what_is_refused(cases, tmp_path, data):
    with pytest.raises(ValueError, match='on_unsupported="float" is for activation_bits=8'):
        tfopt.quantize_aware(small_model(), activation_bits=16, on_unsupported="float")
    for quantization in ("int8", "float16"):
        with pytest.raises(ValueError, match=f"leave quantization out; received '{quantization}'"):
            tfopt.export_tflite(cases(8).model, tmp_path / "m.tflite", quantization)
    with pytest.raises(ValueError, match="is not known yet: train the model, or show it data"):
        tfopt.export_tflite(tfopt.quantize_aware(small_model(), activation_bits=16), tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="leave quantization out; received 'int16x8'"):
        tfopt.export_tflite(tfopt.quantize_aware(small_model()), tmp_path / "m.tflite", "int16x8")
    assert not (tmp_path / "m.tflite").exists()


def test_the_missing_extra_is_said_before_training(data, tmp_path, monkeypatch):
    # As if it were not installed.
    for name in [each for each in sys.modules if each.partition(".")[0] == "ai_edge_quantizer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    wanted = r"pip install 'tfopt\[int16\]'"
    with pytest.raises(ModuleNotFoundError, match=wanted):
        tfopt.quantize_aware(small_model(), activation_bits=16)
    with pytest.raises(ModuleNotFoundError, match=wanted):
        tfopt.QuantizeAware(1, activation_bits=16, fit=FAST).validate(tfopt.Work(small_model(), data, tmp_path))
    # 8 bits need nothing.
    assert tfopt.quantize_aware(small_model()) is not None
