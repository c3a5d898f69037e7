"""load_model: custom layers, code in files, and what has no counterpart in Keras 3."""

import marshal
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.load_models import K2, Scale, Scale2, assert_same, functional, randomized, rewrite, save
from tfopt.load import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*does not support masking and will therefore destroy the mask"),
]


@pytest.mark.parametrize("kind", ["h5", "keras", "saved_model"])
def test_custom_layers(kind, tmp_path):
    reference = randomized(functional((4,), K2.Dense(3), Scale2(2.0, name="scaled"), K2.Dense(2)))
    path = save(reference, tmp_path, kind)
    with pytest.raises(ValueError, match=r"'scaled' needs the class 'Scale'.*custom_objects={'Scale': Scale}"):
        load_model(path)
    model = load_model(path, {"Scale": Scale})
    assert isinstance(model.get_layer("scaled"), Scale)
    assert model.get_layer("scaled").power == 2.0
    assert_same(model, reference)
    with pytest.raises(TypeError, match=r"custom_objects\['Scale'\] is a class of tf_keras"):
        load_model(path, {"Scale": Scale2})


@pytest.mark.parametrize("sequential", [True, False])
def test_a_custom_layer_that_computes_something_else_is_named(sequential, tmp_path):
    class Other(Scale):
        def call(self, inputs):
            return super().call(inputs) * 1.01

    layers = [K2.Dense(3), Scale2(2.0, name="scaled"), K2.Dense(2)]
    if sequential:
        reference = tf_keras.Sequential([K2.InputLayer((4,)), *layers])
    else:
        reference = functional((4,), *layers)
    path = save(randomized(reference), tmp_path, "saved_model")
    with pytest.raises(RuntimeError, match=r"differs from tf_keras by .*first layer that differs is 'scaled'"):
        load_model(path, {"Scale": Other})


def test_custom_activations(tmp_path):
    def doubled(x):
        return keras.ops.tanh(x) * 2

    reference = functional((4,), K2.Dense(3, activation=doubled))
    path = save(reference, tmp_path, "keras")
    with pytest.raises(ValueError, match=r"'dense.*' calls the function 'doubled'"):
        load_model(path)
    assert_same(load_model(path, {"doubled": doubled}), reference)


@pytest.mark.parametrize("kind", ["h5", "keras", "saved_model"])
def test_marshalled_code_is_refused_before_it_is_unmarshalled(kind, tmp_path, monkeypatch):
    inner = functional((4,), K2.Dense(3), K2.Lambda(lambda x: x * 2.0, name="evil"))
    reference = functional((2, 4), K2.TimeDistributed(inner))
    path = save(reference, tmp_path, kind)
    with monkeypatch.context() as patched:
        patched.setattr(marshal, "loads", lambda code: pytest.fail("code was unmarshalled"))
        with pytest.raises(ValueError, match=r"'evil' holds marshalled Python code.*safe_mode=False"):
            load_model(path)
    assert_same(load_model(path, safe_mode=False), reference)


def test_marshalled_code_in_keras3_files_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2, name="evil")])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"'evil' holds marshalled Python code.*safe_mode=False"):
            load_model(tmp_path / name)
    assert load_model(tmp_path / "m.keras", safe_mode=False).predict(np.ones((1, 3)), verbose=0).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("safe_mode", [True, False])
def test_modules_that_a_file_names_are_not_imported(safe_mode, tmp_path):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = save(functional((4,), K2.Dense(3, name="out")), tmp_path, "keras")

    def plant(config):
        config["config"]["layers"][1]["config"]["activation"] = {
            "module": "planted", "class_name": "function", "config": "run", "registered_name": "run"
        }  # fmt: skip

    rewrite(path, tmp_path / "bad.keras", plant)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ValueError, match="'out' calls the function 'run', which is neither"):
            load_model(tmp_path / "bad.keras", safe_mode=safe_mode)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_saved_model_that_touches_files_is_refused(tmp_path):
    class Reader(tf_keras.layers.Layer):
        def call(self, inputs):
            return inputs + float(len("x")) * tf.cast(tf.strings.length(tf.io.read_file(secret)), "float32")

    secret = str(tmp_path / "secret")
    (tmp_path / "secret").write_text("abc")
    path = save(functional((4,), Reader()), tmp_path, "saved_model")
    with pytest.raises(ValueError, match=r"has the operations ReadFile, which touch files.*safe_mode=False"):
        load_model(path, {"Reader": keras.layers.Identity})


def test_operation_without_counterpart_is_named(tmp_path):
    inputs = tf_keras.Input((4, 4))
    path = save(tf_keras.Model(inputs, tf.linalg.det(inputs)), tmp_path, "h5")
    with pytest.raises(ValueError, match=r"'tf.linalg.det' calls tf.linalg.det, which has no counterpart"):
        load_model(path)
    reshaped = tf.reshape(inputs, [tf.shape(inputs)[0], 2, tf.shape(inputs)[0] // tf.shape(inputs)[0], 8])
    path = save(tf_keras.Model(inputs, reshaped), tmp_path, "h5")
    with pytest.raises(ValueError, match=r"'tf.compat.v1.floor_div.*' cannot be expressed in keras.ops"):
        load_model(path)


def test_operation_of_an_old_tensorflow_is_named(tmp_path):
    path = save(functional((4,), K2.Dense(3, name="out")), tmp_path, "keras")

    def age(config):
        config["config"]["layers"][1]["class_name"] = "TensorFlowOpLayer"

    rewrite(path, tmp_path / "old.keras", age)
    with pytest.raises(ValueError, match=r"'out' is an operation as TensorFlow 2.0 to 2.3 recorded it"):
        load_model(tmp_path / "old.keras")


def test_vocabularies(tmp_path):
    text = K2.TextVectorization(output_sequence_length=4)
    text.adapt(["a small model", "a fast model"])
    words, labels = tf_keras.Input((), dtype="string"), tf_keras.Input((1,), dtype="string")
    tokens = K2.Embedding(text.vocabulary_size(), 3)(text(words))
    index = K2.StringLookup(vocabulary=["fast", "small"], output_mode="one_hot")(labels)
    reference = tf_keras.Model([words, labels], [tokens, index])
    model = load_model(save(reference, tmp_path, "keras"))
    inputs = [tf.constant(["a fast thing"]), tf.constant([["small"]])]
    for one, other in zip(model(inputs), reference(inputs), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model(inputs)[1].numpy().tolist() == [[0, 0, 1]]


def test_layer_that_keras3_does_not_have_is_named(tmp_path):
    path = save(functional((5, 2), K2.LocallyConnected1D(3, 2, name="local")), tmp_path, "h5")
    with pytest.raises(ValueError, match="'local' is a LocallyConnected1D, which Keras 3 does not have"):
        load_model(path)


def test_argument_that_keras3_does_not_have_is_named(tmp_path):
    path = save(functional((5, 2), K2.LSTM(3, time_major=True, name="turned")), tmp_path, "h5")
    with pytest.raises(ValueError, match="LSTM 'turned' has time_major=True, which Keras 3 does not know"):
        load_model(path)


def test_keras3_file_with_an_unknown_layer_names_it(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Scale(name="scaled")])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"'scaled' needs the class 'Scale'.*custom_objects={'Scale': Scale}"):
            load_model(tmp_path / name)
        assert isinstance(load_model(tmp_path / name, {"Scale": Scale}).get_layer("scaled"), Scale)


def test_subclassed_model_is_named(tmp_path):
    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = K2.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ValueError, match=r"'own.*' needs the class 'Own'"):
        load_model(save(model, tmp_path, "saved_model"))


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_sequential_without_input_shape(tmp_path):
    path = save(tf_keras.Sequential([K2.Dense(2)], name="open"), tmp_path, "keras")
    with pytest.raises(ValueError, match="'open' was saved without an input shape"):
        load_model(path)
