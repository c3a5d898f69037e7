"""Dropout and stochastic depth in models that exist: nothing when they predict, the right share when they train."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfopt
from tests.conftest import blobs, quick, small_model
from tests.test_channels import randomized
from tests.test_models import MODELS, examples
from tfopt.train import with_dropout, with_stochastic_depth


def same_outputs(one, other, x):
    return np.array_equal(one(x, training=False), other(x, training=False))


def depths(model):
    return [(each.name, round(each.rate, 6)) for each in model._flatten_layers() if each.name.endswith("_depth")]


def residual(parts=4, raw=False):
    """Blocks that each add 1 to what comes in."""
    x = inputs = keras.Input((3,))
    for number in range(parts):
        y = layers.Dense(3, kernel_initializer="zeros", bias_initializer="ones", name=f"branch{number}")(x)
        x = y + x if raw else layers.Add(name=f"add{number}")([x, y])
    return keras.Model(inputs, x)


@pytest.mark.parametrize("raw", [False, True])
def test_branches_are_left_out_by_a_rate_that_grows(raw):
    model = with_stochastic_depth(residual(raw=raw), 0.8)
    assert [rate for _, rate in depths(model)] == [0.2, 0.4, 0.6, 0.8]
    x = np.zeros((4000, 3), "float32")
    trained = np.asarray(model(x, training=True))
    # Each example is one thing, in all of its numbers.
    assert (trained == trained[:, :1]).all()
    # A branch that stays counts 1 / (1 - rate), so the mean is that of the prediction.
    sums = {
        round(sum(kept), 4)
        for kept in np.array(np.meshgrid(*[(0, 1 / (1 - r)) for r in (0.2, 0.4, 0.6, 0.8)])).reshape(4, -1).T
    }
    assert {round(float(each), 4) for each in trained[:, 0]} == sums
    assert trained.mean() == pytest.approx(4.0, abs=0.2)
    assert np.array_equal(model(x, training=False), np.full((4000, 3), 4.0))


@pytest.mark.parametrize("name", quick(["resnet8", "resnet20", "mobilenet_v2", "mobilenet_v3_large"], "resnet8"))
def test_architectures_predict_as_before_train_save_and_become_integers(name, tmp_path):
    model = MODELS[name]()
    x, y = examples(model)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    deep = with_stochastic_depth(model, 0.5)
    assert same_outputs(model, deep, x)
    assert {each.path for each in deep.trainable_variables} == {each.path for each in model.trainable_variables}
    assert len(depths(deep)) == sum(isinstance(each, layers.Add) for each in model.layers)
    assert not np.array_equal(deep(x, training=True), deep(x, training=True))
    assert np.isfinite(deep.train_on_batch(x, y))
    deep.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert same_outputs(deep, again, x)
    assert depths(again) == depths(deep)
    aware = tfopt.quantize_aware(deep)
    tfopt.calibrate(aware, (x, y))
    assert [rate for _, rate in depths(aware)] == [rate for _, rate in depths(deep)]
    assert not tfopt.export_tflite(aware, tmp_path / "m.tflite").float_ops


def test_a_projected_shortcut_is_none_and_what_is_no_residual_is_told():
    model = with_stochastic_depth(tfopt.models.resnet8((8, 8, 1), 2), 0.3)
    for stack in (2, 3):
        dropped = model.get_layer(f"stack{stack}_add_depth")
        assert dropped.input._keras_history.operation.name == f"stack{stack}_b_bn"
    x = keras.Input((4,))
    both = layers.Add(name="both")([layers.Dense(2)(x), layers.Dense(2)(x)])
    with pytest.raises(ValueError, match="both: its inputs have as many layers"):
        with_stochastic_depth(keras.Model(x, both), 0.5)
    with pytest.raises(ValueError, match="has no sum of two tensors"):
        with_stochastic_depth(small_model(), 0.5)


def test_dropout_before_dense_layers_or_those_named():
    model = randomized(small_model())
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    x, _ = blobs(20)
    dropped = with_dropout(model, 0.4)
    # The hidden one has a dropout already.
    assert [each.name for each in dropped.layers if each not in model.layers and "dropout" in each.name] == [
        "dropout",
        "out_dropout",
    ]
    assert same_outputs(model, dropped, x)
    assert dropped.loss == model.loss
    assert {each.path for each in dropped.trainable_variables} == {each.path for each in model.trainable_variables}
    ones = np.ones((50, 12), "float32")
    kept = np.asarray(dropped.get_layer("out_dropout")(ones, training=True))
    assert np.unique(kept).tolist() == pytest.approx([0.0, 1 / 0.6])
    assert (kept == 0).mean() == pytest.approx(0.4, abs=0.08)
    whole = with_dropout(model, 0.5, layers=["conv"])
    channels = np.asarray(whole.get_layer("conv_dropout")(np.ones((30, 8, 8, 2), "float32"), training=True))
    assert (channels == channels[:, :1, :1]).all()
    assert 0.2 < (channels == 0).mean() < 0.8


def test_sequential_nested_and_shared_stay_what_they_are(tmp_path):
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(5, activation="relu", name="inner")], name="block")
    x = keras.Input((5,))
    model = randomized(keras.Model(x, layers.Dense(2, name="out")(ops.tanh(inner(inner(x)))), name="outer"))
    dropped = with_dropout(model, 0.5, layers=["inner", "out"])
    assert isinstance(dropped.get_layer("block"), keras.Sequential)
    assert [each.name for each in dropped.get_layer("block").layers] == ["inner_dropout", "inner"]
    values = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    assert same_outputs(model, dropped, values)
    dropped.save(tmp_path / "m.keras")
    assert same_outputs(keras.models.load_model(tmp_path / "m.keras"), dropped, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: with_dropout(model, 1.5), "rate must be a fraction in [0, 1), received 1.5"),
        (lambda model: with_dropout(model, 0.0), "a rate of 0 drops nothing"),
        (lambda model: with_stochastic_depth(model, 40), "for 40 % write 0.4"),
        (lambda model: with_dropout(model, 0.5, ["hiden"]), "did you mean 'hidden'?"),
        (lambda model: with_dropout(model, 0.5, ["hidden"]), "has the dropout 'dropout' before it"),
        (lambda model: with_dropout(model, 0.5, ["pool"]), "name layers with weights and one input"),
        (lambda model: with_dropout(with_dropout(model, 0.5)), "has no dense layer behind others"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        change(small_model())


@pytest.mark.slow
def test_a_chain_takes_it(data, tmp_path):
    model = with_dropout(small_model(), 0.3)
    fit = tfopt.Fit(3e-3)
    work = tfopt.run([tfopt.Train(1, fit), tfopt.QuantizeAware(1, fit=fit)], tfopt.Work(model, data, tmp_path))
    assert any(each.name == "out_dropout" for each in work.model.layers)
