"""The engine TFMOT: models cross unchanged, its stages keep their promises, and this process stays as it was."""

import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfopt
from tests.conftest import small_model
from tests.test_launch import launch
from tfopt import tfmot
from tfopt.files import sha256
from tfopt.tfmot.held import ASSETS
from tfopt.tfmot.process import run_task
from tfopt.tfmot.settings import _rates, task_values
from tfopt.tfmot.translate import write
from tfopt.train import models

FIT = tfopt.Fit(tfopt.Cosine(3e-3))
layers = keras.layers


def with_random_weights(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 0.5, each.shape) for each in model.get_weights()])
    return model


def nested():
    inner = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3, name="conv"), layers.LeakyReLU(0.1)], name="in"
    )
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Flatten()(inner(inputs))
    return keras.Model(inputs, layers.Dense(2, kernel_regularizer=keras.regularizers.L2(1e-3))(x))


def operators():
    inputs = keras.Input((5,), name="x")
    shared = layers.Dense(5, name="shared")
    x = keras.ops.relu6(shared(inputs) + shared(shared(inputs)))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = layers.Concatenate()([layers.Dense(2)(a), b])
    return keras.Model({"a": a, "b": b}, [layers.Dense(1, name="one")(x), layers.Dense(2, name="two")(x)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.cnn((8, 8, 1), 10, filters=4, shift=0.1),
        lambda: models.ds_cnn((8, 8, 1), 10, filters=4),
        lambda: models.resnet8((8, 8, 3), 10, filters=4),
        lambda: keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=3),
        nested,
        operators,
        two_inputs,
    ],
)
def test_models_cross_and_come_back(make):
    model = with_random_weights(make())
    crossed = tfmot.to_tf_keras(model)
    rng = np.random.default_rng(1)
    x = [rng.random((3, *each.shape[1:]), "float32") for each in model.inputs]
    ours = model(dict(zip("ab", x, strict=True)) if len(x) == 2 else x[0], training=False)
    theirs = crossed.model(x if len(x) == 2 else x[0], training=False)
    for a, b in zip(keras.tree.flatten(ours), tf.nest.flatten(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # Other weights come back to the same places.
    crossed.model.set_weights([each + 1 for each in crossed.model.get_weights()])
    before = model.get_weights()
    crossed.take_weights(crossed.model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old + 1, rtol=1e-6)


def test_layers_without_a_counterpart_are_named_all():
    inputs = keras.Input((4,), name="x")
    x = layers.RMSNormalization(name="rms")(inputs)
    model = keras.Model(inputs, layers.Dense(1)(keras.ops.sin(layers.Dense(3, activation="glu", name="gated")(x))))
    with pytest.raises(ValueError, match="rms: tf_keras has no layer RMSNormalization.*sin.*operator Sin"):
        tfmot.to_tf_keras(model)
    half = keras.Sequential([keras.Input((4,)), layers.Dense(1, dtype="mixed_bfloat16", name="half")])
    with pytest.raises(ValueError, match="half: it computes in bfloat16"):
        tfmot.to_tf_keras(half)
    with pytest.raises(ValueError, match="subclassed"):
        tfmot.to_tf_keras(type("Own", (keras.Model,), {})())


def test_frozen_layers_stay_frozen():
    model = small_model()
    model.get_layer("conv").trainable = False
    crossed = tfmot.to_tf_keras(model).model
    assert [each.name for each in crossed.layers if not each.trainable] == ["conv"]


def test_a_chain_becomes_that_of_tfmot():
    chain = [
        tfopt.Train(1),
        tfopt.Prune(0.5, criterion="global_magnitude"),
        tfopt.Cluster(8),
        tfopt.QuantizeAware(3, fit=FIT),
        tfopt.ExportTFLite(float_io=True),
    ]
    assert tfmot.on_tfmot(chain) == [
        chain[0],
        tfmot.Prune(0.5, criterion="global_magnitude"),
        tfmot.Cluster(8),
        tfmot.QuantizeAware(3, fit=FIT),
        tfmot.ExportTFLite(float_io=True),
    ]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([tfopt.Train(1), tfopt.ExportTFLite()], "none of the stages has a counterpart"),
        ([tfopt.QuantizeAware(weight_bits=4)], "QuantizeAware has no weight_bits=4"),
        ([tfopt.Cluster(refresh=5)], "Cluster has no refresh=5"),
        ([tfopt.Prune(criterion="taylor")], "by magnitude, received criterion='taylor'"),
    ],
)
def test_what_tfmot_does_not_have_is_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        tfmot.on_tfmot(stages)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (tfmot.Prune(0.5, fit=tfopt.Fit(precision="mixed_bfloat16")), "without precision='mixed_bfloat16'"),
        (tfmot.QuantizeAware(fit=tfopt.Fit(label_smoothing=0.1, early_stopping=1)), "early_stopping=1, label_smooth"),
        (tfmot.QuantizeAware(fit=tfopt.Fit(tfopt.train.Plateau())), "a number or a schedule"),
        (tfmot.Prune(0.5, schedule=tfopt.PolynomialDecay(0, 0.5, 0, 7, frequency=2)), "never at end_step=7"),
        (tfmot.Prune(0.5, 1, tfopt.PolynomialDecay(0, 0.5, 0, 700, frequency=2)), "only 8 steps are planned"),
        (tfmot.Prune(pattern="2:4"), "groups of 4 among input channels, which conv/kernel"),
        (tfmot.Cluster(100_000), "no kernel .* has more weights"),
    ],
)
def test_stages_refuse_before_any_process(stage, message, data):
    with pytest.raises(ValueError, match=message):
        stage.validate(tfopt.Work(small_model(), data))


def test_reprs_rebuild_stages():
    for stage in (
        tfmot.Prune(0.5, 2, pattern="2:4"),
        tfmot.Cluster(8, per_channel=True),
        tfmot.QuantizeAware(1, preserve="nothing"),
        tfmot.ExportTFLite("none"),
    ):
        assert eval(repr(stage), {"tfmot": tfmot, **vars(tfopt)}) == stage
        assert repr(stage).startswith("tfmot.")
        with pytest.raises(dataclasses.FrozenInstanceError):
            stage.epochs = 9


def test_losses_metrics_and_rates_cross(data):
    model = small_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)])
    values = task_values(tfopt.Work(model, data))
    theirs = tf_keras.losses.SparseCategoricalCrossentropy(**values["loss"]["config"])
    logits, labels = np.array([[1.0, 2.0, -1.0], [0.0, 3.0, 1.0]]), np.array([1, 2])
    assert float(theirs(labels, logits)) == pytest.approx(float(loss(labels, logits)))
    assert values["metrics"][0] == "accuracy"
    assert values["metrics"][1]["config"]["k"] == 2
    model.compile("sgd", keras.losses.Dice())
    with pytest.raises(ValueError, match="tf_keras has no Dice"):
        task_values(tfopt.Work(model, data))
    rates = _rates(tfopt.Fit(tfopt.Cosine(0.5, warmup=0.2)), 20)
    schedule = tfopt.Cosine(0.5, warmup=0.2).over(20)
    np.testing.assert_allclose(rates, [float(schedule(step)) for step in range(20)], rtol=1e-5)


def test_an_unknown_engine_is_refused(capsys):
    assert launch(lambda: [], "--engine=tfmod") == 2
    assert "--engine must be tfopt or tfmot, received 'tfmod'" in capsys.readouterr().err


PROBE = """
import os, sys
import tensorflow, keras
before = dict(os.environ)
sys.modules["tf_keras"] = None
try:
    from tfopt import tfmot
except ModuleNotFoundError as error:
    assert "pip install" in str(error) and "tf-keras" in str(error), error
else:
    raise AssertionError("imported without tf_keras")
# Its command line says so before it trains, and has no traceback.
import recipes.compare
del sys.modules["tf_keras"]
from tfopt import tfmot
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
tfmot.to_tf_keras(model)
assert "tensorflow_model_optimization" not in sys.modules
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert tensorflow.keras.__version__.startswith("3.")
print("fine")
"""


def test_the_engine_leaves_this_process_alone_and_says_what_to_install():
    clean = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    root = os.path.dirname(os.path.dirname(tfopt.__file__))
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, env=clean | {"PYTHONPATH": root}
    )
    assert done.stdout.strip() == "fine", done.stderr[-3000:]


@pytest.mark.slow
def test_errors_of_tfmot_tell_where_and_what(tmp_path):
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.LayerNormalization(name="norm")])
    write(model, tmp_path / "m.h5")
    job = {"model": str(tmp_path / "m.h5"), "preserve": "nothing", "epochs": 0, "seed": 0}
    with pytest.raises(RuntimeError, match=r"TFMOT failed in quantize_model: RuntimeError: Layer norm.*not supported"):
        run_task("quantize", job)
    with pytest.raises(RuntimeError, match="TFMOT failed in reading the model"):
        run_task("quantize", job | {"model": str(tmp_path / "none.h5")})


def same_weights(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


@pytest.mark.slow
def test_zeros_clusters_and_integers_end_in_a_file(trained, data, tmp_path):
    environment = dict(os.environ)
    was_loaded = "tensorflow_model_optimization" in sys.modules
    stages = [
        tfmot.Prune(0.5, 2, fit=FIT, criterion="global_magnitude"),
        tfmot.Cluster(8, 1, fit=FIT),
        tfmot.QuantizeAware(1, fit=FIT),
        tfmot.ExportTFLite(),
        tfopt.Benchmark(runs=3, warmup=1),
    ]
    work = tfopt.run(stages, tfopt.Work(trained, data, tmp_path))
    assert dict(os.environ) == environment
    assert ("tensorflow_model_optimization" in sys.modules) == was_loaded
    pruned, clustered, aware = work.report.stages[:3]
    assert any("no criterion='global_magnitude'" in note for note in pruned.notes)
    assert set(pruned.changed) == set(clustered.changed) == {each for each in pruned.sparsity if "bn" not in each}
    assert all(0.49 < pruned.sparsity[path] < 0.51 for path in pruned.changed)
    assert "PCQAT" in aware.notes[0]
    assert len(aware.history["val_accuracy"]) == 1
    assert {type(each).__name__ for each in work.invariants} == {"Sparsity", "Clustered"}
    # The promises were checked by the chain in the model and in the file; here is the file once more.
    file = tfopt.measure_tflite(work.report.artefacts["tflite"]["path"])
    assert file.float_ops == []
    assert file.total_sparsity > 0.45
    assert work.report.artefacts["tflite"]["parity"]["argmax_agreement"] > 0.9
    assert work.report.artefacts["tflite"]["accuracy"] > 0.8
    # What TFMOT's graph computes is no float model to be measured.
    assert [row["variant"] for row in work.report.chain][-2:] == ["Cluster (float32)", "int8 file"]
    # Read back whole: the same outputs, and nothing to train.
    again = tfopt.run(stages, tfopt.Work(trained, data, tmp_path))
    assert same_weights(again.model, work.model)
    x = np.random.default_rng(0).random((5, 8, 8, 2), "float32")
    np.testing.assert_array_equal(again.model(x), work.model(x))
    with pytest.raises(ValueError, match="nothing to train"):
        tfopt.Train(1).validate(again)
    assert all(again.model.get_layer("tfmot").assets[name] for name in ASSETS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        tfmot.Prune(epochs=2, layers=["hidden"], pattern="2:4", fit=FIT),
        tfmot.Prune(layers={"hidden": 0.75}, epochs=2, fit=FIT),
    ],
)
def test_pruning_is_the_same_again_and_what_was_asked_for(stage, trained, data, tmp_path):
    one, two = (tfopt.run([stage], tfopt.Work(trained, data, tmp_path / name)) for name in ("one", "two"))
    assert same_weights(one.model, two.model)
    hidden = keras.ops.convert_to_numpy(one.model.get_layer("hidden").kernel)
    assert (hidden == 0).mean() == (0.5 if stage.pattern == "2:4" else 0.75)
    assert one.report.stages[0].history == two.report.stages[0].history
    theirs = tf_keras.saving.load_model(tmp_path / "one" / "01-Prune" / "tf_keras.h5", compile=False)
    np.testing.assert_array_equal(theirs.get_layer("hidden").kernel, hidden)


@pytest.mark.slow
def test_a_stage_that_was_broken_off_begins_anew_and_ends_alike(trained, data, tmp_path, monkeypatch):
    stages = [tfmot.Prune(0.5, 2, fit=FIT), tfmot.ExportTFLite()]
    whole = tfopt.run(stages, tfopt.Work(trained, data, tmp_path / "whole"))
    advance = tfopt.progress.Bar.update

    def breaks(bar, done, text=None):
        if text and "loss" in text:
            raise KeyboardInterrupt
        advance(bar, done, text)

    with monkeypatch.context() as patch:
        patch.setattr(tfopt.progress.Bar, "update", breaks)
        with pytest.raises(KeyboardInterrupt):
            tfopt.run(stages, tfopt.Work(trained, data, tmp_path / "broken"))
    resumed = tfopt.run(stages, tfopt.Work(trained, data, tmp_path / "broken"))
    assert same_weights(whole.model, resumed.model)
    paths = [each.report.artefacts["tflite"]["path"] for each in (whole, resumed)]
    assert sha256(paths[0]) == sha256(paths[1])
    assert not list((tmp_path / "broken").glob("*.partial"))


@pytest.mark.slow
def test_what_tfmot_refuses_is_refused_before_training(data, tmp_path):
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.LayerNormalization(name="norm")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    with pytest.raises(RuntimeError, match="quantize_model: RuntimeError: Layer norm"):
        tfopt.run([tfopt.Train(1), tfmot.QuantizeAware(1)], tfopt.Work(model, data, tmp_path))
    assert not (tmp_path / "01-Train").exists()
