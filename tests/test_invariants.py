"""Promises: what they check, and that the check of a file finds what is missing."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import small_model
from tfopt import invariants
from tfopt.tflite.match import missing_zero_patterns


def with_zeros(model, share=0.5):
    """Sets a share of every kernel to zero, at random places; returns the promise."""
    rng = np.random.default_rng(0)
    targets = {}
    for variable in model.trainable_variables:
        if len(variable.shape) >= 2 and variable.name != "bias":
            kernel = rng.normal(0, 1, variable.shape).astype("float32")
            flat = kernel.reshape(-1)
            flat[rng.permutation(flat.size)[: round(share * flat.size)]] = 0
            variable.assign(kernel)
            targets[variable.path] = share
    return tfopt.Sparsity(targets)


def test_check_names_the_variable_and_its_share():
    model = small_model()
    promise = with_zeros(model)
    assert promise.check(model) == []
    kernel = model.get_layer("out").kernel
    kernel.assign(np.ones(kernel.shape))
    assert promise.check(model) == ["out/kernel: 0.5000 of zeros were promised, it has 0.0000"]
    gone = tfopt.Sparsity({"nowhere/kernel": 0.5})
    assert gone.check(model) == ["nowhere/kernel: the model has no such variable any more"]


def test_json_round_trip_and_follow():
    promise = tfopt.Sparsity({"a/kernel": 0.5, "b/kernel": 0.25})
    assert invariants.from_dict(promise.to_dict()) == promise
    assert promise.follow({"a/kernel": "c/kernel"}).targets == {"c/kernel": 0.5, "b/kernel": 0.25}
    with pytest.raises(ValueError, match="unknown kind of invariant 'magic'; there are sparsity, clustered"):
        invariants.from_dict({"kind": "magic"})
    with pytest.raises(ValueError, match=r"sparsity of 'a' must be a fraction in \[0, 1\), received 80; .* 0.8"):
        tfopt.Sparsity({"a": 80})


def test_keeping_puts_the_users_constraints_back():
    model = small_model()
    promise = with_zeros(model)
    own = keras.constraints.MaxNorm(1.0)
    kernel = model.get_layer("hidden").kernel
    kernel.constraint = own
    with invariants.keeping(model, [promise]):
        value = kernel.constraint(np.ones(kernel.shape, "float32"))
        assert np.array_equal(np.asarray(value) == 0, kernel.numpy() == 0)
        assert np.linalg.norm(value, axis=0).max() <= 1.0 + 1e-6
        assert model.get_layer("hidden").bias.constraint is None
    assert kernel.constraint is own
    assert model.get_layer("out").kernel.constraint is None


def zoo():
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.SeparableConv2D(8, 3, depth_multiplier=2)(x)
    x = layers.Conv2DTranspose(4, 3, strides=2)(x)
    x = layers.Conv2D(4, 3, groups=2, dilation_rate=2)(x)
    x = layers.Reshape((-1, 4))(x)
    x = layers.Conv1D(5, 3)(x)
    x = layers.MaxPooling1D(8)(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.LSTM(6, unroll=True)(x)
    return keras.Model(inputs, layers.Dense(3)(x))


@pytest.mark.parametrize(
    ("make", "quantization"),
    [
        (small_model, "none"),
        (small_model, "float16"),
        (zoo, "float16"),
        pytest.param(zoo, "none", marks=pytest.mark.slow),
    ],
)
def test_zeros_are_found_in_the_file_wherever_the_converter_put_them(make, quantization, tmp_path):
    model = make()
    promise = with_zeros(model)
    path = tmp_path / "m.tflite"
    tfopt.export_tflite(model, path, quantization)
    assert promise.check_tflite(path, model) == []


def test_zeros_that_the_file_lacks_are_named(data, tmp_path):
    model = small_model()
    promise = with_zeros(model)
    tfopt.export_tflite(model, tmp_path / "m.tflite", "int8", data)
    assert promise.check_tflite(tmp_path / "m.tflite", model) == []
    hidden = model.get_layer("hidden").kernel
    hidden.assign(np.roll(hidden.numpy(), 1))
    broken = promise.check_tflite(tmp_path / "m.tflite", model)
    assert broken == ["hidden/kernel: no tensor of the file has its 0.5000 of zeros in their places"]
    with pytest.raises(RuntimeError, match=r"m\.tflite lost what an earlier stage promised: sparsity: hidden/kernel"):
        invariants.check_tflite(tmp_path / "m.tflite", model, [promise])
    assert missing_zero_patterns(tmp_path / "m.tflite", {"any": np.zeros((7, 11))}) == ["any"]
