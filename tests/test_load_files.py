"""load_model: files that are missing, damaged or of another kind."""

import os
import subprocess
import sys
import zipfile

import h5py
import keras
import pytest
import tensorflow as tf
import tf_keras

from tests.load_models import K2, functional, save
from tfopt.load import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*does not support masking and will therefore destroy the mask"),
]


def test_missing_file_names_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        load_model(tmp_path / "model.keras")
    (tmp_path / "modle.keras").touch()
    with pytest.raises(FileNotFoundError, match=r"nearest name in .* is 'modle.keras'"):
        load_model(tmp_path / "model.keras")
    with pytest.raises(FileNotFoundError, match=f"Its folder .*absent does not exist either; {tmp_path} does"):
        load_model(tmp_path / "absent" / "model.keras")


@pytest.mark.parametrize("kind", ["h5", "keras"])
@pytest.mark.parametrize("origin", [keras, tf_keras], ids=["keras3", "keras2"])
def test_truncated_files(origin, kind, tmp_path):
    layers = origin.layers
    path = tmp_path / f"m.{kind}"
    origin.Sequential([layers.InputLayer((3,)), layers.Dense(50)]).save(path)
    whole = path.read_bytes()
    for kept in (len(whole) - 1, len(whole) // 2, 100):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"damaged or truncated \({kept:,} bytes\)"):
            load_model(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is empty \(0 bytes\)"):
        load_model(path)


def test_keras_file_with_a_flipped_byte_or_a_missing_member(tmp_path):
    path = save(functional((3,), K2.Dense(50)), tmp_path, "keras")
    content = bytearray(path.read_bytes())
    content[content.index(b"\x89HDF") + 3000] ^= 255
    (tmp_path / "flipped.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged.*checksum of model.weights.h5"):
        load_model(tmp_path / "flipped.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "less.keras", "w") as new:
        new.writestr("config.json", old.read("config.json"))
    with pytest.raises(ValueError, match=r"damaged.*it lacks metadata.json, model.weights.h5"):
        load_model(tmp_path / "less.keras")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as new:
        new.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"is a zip file, but no .keras file: .* a.txt"):
        load_model(tmp_path / "other.zip")


def test_weights_only_files(tmp_path):
    tf_keras.Sequential([K2.Dense(2, input_shape=(3,))]).save_weights(tmp_path / "two.h5")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(tmp_path / "three.weights.h5")
    for name in ("two.h5", "three.weights.h5"):
        with pytest.raises(ValueError, match=rf"holds weights only.*model.load_weights\('.*{name}'\)"):
            load_model(tmp_path / name)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = [1, 2]
    with pytest.raises(ValueError, match=r"is an HDF5 file, but no Keras model.*It holds images"):
        load_model(tmp_path / "data.h5")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tflite", b"\x1c\0\0\0TFL3", r"a LiteRT \(TFLite\) file.*Interpreter"),
        ("m.keras", b"\x1c\0\0\0TFL3", r"a LiteRT \(TFLite\) file"),
        ("m.pt", b"\x80\x02", "a PyTorch file"),
        ("m.onnx", b"\x08\x07", "an ONNX file"),
        ("m.json", b"{}", "an architecture without weights"),
        ("m.keras", b"version https://git-lfs.github.com", "git lfs pull"),
        ("m.h5", b"<!DOCTYPE html>", "a web page"),
        ("m.keras", b"abcdefgh", r"no Keras model: it starts with b'abcdefgh' \(8 bytes\)"),
        ("saved_model.pb", b"abc", "one file of a SavedModel: give its folder"),
    ],
)
def test_other_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / name)


def test_pytorch_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", "")
    with pytest.raises(ValueError, match="a PyTorch file"):
        load_model(tmp_path / "m.pt")


def test_folders(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"no SavedModel: it has no saved_model.pb. It holds nothing"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "m.keras").touch()
    with pytest.raises(ValueError, match=r"Did you mean .*run/m.keras?"):
        load_model(tmp_path / "run")


def test_saved_models_without_layers(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(tf.Module(), str(tmp_path / "plain"))
    for name in ("exported", "plain"):
        with pytest.raises(ValueError, match=r"without Keras layers.*model.save\('name.keras'\).*TFSMLayer"):
            load_model(tmp_path / name)


def test_damaged_saved_model(tmp_path):
    path = save(functional((3,), K2.Dense(2)), tmp_path, "saved_model")
    metadata = (path / "keras_metadata.pb").read_bytes()
    (path / "keras_metadata.pb").write_bytes(metadata[:-7])
    with pytest.raises(ValueError, match=r"keras_metadata.pb is damaged or truncated \("):
        load_model(path)
    (path / "keras_metadata.pb").write_bytes(metadata)
    data = path / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_model(path)
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match=r"damaged: it has no variables/variables.index"):
        load_model(path)
    graph = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(ValueError, match=r"damaged: its saved_model.pb cannot be read"):
        load_model(path)


@pytest.mark.slow
def test_the_two_keras_stay_apart(tmp_path):
    """tf.keras and the environment are as before, and importing the package does not import tf_keras."""
    save(functional((3,), K2.Dense(2, name="same")), tmp_path, "h5")
    program = """
import os, sys
import keras, tensorflow as tf
from tfopt.load import load_model
assert "tf_keras" not in sys.modules
before = dict(os.environ)
first = keras.layers.Dense(2, name="same")
model = load_model(sys.argv[1])
assert dict(os.environ) == before and "TF_USE_LEGACY_KERAS" not in before
assert tf.keras.__version__.startswith("3.") and tf.keras.Model is keras.Model
assert type(model.get_layer("same")) is keras.layers.Dense
assert all(name.startswith("tfopt>") for name in keras.saving.get_custom_objects())
assert keras.layers.Dense(1).name == "dense"
"""
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "m.h5"], check=True, env=environment)
