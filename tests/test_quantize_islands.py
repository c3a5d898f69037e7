"""Layers and operators that stay in float inside an integer file."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfopt
from tests.conftest import quick
from tfopt.quantize.island import SCOPE, FloatIsland, float_islands
from tfopt.tflite.export import _float_inside
from tfopt.tflite.flatbuffer import parse_tflite, read_tflite
from tfopt.tflite.layers import compare_layers
from tfopt.tflite.model import call_named
from tfopt.tflite.run import predict_tflite


@keras.saving.register_keras_serializable("tests")
class Wave(layers.Layer):
    """A layer of one's own: with weights, a second input, an argument that is no tensor, and two ways to compute."""

    def build(self, input_shape):
        self.mix = self.add_weight(shape=(input_shape[-1], input_shape[-1]), name="mix")
        self.norm = layers.BatchNormalization()
        self.norm.build(input_shape)

    def call(self, inputs, other=None, power=1, training=False):
        outputs = tf.sin(self.norm(tf.matmul(inputs, self.mix), training=training)) ** power
        return outputs if other is None else outputs + tf.cos(other)


def images(count=24):
    return np.random.default_rng(0).uniform(-1, 1, (count, 6, 6, 3)).astype("float32")


def network(middle):
    """A convolution, whatever is asked for, and a head."""
    image = keras.Input((6, 6, 3), name="image")
    x = middle(layers.Conv2D(4, 3, name="conv")(image))
    x = layers.Conv2D(4, 1, activation="relu", name="behind")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(3, name="head")(x), name="net")


def exported(model, path):
    """The quantization-aware model, calibrated and exported; the file's float operators."""
    aware = tfopt.quantize_aware(model, on_unsupported="float")
    tfopt.calibrate(aware, images())
    return aware, tfopt.export_tflite(aware, path).float_ops


def steps_off(model, path):
    """The mean and largest |model - file|, in steps of the file; on XNNPACK, whose averages are the model's."""
    ((name, tensor),) = read_tflite(path).outputs.items()
    expected = call_named(model, [tf.constant(images())])[name].numpy()
    off = np.abs(expected - predict_tflite(path, images(), use_xnnpack=True)) / tensor.quantization.scales[0]
    return off.mean(), off.max()


def joined(x):
    # A concatenation has one scale, which the converter cannot give to what was float.
    return layers.Concatenate(name="joined")([x, layers.Reshape((4, 4, 4))(ops.sin(x))])


def shared(x):
    wave = Wave(name="wave")
    return wave(wave(x), other=x, power=3)


NETWORKS = {
    "operator": (lambda x: ops.sin(x), ["Sin"], {"SIN"}),
    "constants": (lambda x: ops.power(ops.absolute(x) + 1.0, 2.5), ["Power"], {"POW"}),
    "chain": (lambda x: ops.cos(ops.sin(x)), ["Sin", "Cos"], {"SIN", "COS"}),
    "shared": (shared, ["Wave"], {"SIN", "COS", "ADD", "MUL", "FULLY_CONNECTED", "POW"}),
    "joined": (joined, ["Sin"], {"SIN"}),
    "product_first": (lambda x: Wave(name="wave")(x), ["Wave"], {"SIN", "FULLY_CONNECTED"}),
    "clipped": (lambda x: layers.ReLU(0.5, name="relu")(layers.Dropout(0.5)(ops.sin(x))), ["Sin"], {"SIN"}),
}


# One operator is less than a chain of them, and a layer that is called once less than a shared one.
@pytest.mark.parametrize("case", quick(NETWORKS, "constants", "chain", "shared", "joined", "clipped"))
def test_the_island_alone_is_in_float(case, tmp_path):
    middle, kinds, allowed = NETWORKS[case]
    aware, float_ops = exported(network(middle), tmp_path / "m.tflite")
    islands = float_islands(aware)
    assert [type(aware.get_layer(name).operation).__name__ for name in islands] == kinds
    assert all(islands.values())
    assert set(float_ops) <= allowed
    assert float_ops
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"int8"}
    mean, largest = steps_off(aware, tmp_path / "m.tflite")
    assert mean < 0.05
    assert largest < 1.01
    aware.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert np.array_equal(again(images()), aware(images()))
    assert float_islands(again) == islands


def test_an_island_has_the_weights_and_trains(tmp_path):
    model = network(Wave(name="wave"))
    aware = tfopt.quantize_aware(model, on_unsupported="float")
    (island,) = (layer for layer in aware.layers if isinstance(layer, FloatIsland))
    for old, new in zip(model.get_layer("wave").get_weights(), island.get_weights(), strict=True):
        assert np.array_equal(old, new)
    aware.compile("sgd", "mse", jit_compile=False)
    before = [weight.copy() for weight in island.get_weights()]
    aware.fit(images(), np.ones((24, 3)), epochs=1, verbose=0)
    # The kernel, and the statistics of the normalization inside, which follow the data in training only.
    assert all(np.any(old != new) for old, new in zip(before, island.get_weights(), strict=True))


def test_reasons_are_told_for_all_that_has_no_rule(caplog):
    model = network(lambda x: ops.sin(Wave(name="wave")(x)))
    with pytest.raises(
        ValueError, match="(?s)2 operations of the model 'net'.*'wave': .*no integer rule for Wave.*'sin"
    ):
        tfopt.quantize_aware(model)
    with pytest.raises(ValueError, match='on_unsupported="float" to leave them in float'):
        tfopt.quantize_aware(model)
    tfopt.quantize_aware(model, on_unsupported="float")
    assert "2 operations of 'net' stay in float: 'wave': there is no integer rule for Wave" in caplog.text


def test_masks_pass_through_an_island():
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(4, 3, mask_zero=True)(words)
    x = layers.LSTM(3, activation="relu", return_sequences=True, name="island")(x)
    model = keras.Model(words, layers.LSTM(2)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 1, weight.shape) for weight in model.get_weights()])
    aware = tfopt.quantize_aware(model, on_unsupported="float")
    assert list(float_islands(aware)) == ["island"]
    ids = rng.integers(0, 3, (32, 5))
    tfopt.calibrate(aware, ids)
    assert np.abs(model(ids) - aware(ids)).max() < 0.1
    # Without the masks, padding would count.
    assert np.abs(model(np.array([[1, 2, 0, 0, 0]])) - model(np.array([[1, 2, 1, 1, 1]]))).max() > 0.3


@pytest.fixture(scope="module")
def with_island(tmp_path_factory):
    path = tmp_path_factory.mktemp("island") / "m.tflite"
    keras.utils.set_random_seed(0)
    return exported(network(lambda x: ops.sin(x)), path)[0], path.read_bytes()


def test_floats_outside_of_islands_are_found(with_island):
    content = with_island[1]
    assert _float_inside(parse_tflite(content), float_io=False) == []
    # The same file, but for the names that say that its floats are meant.
    elsewhere = content.replace(SCOPE.encode(), b"x" * len(SCOPE))
    sin, *conversions = _float_inside(parse_tflite(elsewhere), float_io=False)
    assert sin.startswith("SIN (")
    assert [each.split(" ")[0] for each in conversions] == ["DEQUANTIZE", "QUANTIZE"]


def test_a_float_layer_behind_the_model_is_refused(with_island, tmp_path):
    aware = with_island[0]
    outer = keras.Model(aware.inputs, layers.Activation(tf.math.cos, name="outside")(aware.outputs[0]))
    with pytest.raises(ValueError, match="still holds float tensors: COS"):
        tfopt.export_tflite(outer, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_what_litert_does_not_have_is_named(tmp_path):
    with pytest.raises(ValueError, match="'net' needs TensorFlow ops that LiteRT does not have: Erf"):
        exported(network(lambda x: ops.erf(x)), tmp_path / "m.tflite")


def test_a_fault_inside_an_island_is_not_counted_for_what_follows(tmp_path):
    aware, _ = exported(network(Wave(name="wave")), tmp_path / "m.tflite")
    (island,) = (layer for layer in aware.layers if isinstance(layer, FloatIsland))
    island.set_weights([0.5 * weight for weight in island.get_weights()])
    compared = compare_layers(aware, read_tflite(tmp_path / "m.tflite"), {"image": images()}, 1e-3)
    steps = {each.name: each.lsb for each in compared if each.lsb is not None}
    errors = {each.name: each.error for each in compared}
    assert max(errors.values()) > 0.2
    assert steps
    assert max(steps.values()) < 1
