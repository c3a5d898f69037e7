"""Models of every structure in quantization-aware form, and what has no rule, with the reason."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfopt
from tests.quantize_cases import norm, then
from tfopt.quantize.bits import InInt8
from tfopt.quantize.linear import QuantizedLinear
from tfopt.tflite.flatbuffer import read_tflite


def block(name=None, filters=4):
    return keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(filters, 3, padding="same"), norm(), layers.ReLU()], name=name
    )


def image(name="image"):
    return keras.Input((8, 8, 4), name=name)


def nested():
    x = image()
    inner = keras.Model(x, block()(block()(x)), name="inner")
    outer = image()
    return keras.Model(outer, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(inner(outer))))


def nested_and_shared():
    left, right, encoder = image("left"), image("right"), block("encoder")
    joined = layers.Concatenate()([layers.Flatten()(encoder(left)), layers.Flatten()(encoder(right))])
    return keras.Model([left, right], layers.Dense(3, name="head")(joined))


def shared_layers():
    left, right = image("left"), image("right")
    conv, slopes = layers.Conv2D(4, 3, activation="silu"), layers.PReLU("ones", shared_axes=[1, 2])
    separable, scale = layers.SeparableConv2D(4, 3), norm()
    first, second = (scale(separable(slopes(conv(each)))) for each in (left, right))
    return keras.Model([left, right], layers.Subtract(name="difference")([first, second]))


def dictionaries():
    inputs = {"zulu": image("zulu"), "alpha": image("alpha")}
    x = layers.Add()(list(inputs.values()))
    outputs = {"second": layers.Conv2D(2, 1, name="second")(x), "first": layers.Flatten(name="first")(x)}
    return keras.Model(inputs, outputs)


def lists():
    inputs = [image("zulu"), image("alpha")]
    x = layers.Multiply()([layers.Conv2D(4, 1)(inputs[0]), inputs[1]])
    return keras.Model(inputs, [layers.Softmax(name="probabilities")(x), layers.ReLU(name="positive")(x)])


def output_inside():
    """An output that another layer reads, and an input that is an output's only step away."""
    x = image()
    features = layers.Conv2D(4, 3, activation="relu", name="features")(x)
    return keras.Model(x, [features, layers.Dense(2, name="head")(layers.Flatten()(features))])


def frozen_base():
    """Transfer learning: what is not trained stays as it is."""
    base = block("base")
    base.trainable = False
    x = image()
    return keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(base(x, training=False))))


def leading_augmentation():
    x = image()
    steps = [
        layers.RandomFlip(),
        layers.RandomContrast(0.2, value_range=(0, 255)),
        layers.Rescaling(1 / 127.5, offset=-1.0),
        layers.Resizing(6, 6),
        layers.Conv2D(3, 3, name="conv"),
    ]
    return keras.Model(x, then(*steps)(x))


@pytest.mark.parametrize(
    "make",
    [
        nested_and_shared,
        shared_layers,
        dictionaries,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (nested, lists, output_inside, frozen_base)),
        leading_augmentation,
    ],
)
def test_structure_is_kept_to_the_file(make, tmp_path):
    model = make()
    names = [each.name for each in model.inputs]
    rng = np.random.default_rng(0)
    data = {name: rng.normal(0, 1, (16, 8, 8, 4)).astype("float32") for name in names}
    structure = keras.tree.map_structure(lambda tensor: data[tensor.name], model.input)
    expected = model(structure, training=False)
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, data)
    assert aware.output_names == model.output_names
    received = aware(structure, training=False)
    keras.tree.assert_same_structure(received, expected)
    for ours, theirs in zip(keras.tree.flatten(received), keras.tree.flatten(expected), strict=True):
        assert np.abs(ours - theirs).mean() < 0.02 * np.abs(theirs).max()
    aware.compile("sgd", "mse", run_eagerly=True)
    zeros = keras.tree.map_structure(np.zeros_like, expected)
    assert np.all(np.isfinite(aware.train_on_batch(structure, zeros)))
    measured = tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert measured.float_ops == []
    assert list(read_tflite(tmp_path / "m.tflite").inputs) == names
    found = tfopt.verify_tflite(aware, tmp_path / "m.tflite", data, use_xnnpack=False)
    assert found.mean_lsb < found.noise.mean_lsb + 0.1
    aware.save(tmp_path / "m.keras")
    reloaded = keras.models.load_model(tmp_path / "m.keras")
    same = zip(
        keras.tree.flatten(aware(structure, training=False)),
        keras.tree.flatten(reloaded(structure, training=False)),
        strict=True,
    )
    for ours, theirs in same:
        np.testing.assert_array_equal(ours, theirs)


def test_shared_layers_have_one_copy_of_their_weights():
    model = shared_layers()
    aware = tfopt.quantize_aware(model)
    assert len(aware.trainable_weights) == len(model.trainable_weights)


def test_what_is_frozen_stays_frozen():
    aware = tfopt.quantize_aware(frozen_base())
    assert [each.path.split("/")[-2:] for each in aware.trainable_weights] == [["head", "kernel"], ["head", "bias"]]
    convolution = next(each for each in aware.layers if isinstance(each, QuantizedLinear))
    before = convolution.get_weights()
    aware.compile("sgd", "mse", run_eagerly=True)
    aware.train_on_batch(np.ones((4, 8, 8, 4)), np.ones((4, 3)))
    for old, new in zip(before, convolution.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_constraints_and_regularizers_of_weights_are_kept():
    model = keras.Sequential(
        [
            image(),
            layers.SeparableConv2D(4, 3, depthwise_constraint="non_neg", pointwise_regularizer="l2", name="separable"),
            layers.Conv2D(4, 1, kernel_constraint="non_neg", bias_regularizer="l1", trainable=False, name="conv"),
        ]
    )
    aware = tfopt.quantize_aware(model)
    parts = {each.layer.name: each.layer for each in aware.layers if isinstance(each, QuantizedLinear)}
    assert isinstance(parts["separable_depthwise"].kernel.constraint, keras.constraints.NonNeg)
    assert isinstance(parts["separable"].kernel.regularizer, keras.regularizers.L2)
    assert isinstance(parts["conv"].kernel.constraint, keras.constraints.NonNeg)
    assert not parts["conv"].trainable
    assert len(aware.losses) == len(model.losses) == 1


class Doubled(layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training)


REFUSED = {
    "channels_first": (lambda x: layers.Conv2D(2, 3, data_format="channels_first")(x), "channels last"),
    "own call": (lambda x: Doubled(3)(x), "no integer rule for Doubled"),
    "activation of TensorFlow": (lambda x: layers.Dense(3, activation=tf.nn.crelu)(x), "its activation"),
    "activation with weights": (lambda x: layers.Dense(3, activation=layers.PReLU())(x), "behind it, as layers"),
    "activation layer": (lambda x: layers.Activation(tf.nn.crelu)(x), "the activation <function crelu"),
    "axis": (lambda x: layers.BatchNormalization(axis=1)(x), "another axis than the last"),
    "softmax over two axes": (lambda x: layers.Softmax(axis=(1, 2))(x), "no integer rule for Softmax"),
    "bicubic": (lambda x: layers.Resizing(4, 4, interpolation="bicubic")(x), '"nearest" or "bilinear"'),
    "cropped": (lambda x: layers.Resizing(4, 4, crop_to_aspect_ratio=True)(x), "crop_to_aspect_ratio"),
    "quotient": (lambda x: x / (x + 9.0), "constants other than 0"),
    "cube": (lambda x: x**3, "only squares"),
    "constant matrix": (lambda x: ops.matmul(x, np.eye(4, dtype="float32")), "a layer with weights"),
    "normalized dot": (lambda x: layers.Dot(-1, normalize=True)([layers.Flatten()(x)] * 2), "cannot divide"),
    "einsum": (lambda x: layers.EinsumDense("abcd,cde->abe", (8, 5))(x), "dense layers over the last axis"),
    "three dimensions": (lambda x: layers.Conv3D(2, 1)(x[..., None]), "no integer rule for Conv3D"),
    "random crop": (lambda x: layers.RandomCrop(4, 4)(x), "no integer rule for RandomCrop"),
    "integers from floats": (lambda x: ops.cast(x, "int32"), "integers of floats"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused_with_the_reason(case):
    function, reason = REFUSED[case]
    x = image()
    with pytest.raises(ValueError, match="cannot be quantized") as error:
        tfopt.quantize_aware(keras.Model(x, function(x)))
    assert reason in str(error.value)


def test_integers_are_refused_where_floats_are_made_of_them():
    model = keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), layers.Rescaling(1 / 255), layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="declare the model's input as float32"):
        tfopt.quantize_aware(model)


def test_transposed_convolutions_are_refused_with_4_bits():
    model = keras.Sequential([image(), layers.Conv2DTranspose(2, 3, name="up"), layers.Conv2D(2, 1)])
    with pytest.raises(ValueError, match="pass layers={'up': 8}"):
        tfopt.quantize_aware(model, weight_bits=4)
    tfopt.quantize_aware(model, weight_bits=4, layers={"up": 8})
    tfopt.quantize_aware(model, InInt8(4))


def test_integers_stay_integers(tmp_path):
    ids = keras.Input((5,), dtype="int32", name="ids")
    x = layers.Embedding(9, 4)(ops.clip(ids[:, 1:] + 1, 0, 8))
    model = keras.Model(ids, layers.Dense(2, name="head")(layers.Flatten()(x)))
    data = np.random.default_rng(0).integers(0, 9, (32, 5)).astype("int32")
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, data)
    assert tfopt.export_tflite(aware, tmp_path / "m.tflite").float_ops == []
    found = tfopt.verify_tflite(aware, tmp_path / "m.tflite", data, use_xnnpack=False)
    assert found.mean_lsb < found.noise.mean_lsb + 0.1


@pytest.mark.slow
def test_graphs_deeper_than_pythons_recursion():
    inputs = x = keras.Input((2,))
    for _ in range(510):
        x = x + 1.0
    limit = sys.getrecursionlimit()
    aware = tfopt.quantize_aware(keras.Model(inputs, layers.Dense(1)(x)))
    assert len(aware.layers) > 1000
    assert sys.getrecursionlimit() == limit
