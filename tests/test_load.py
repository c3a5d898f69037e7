"""load_model against tf_keras on the same file."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.load_models import (
    K2,
    MODELS,
    QUICK,
    assert_same,
    convolutions,
    dense,
    frozen,
    functional,
    names_with_slashes,
    nested_and_shared,
    randomized,
    save,
)
from tfopt.load import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*does not support masking and will therefore destroy the mask"),
]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(make, kind, marks=() if (make, kind) in QUICK else pytest.mark.slow, id=f"{make.__name__}-{kind}")
        for make in MODELS
        for kind in ("h5", "keras", "saved_model")
    ],
)
def test_outputs_equal_tf_keras(make, kind, tmp_path):
    reference = randomized(make())
    model = load_model(save(reference, tmp_path, kind))
    assert isinstance(model, keras.Model)
    assert_same(model, reference)
    model.save(tmp_path / "again.keras")
    assert_same(keras.models.load_model(tmp_path / "again.keras"), reference)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        # Of convolutions a file of Keras is read too.
        pytest.param(make, kind, marks=[pytest.mark.slow] * (make is convolutions), id=f"{make.__name__}-{kind}")
        for make in (convolutions, nested_and_shared, names_with_slashes)
        for kind in ("hdf5 in keras", "saved_model")
    ],
)
def test_other_formats(make, kind, tmp_path):
    reference = randomized(make())
    assert_same(load_model(save(reference, tmp_path, kind)), reference)


APPLICATIONS = [
    ("MobileNet", 32), ("MobileNetV2", 32), ("MobileNetV3Small", 64), ("MobileNetV3Large", 64),
    ("EfficientNetB0", 32), ("EfficientNetV2B0", 32), ("ResNet50", 32), ("DenseNet121", 32),
    ("NASNetMobile", 32),
    ("Xception", 71), ("InceptionV3", 75),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*each, marks=() if each[0] == "MobileNetV3Small" else pytest.mark.slow, id=each[0])
        for each in APPLICATIONS
    ],
)
@pytest.mark.filterwarnings("ignore:The `keras.initializers.serialize")
def test_applications(name, size, tmp_path):
    make = getattr(tf_keras.applications, name)
    reference = make(weights=None, classes=7, input_shape=(size, size, 3))
    for weight in reference.weights:
        if "moving_mean" in weight.name or "beta" in weight.name:
            weight.assign(tf.random.stateless_uniform(weight.shape, [0, 1], -0.2, 0.2))
    reference.save(tmp_path / "m.h5")
    model = load_model(tmp_path / "m.h5")
    assert_same(model, reference)
    assert model.count_params() == reference.count_params()


def test_names_and_trainable_flags_stay(tmp_path):
    reference = randomized(frozen())
    model = load_model(save(reference, tmp_path, "keras"))
    assert [each.name for each in model.layers] == [each.name for each in reference.layers]
    assert model.get_layer("head").trainable
    assert not model.get_layer("fixed").trainable
    assert [each.path for each in model.trainable_variables] == ["head/kernel", "head/bias"]
    inner = model.layers[1]
    assert [each.trainable for each in inner.layers[1:]] == [False, False, False]
    assert load_model(save(randomized(dense()), tmp_path, "h5")).name == "a_dense"


def test_slashes_in_names_become_underscores_and_stay_unique(tmp_path):
    model = load_model(save(names_with_slashes(), tmp_path, "h5"))
    names = [each.name for each in model.layers]
    assert {"in_put", "block_a", "block_a_1", "add"} <= set(names)
    assert len({each.name for each in model.operations}) == len(model.operations)
    assert model.name == "whole_model"


def test_shared_layers_stay_shared(tmp_path):
    reference = randomized(nested_and_shared())
    model = load_model(save(reference, tmp_path, "h5"))
    assert len(model.get_layer("shared")._inbound_nodes) == 2
    assert model.count_params() == reference.count_params()
    assert set(model.input) == {"l", "r"}
    assert set(model.output) == {"far", "near"}


def test_configs_of_layers_stay(tmp_path):
    model = load_model(save(dense(), tmp_path, "h5"))
    layer = model.get_layer("first")
    assert (layer.activation, layer.units) == (keras.activations.gelu, 8)
    assert layer.kernel_initializer.get_config()["scale"] == 2.0
    assert (float(layer.kernel_regularizer.l1), float(layer.kernel_regularizer.l2)) == pytest.approx((0.1, 0.2))
    assert layer.kernel_constraint.max_value == 3.0
    assert model.input_shape == (None, 5)
    assert not model.compiled


def test_trains_on(tmp_path):
    model = load_model(save(randomized(dense()), tmp_path, "keras"))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    before = model.get_weights()
    keras.utils.set_random_seed(0)
    history = model.fit(np.ones((8, 5)), np.zeros(8), epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert not np.array_equal(before[0], model.get_weights()[0])


def test_mixed_precision(tmp_path):
    policy = tf_keras.mixed_precision.Policy("mixed_bfloat16")
    reference = randomized(functional((5,), K2.Dense(4, dtype=policy), K2.Dense(3, dtype="float32")))
    model = load_model(save(reference, tmp_path, "h5"))
    assert model.layers[1].dtype_policy.name == "mixed_bfloat16"
    assert_same(model, reference, tolerance=2e-2)


def test_ellipsis_in_a_slice(tmp_path):
    inputs = tf_keras.Input((4, 6))
    reference = tf_keras.Model(inputs, inputs[..., 2:4] * 2.0)
    assert_same(load_model(save(reference, tmp_path, "h5")), reference)


def test_keras3_files(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out")])
    model.compile("adam", "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model.fit(x, x[:, :2], verbose=0)
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    os.link(tmp_path / "m.keras", tmp_path / "zip.h5")
    os.link(tmp_path / "m.h5", tmp_path / "hdf5.keras")
    for name in ("m.keras", "zip.h5"):
        loaded = load_model(tmp_path / name)
        np.testing.assert_array_equal(loaded(x), model(x))
        assert loaded.compiled
        assert int(loaded.optimizer.iterations.numpy()) == 1
    for name in ("m.h5", "hdf5.keras"):
        # Keras 3.15 writes "mse" into HDF5 files so that it cannot read it again.
        with pytest.warns(UserWarning, match="is loaded uncompiled"):
            loaded = load_model(tmp_path / name)
        np.testing.assert_array_equal(loaded(x), model(x))


def test_keras3_file_with_an_unknown_loss_loads_uncompiled(tmp_path):
    def own_loss(y, p):
        return keras.ops.mean(y - p)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", own_loss)
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    model.save(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match=r"is loaded uncompiled.*own_loss"):
        assert not load_model(tmp_path / "m.keras").compiled
    assert load_model(tmp_path / "m.keras", {"own_loss": own_loss}).compiled
