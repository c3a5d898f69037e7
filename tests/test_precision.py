"""Rebuilding a model under another dtype policy."""

import keras
import numpy as np
import pytest
from keras import layers

from tfopt.train.precision import computes_in, to_policy


def nested_net():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, "relu", name="a"), layers.Dropout(0.5, name="drop")], name="inner"
    )
    shared = layers.Dense(8, name="shared")
    inputs = keras.Input((8,), name="x")
    x = shared(inner(shared(inputs))) + 1.0
    x = layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="out")(x), name="nested_net")
    model.get_layer("norm").moving_mean.assign(np.arange(8) / 10)
    return model


def test_there_and_back_gives_the_same_model():
    model = nested_net()
    model.get_layer("inner").get_layer("drop").seed_generator.next()
    back = to_policy(to_policy(model, "mixed_bfloat16"), "float32")
    x = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    np.testing.assert_array_equal(model(x), back(x))
    assert [v.path for v in back.variables] == [v.path for v in model.variables]
    assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]
    assert back.name == model.name
    for old, new in zip(model.variables, back.variables, strict=True):
        np.testing.assert_array_equal(old, new)
        assert old is not new
    np.testing.assert_array_equal(model(x, training=True), back(x, training=True))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_policies_leave_the_outputs_in_float32(policy):
    model = nested_net()
    mixed = to_policy(model, policy)
    dtype = policy.removeprefix("mixed_")
    assert mixed.get_layer("out").compute_dtype == "float32"
    inner = mixed.get_layer("inner")
    for layer in (mixed.get_layer("shared"), mixed.get_layer("norm"), *inner.layers):
        assert layer.compute_dtype == dtype
        assert layer.variable_dtype == "float32"
    x = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    outputs = mixed(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    difference = np.abs(outputs - model(x)).max()
    assert 0 < difference < 0.02
    assert computes_in(model, "float32")
    assert not computes_in(mixed, "float32")


def test_outputs_behind_plain_operations_and_in_nested_models():
    inputs = keras.Input((4,))
    last = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="first"), layers.Dense(2, name="last")], name="head"
    )
    mixed = to_policy(keras.Model(inputs, keras.ops.softmax(last(inputs))), "mixed_float16")
    head = mixed.get_layer("head")
    assert [layer.compute_dtype for layer in head.layers] == ["float16", "float32"]
    assert mixed.output.dtype == "float32"


def test_layers_inside_wrappers_follow():
    model = keras.Sequential(
        [keras.Input((5, 4)), layers.Bidirectional(layers.LSTM(3)), layers.Dense(2)], name="wrapped"
    )
    mixed = to_policy(model, "mixed_bfloat16")
    wrapper = mixed.layers[0]
    assert wrapper.forward_layer.compute_dtype == wrapper.forward_layer.cell.compute_dtype == "bfloat16"
    assert [v.path for v in mixed.variables] == [v.path for v in model.variables]


def test_a_compiled_model_stays_compiled_and_its_copy_is_not():
    def unregistered(y, p):
        return keras.ops.mean(keras.ops.square(y - p))

    model = nested_net()
    model.compile(loss=unregistered)
    copy = to_policy(model, "mixed_bfloat16")
    assert model.compiled
    assert model.loss is unregistered
    assert not copy.compiled


def test_a_trained_mixed_model_gives_its_weights_to_float32():
    mixed = to_policy(nested_net(), "mixed_bfloat16")
    mixed.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    mixed.fit(x, np.arange(16) % 3, verbose=0)
    plain = to_policy(mixed, "float32")
    np.testing.assert_array_equal(plain.get_layer("out").kernel, mixed.get_layer("out").kernel)
    assert np.abs(plain(x) - mixed(x)).max() < 0.02


def test_a_subclassed_model_is_refused():
    class Small(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"is a subclassed model \(Small\): its layers cannot be rebuilt"):
        to_policy(Small(name="small"), "mixed_float16")
    inputs = keras.Input((3,))
    outer = keras.Model(inputs, Small(name="small")(inputs), name="outer")
    with pytest.raises(ValueError, match=r"'small' \(inside 'outer'\) is a subclassed model"):
        to_policy(outer, "mixed_float16")


def test_unbuilt_and_quantized_models_are_refused():
    with pytest.raises(ValueError, match="Sequential model 'empty' is not built"):
        to_policy(keras.Sequential([layers.Dense(2)], name="empty"), "float32")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")])
    model.layers[0].quantize("int8")
    with pytest.raises(ValueError, match=r"'dense' was quantized by Keras \(int8\)"):
        to_policy(model, "float32")


def test_an_unknown_policy():
    with pytest.raises(ValueError, match="Cannot convert 'float7'"):
        to_policy(nested_net(), "float7")
