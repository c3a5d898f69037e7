"""Recurrent layers with integers: unrolled where they are short, refused with the reason where they are not."""

import keras
import numpy as np
import pytest

import tfopt
from tfopt.quantize.recurrent import MAX_STEPS
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.parity import require_parity

layers = keras.layers
STEPS, FEATURES = 5, 4

CASES = {
    "lstm": lambda: layers.LSTM(6),
    "gru": lambda: layers.GRU(6),
    "gru reset before": pytest.param(lambda: layers.GRU(6, reset_after=False), marks=pytest.mark.slow),
    "lstm sequences": lambda: layers.LSTM(6, return_sequences=True),
    "bidirectional": lambda: layers.Bidirectional(layers.GRU(4)),
    "simple": pytest.param(lambda: layers.SimpleRNN(6), marks=pytest.mark.slow),
}


def model_with(layer, steps=STEPS):
    inputs = keras.Input((steps, FEATURES), name="x")
    x = layer(inputs)
    if len(x.shape) == 3:
        x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="y")(x))


def sequences(count=64, steps=STEPS):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (count, steps, FEATURES)).astype("float32")
    return x, (x.sum((1, 2)) > 0).astype("int64")


def parameters():
    for name, case in CASES.items():
        yield (
            pytest.param(*case.values, marks=case.marks, id=name)
            if hasattr(case, "marks")
            else pytest.param(case, id=name)
        )


@pytest.mark.parametrize("make", parameters())
def test_file_and_model_agree(make, tmp_path):
    x, y = sequences()
    model = model_with(make())
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, x)
    # The rounded arithmetic is that of the layer.
    assert np.abs(aware.predict(x, verbose=0) - model.predict(x, verbose=0)).max() < 0.1
    aware.compile("adam", "sparse_categorical_crossentropy")
    history = aware.fit(x, y, epochs=2, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"]).all()
    aware.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert np.array_equal(again.predict(x, verbose=0), aware.predict(x, verbose=0))
    measured = tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert measured.float_ops == []
    assert not [tensor for tensor in read_tflite(tmp_path / "m.tflite").graphs[0].tensors if tensor.is_float]
    require_parity(tfopt.verify_tflite(aware, tmp_path / "m.tflite", (x, y), use_xnnpack=False))


@pytest.mark.parametrize(
    ("make", "steps", "words"),
    [
        (lambda: layers.LSTM(4), MAX_STEPS + 1, f"have {MAX_STEPS + 1} steps.*at most {MAX_STEPS} steps"),
        (lambda: layers.LSTM(4), None, "no fixed length.*keras.Input the number of steps"),
        (lambda: layers.GRU(4, activation="relu"), STEPS, "its activation is 'relu', integers need 'tanh'"),
    ],
)
def test_refused_with_the_reason(make, steps, words):
    inputs = keras.Input((steps, FEATURES), name="x")
    model = keras.Model(inputs, make()(inputs))
    with pytest.raises(ValueError, match=words):
        tfopt.quantize_aware(model)
