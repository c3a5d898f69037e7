"""Recurrent layers with integers: what they compute, what their files hold, and what stays in float."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfopt
from tests.conftest import quick
from tfopt.measure.file import weight_tensors
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.island import float_islands
from tfopt.quantize.matrix import rounded_matrix
from tfopt.quantize.recurrent import MAX_STEPS
from tfopt.quantize.steps import StepQuant
from tfopt.quantize.unrolled import QuantizedRecurrent
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.model import call_named
from tfopt.tflite.run import predict_tflite

STEPS, FEATURES, UNITS = 4, 3, 5


def sequences(count=48, steps=STEPS):
    return np.random.default_rng(0).normal(0, 1, (count, steps, FEATURES)).astype("float32")


def words(count=48):
    """Numbers of words, a third of them padding, at either end and between."""
    return np.random.default_rng(0).integers(-5, 11, (count, STEPS)).clip(0).astype("int32")


def sequential(*stack, steps=STEPS):
    return keras.Sequential([keras.Input((steps, FEATURES), name="frames"), *stack], name="recurrent")


def encoder_and_decoder(cell):
    """Two layers, the second of which starts from the states of the first; a final state is an output too."""
    frames = keras.Input((STEPS, FEATURES), name="frames")
    encoded, *states = cell(UNITS, return_sequences=True, return_state=True, name="encoder")(frames)
    decoded, *states = cell(UNITS, return_state=True, name="decoder")(encoded, initial_state=states)
    return keras.Model(frames, [decoded, states[-1]], name="states")


def masked(*stack):
    ids = keras.Input((STEPS,), dtype="int32", name="words")
    x = layers.Embedding(11, FEATURES, mask_zero=True, name="embedding")(ids)
    for layer in stack:
        x = layer(x)
    return keras.Model(ids, x, name="masked")


def lively(model):
    """The model with weights large enough that gates open and close, biases too; kernels on grids of 8 bits."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    for layer in model._flatten_layers():
        if isinstance(layer, layers.LSTMCell | layers.GRUCell | layers.SimpleRNNCell):
            layer.kernel.assign(rounded_matrix(layer.kernel, 8))
            parts = 1 if getattr(layer, "reset_after", True) else 3
            kernels = [rounded_matrix(each, 8) for each in tf.split(layer.recurrent_kernel, parts, axis=1)]
            layer.recurrent_kernel.assign(tf.concat(kernels, axis=1))
    return model


def outputs(model, x):
    return [each.numpy() for each in keras.tree.flatten(model(x))]


def unrounded(model, x):
    """What the model computes while its ranges are found."""
    quantizers = [layer for layer in model._flatten_layers() if isinstance(layer, FakeQuant)]
    for layer in quantizers:
        layer.calibrates = True
    try:
        return outputs(model, x)
    finally:
        for layer in quantizers:
            layer.calibrates = False


def steps_off(model, path, x, use_xnnpack=False):
    """|model - file| of each output, in steps of the file."""
    tensors = read_tflite(path).outputs
    received = predict_tflite(path, x, use_xnnpack=use_xnnpack)
    received = received if isinstance(received, dict) else {name: received for name in tensors}
    expected = call_named(model, [tf.constant(x)])
    return {
        name: np.abs(values.numpy() - received[name]) / tensors[name].quantization.scales[0]
        for name, values in expected.items()
    }


ARITHMETIC = {
    "lstm": lambda: sequential(layers.LSTM(UNITS)),
    "lstm without bias": lambda: sequential(layers.LSTM(UNITS, use_bias=False, return_sequences=True)),
    "lstm backwards": lambda: sequential(layers.LSTM(UNITS, go_backwards=True, return_sequences=True)),
    "gru": lambda: sequential(layers.GRU(UNITS)),
    "gru without bias": lambda: sequential(layers.GRU(UNITS, use_bias=False)),
    "gru reset before": lambda: sequential(layers.GRU(UNITS, reset_after=False, return_sequences=True)),
    "simple": lambda: sequential(layers.SimpleRNN(UNITS)),
    "concat": lambda: sequential(layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True))),
    "sum": lambda: sequential(layers.Bidirectional(layers.GRU(UNITS, return_sequences=True), merge_mode="sum")),
    "mul": lambda: sequential(layers.Bidirectional(layers.LSTM(UNITS), merge_mode="mul")),
    "ave": lambda: sequential(layers.Bidirectional(layers.GRU(UNITS), merge_mode="ave")),
    "both apart": lambda: sequential(layers.Bidirectional(layers.SimpleRNN(UNITS), merge_mode=None)),
    "lstm states": lambda: encoder_and_decoder(layers.LSTM),
    "gru states": lambda: encoder_and_decoder(layers.GRU),
    "masked lstm": lambda: masked(layers.LSTM(UNITS, return_sequences=True), layers.LSTM(UNITS)),
    "masked gru": lambda: masked(layers.GRU(UNITS, go_backwards=True, return_sequences=True)),
    "masked both": lambda: masked(layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True))),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_unrounded_it_computes_what_keras_computes(case):
    model = lively(ARITHMETIC[case]())
    x = words() if "masked" in case else sequences()
    aware = tfopt.quantize_aware(model)
    assert not float_islands(aware)
    for expected, received in zip(outputs(model, x), unrounded(aware, x), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(received, expected, atol=1e-6)


# Over 48 examples: what the mean and the largest error in steps stay below; most are half of that.
FILES = {
    "gru": (0.2, 4),
    "gru reset before": (0.2, 4),
    "concat": (0.1, 3),
    "lstm states": (0.4, 4),
    "masked lstm": (0.15, 3),
}


@pytest.mark.parametrize("case", quick(FILES, "gru", "masked lstm"))
def test_the_file_is_all_integers_and_computes_what_the_model_computes(case, tmp_path):
    aware = tfopt.quantize_aware(lively(ARITHMETIC[case]()))
    x = words() if "masked" in case else sequences()
    tfopt.calibrate(aware, x)
    measured = tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert measured.float_ops == []
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in file.outputs.values()} == {"int8"}
    assert {tensor.dtype for tensor in file.inputs.values()} == ({"int32"} if "masked" in case else {"int8"})
    mean, largest = FILES[case]
    for use_xnnpack in (False, True):
        for name, off in steps_off(aware, tmp_path / "m.tflite", x, use_xnnpack).items():
            assert off.mean() < mean, name
            assert off.max() <= largest + 0.01, name


@pytest.mark.parametrize(("cell", "bits"), [(layers.LSTM, 8), (layers.GRU, 4)])
def test_all_steps_share_the_trained_integers(cell, bits, tmp_path):
    layer = cell(8, name="cell")
    aware = tfopt.quantize_aware(lively(sequential(layer, steps=3)), layers={"cell": bits})
    tfopt.calibrate(aware, sequences(steps=3))
    measured = tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert measured.ops["FULLY_CONNECTED"] == 3  # all inputs at once; two states, as the first is zero
    stored = {weight.tensor.data.shape: weight for weight in weight_tensors(read_tflite(tmp_path / "m.tflite"))}
    assert len(stored) == 2
    for variable in (layer.cell.kernel, layer.cell.recurrent_kernel):
        kernel = variable.numpy()
        scale = np.abs(kernel).max() / (2 ** (bits - 1) - 1)
        weight = stored[kernel.T.shape]
        assert weight.tensor.dtype == f"int{bits}"
        assert np.array_equal(weight.values, np.round(kernel / scale).T)
        np.testing.assert_allclose(weight.tensor.quantization.scales, [scale], rtol=1e-6)


def test_exports_do_not_differ(tmp_path):
    aware = tfopt.quantize_aware(lively(sequential(layers.LSTM(4), steps=2)))
    tfopt.calibrate(aware, sequences(steps=2))
    for _ in range(2):
        ops = tfopt.export_tflite(aware, tmp_path / "m.tflite").ops
        each_step = {"ADD": 4, "SPLIT": 2, "LOGISTIC": 6, "TANH": 4, "MUL": 6}
        assert ops == {"FULLY_CONNECTED": 2, "UNPACK": 1, **each_step}


def test_it_trains_and_survives_saving(tmp_path):
    model = sequential(
        layers.LSTM(UNITS, dropout=0.2, recurrent_dropout=0.2, return_sequences=True, name="first"),
        layers.GRU(UNITS, activity_regularizer="l2", name="second"),
        layers.Dense(2),
    )
    aware = tfopt.quantize_aware(model)
    x = sequences()
    y = x[:, :, 0].sum(1) > 0
    aware.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    before = [weight.numpy() for weight in aware.trainable_variables]
    history = aware.fit(x, y, batch_size=16, epochs=6, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert all(np.any(old != new.numpy()) for old, new in zip(before, aware.trainable_variables, strict=True))
    assert aware.get_layer("second").activity_regularizer is not None
    aware.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert np.array_equal(again(x), aware(x))
    # Keras' own LSTM would turn XLA off, with a warning.
    again.compile("sgd", "mse", jit_compile=True)
    assert again.jit_compile


def test_a_range_is_that_of_the_whole_sequence():
    layer = StepQuant()
    layer.build(None)
    for factor in (1.0, 3.0):
        with layer.sequence(training=True) as steps:
            for step in range(4):
                steps(tf.constant([[-factor, factor * step]]))
    # The mean of two sequences, whose largest values are 3 and 9.
    assert (float(layer.low), float(layer.high)) == (-2.0, 6.0)
    with layer.sequence(training=False) as steps:
        assert steps(tf.constant([100.0])).numpy() == pytest.approx([6.0], abs=0.04)
    assert (float(layer.low), float(layer.high)) == (-2.0, 6.0)


def test_shared_layers_stay_shared():
    shared = layers.GRU(UNITS, name="shared")
    left, right = keras.Input((STEPS, FEATURES), name="left"), keras.Input((STEPS, FEATURES), name="right")
    aware = tfopt.quantize_aware(keras.Model([left, right], [shared(left), shared(right)]))
    assert sum(isinstance(layer, QuantizedRecurrent) for layer in aware.layers) == 1


def long(layer, steps=MAX_STEPS + 1):
    return sequential(layers.Dense(4, name="before"), layer, layers.Dense(3, name="after"), steps=steps)


REFUSED = {
    "steps": (lambda: long(layers.LSTM(4)), f"have {MAX_STEPS + 1} steps.*at most {MAX_STEPS}"),
    "open": (lambda: long(layers.GRU(4), None), "no fixed length.*give keras.Input the number of steps"),
    "relu": (lambda: sequential(layers.LSTM(4, activation="relu")), "its activation is 'relu', integers need 'tanh'"),
    "hard": (
        lambda: sequential(layers.GRU(4, recurrent_activation="hard_sigmoid")),
        "its recurrent_activation is 'hard_sigmoid', integers need 'sigmoid'",
    ),
    "linear": (lambda: sequential(layers.SimpleRNN(4, activation=None)), "its activation is 'linear'"),
    "cells": (lambda: sequential(layers.RNN(layers.LSTMCell(4))), "no integer rule for RNN"),
    "both": (
        lambda: sequential(layers.Bidirectional(layers.RNN(layers.LSTMCell(4)))),
        "'bidirectional.*no integer rule for the RNN inside",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused_with_the_reason(case):
    make, reason = REFUSED[case]
    with pytest.raises(ValueError, match=rf'(?s){reason}.*on_unsupported="float"'):
        tfopt.quantize_aware(make())


def test_stateful_layers_are_refused():
    frames = keras.Input(batch_shape=(1, STEPS, FEATURES))
    with pytest.raises(ValueError, match="it is stateful; give it its states as inputs"):
        tfopt.quantize_aware(keras.Model(frames, layers.LSTM(4, stateful=True)(frames)))


def test_initial_states_beyond_the_range_of_a_gru_are_refused():
    frames, start = keras.Input((STEPS, FEATURES)), keras.Input((4,))
    with pytest.raises(ValueError, match="initial state may lie outside of -1 to 1"):
        tfopt.quantize_aware(keras.Model([frames, start], layers.GRU(4)(frames, initial_state=start)))
    # An LSTM takes any.
    states = [start, keras.Input((4,))]
    tfopt.quantize_aware(keras.Model([frames, *states], layers.LSTM(4)(frames, initial_state=states)))


@pytest.mark.slow
def test_a_long_sequence_is_a_float_loop_inside_an_integer_file(tmp_path):
    steps = MAX_STEPS + 1
    loops = layers.LSTM(4, name="one"), layers.GRU(4, return_sequences=True, name="two")
    frames = keras.Input((steps, FEATURES), name="frames")
    x = layers.Dense(4, name="before")(frames)
    heads = [layers.Dense(3, name=f"after_{loop.name}")(loop(x)) for loop in loops]
    aware = tfopt.quantize_aware(lively(keras.Model(frames, heads)), on_unsupported="float")
    assert list(float_islands(aware)) == ["one", "two"]
    x = sequences(8, steps)
    tfopt.calibrate(aware, x)
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    file = read_tflite(tmp_path / "m.tflite")
    assert {tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())} == {"int8"}
    main = file.graphs[0]
    in_float = [op.type for op in main.operators if any(main.tensors[i].is_float for i in op.tensors)]
    assert in_float.count("WHILE") == 2
    # Around the loops values are moved and rounded, and the last step is taken; the Dense layers are integers.
    assert set(in_float) <= {"WHILE", "RESHAPE", "STRIDED_SLICE", "DEQUANTIZE", "QUANTIZE"}
    for off in steps_off(aware, tmp_path / "m.tflite", x).values():
        assert off.mean() < 0.3
    with pytest.raises(ValueError, match="static batch only: pass batch_size=1"):
        tfopt.export_tflite(aware, tmp_path / "open.tflite", batch_size=None)
