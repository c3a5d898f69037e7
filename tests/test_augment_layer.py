"""Augmentations inside a model: in training alone, kept in the file of the model, gone from the exported one."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, small_model
from tests.test_augment import OPERATIONS
from tfopt import augment
from tfopt.augment import AugmentationLayer
from tfopt.tflite.flatbuffer import read_tflite

CHAIN = (augment.Flip(), augment.PadCrop(1), augment.RandAugment(1, 0.5, augment.Ranges(degrees=20.0)))


def images(dtype="float32"):
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype("uint8")
    return x if dtype == "uint8" else (x / 255.0).astype("float32")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_it_changes_in_training_alone(dtype):
    x, layer = images(dtype), AugmentationLayer(CHAIN, seed=3)
    assert np.array_equal(layer(x), x)
    first, second = (layer(x, training=True).numpy() for _ in range(2))
    assert first.dtype == dtype
    assert not np.array_equal(first, x)
    assert not np.array_equal(first, second)
    again = AugmentationLayer(CHAIN, seed=3)
    assert np.array_equal(again(x, training=True), first)
    assert np.array_equal(again(x, training=True), second)
    assert not np.array_equal(AugmentationLayer(CHAIN, seed=4)(x, training=True), first)


def test_values_of_another_range():
    x, chain = images(), (augment.Brightness(0.9),)
    made = AugmentationLayer(chain, (-1.0, 1.0), seed=1)(x * 2 - 1, training=True)
    np.testing.assert_allclose((made + 1) / 2, AugmentationLayer(chain, seed=1)(x, training=True), atol=1e-6)


@pytest.mark.slow
def test_in_a_model_that_is_saved_trained_and_exported(tmp_path):
    base = small_model()
    layer = AugmentationLayer((augment.Flip(), augment.PadCrop(1)), seed=5, name="augment")
    inputs = keras.Input((8, 8, 2), name="image")
    model = keras.Model(inputs, keras.models.clone_model(base)(layer(inputs)))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.get_layer("augment").augmentations == layer.augmentations
    x, y = blobs(96)
    assert np.array_equal(loaded(x), model(x))
    assert not np.array_equal(loaded(x, training=True), model(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    history = model.fit(x, y, batch_size=24, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, x)
    assert tfopt.export_tflite(aware, tmp_path / "m.tflite").float_ops == []
    types = {operator.type for operator in read_tflite(tmp_path / "m.tflite").graphs[0].operators}
    assert "REVERSE_V2" not in types
    assert tfopt.verify_tflite(aware, tmp_path / "m.tflite", x).argmax_agreement > 0.98


def test_every_augmentation_is_read_back():
    chain = (*OPERATIONS.values(), tfopt.signals.TimeWarp(0.1), tfopt.text.TokenSwap(0.3))
    layer = AugmentationLayer(chain)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.augmentations == chain


def test_a_model_asked_to_compile_with_xla_trains_without_it():
    x, y = blobs(48)
    model = keras.Sequential([keras.Input((8, 8, 2)), AugmentationLayer(CHAIN[:2]), keras.layers.Flatten()])
    model.add(keras.layers.Dense(3, activation="softmax"))
    with pytest.warns(UserWarning, match="jit_compile"):
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()


def test_what_it_cannot_do():
    with pytest.raises(TypeError, match="must be those of tfopt.augment"):
        AugmentationLayer([keras.layers.RandomFlip()])
    with pytest.raises(ValueError, match="must rise"):
        AugmentationLayer([augment.Flip()], (1.0, 1.0))
    with pytest.raises(ValueError, match="leave out what changes the type or the shape"):
        AugmentationLayer([augment.Crop(4, 4)])(images(), training=True)
