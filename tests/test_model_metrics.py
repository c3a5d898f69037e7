"""Metrics of Keras models and of .tflite files, alone and in a chain."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfopt
from tests.conftest import blobs
from tests.test_metrics import QUICK, RNG, expected_classes, value_of
from tfopt.measure import metrics, score
from tfopt.tflite.run import predict_tflite


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "int8.tflite"
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten(), layers.Dense(3, "softmax")])
    tfopt.export_tflite(model, path, quantization="int8", calibration_data=blobs()[0][:40])
    return path


def test_the_file_is_scored_by_its_own_outputs(int8, data):
    x, y = (np.concatenate(parts) for parts in zip(*data.batches("test").as_numpy_iterator(), strict=True))
    found = metrics(int8, data, resamples=50, seed=2)
    own = score("multi-class", y, predict_tflite(int8, x), class_names="abc", resamples=50, seed=2)
    assert found == own
    assert metrics(str(int8), (x, y), class_names="abc", resamples=50, seed=2) == own


def test_the_model_is_scored_by_its_own_outputs(trained, data):
    found = metrics(trained, data, "validation", **QUICK)
    x, y = (np.concatenate(parts) for parts in zip(*data.batches("validation").as_numpy_iterator(), strict=True))
    expected = expected_classes(y, trained.predict(x, verbose=0))
    assert value_of(found)["accuracy"] == pytest.approx(expected["accuracy"])
    assert value_of(found)["f1"] == pytest.approx(expected["f1"])
    assert [row.name for row in found.classes] == ["a", "b", "c"]
    assert found.examples == data.sizes["validation"]


@pytest.mark.parametrize("kind", ["arrays", "dataset", "Data"])
def test_weights_of_the_data_count(trained, kind):
    x, y = blobs(40)
    weights = np.linspace(0.0, 2.0, 40)
    given = (x, y, weights)
    given = {
        "arrays": given,
        "dataset": tf.data.Dataset.from_tensor_slices(given).batch(7),
        "Data": tfopt.from_arrays(given, given, given, class_names=tuple("012")),
    }[kind]
    found = metrics(trained, given, **QUICK)
    assert found == score("multi-class", y, trained.predict(x, verbose=0), weights, **QUICK)
    assert found.examples == 39


def test_a_mask_of_keras_leaves_steps_out():
    model = keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(9, 4, mask_zero=True), layers.Dense(3, "softmax")]
    )
    x = np.array([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]])
    y = np.array([[0, 1, 2, 1, 1], [2, 1, 1, 1, 1]])
    found = metrics(model, (x, y), **QUICK)
    assert (found.examples, found.labels) == (2, 4)
    kept = np.asarray(model(x))[x > 0]
    assert value_of(found)["accuracy"] == np.mean(kept.argmax(-1) == y[x > 0])


def test_the_task_is_told_by_the_loss_or_by_hand():
    model = keras.Sequential([keras.Input((2,), name="x"), layers.Dense(1)])
    x, y = RNG(0).normal(size=(30, 2)).astype("float32"), np.arange(30) % 2
    binary, outputs = metrics(model, (x, y), **QUICK), np.asarray(model(x))[:, 0]
    # Logits: between 0 and 0.5 too they mean 1.
    assert np.any((outputs > 0) & (outputs < 0.5))
    assert (binary.task, binary.values["accuracy"].value) == ("binary", np.mean((outputs > 0) == y))
    assert metrics(model, (x, y), task="regression", **QUICK).task == "regression"
    model.compile(loss="mse")
    assert metrics(model, (x, y), **QUICK).task == "regression"
    with pytest.raises(ValueError, match="task must be one of binary, multi-class, regression or None"):
        metrics(model, (x, y), task="classes")


def test_what_cannot_be_scored_is_named(trained, data, tmp_path):
    with pytest.raises(ValueError, match="data has no labels"):
        metrics(trained, blobs()[0])
    with pytest.raises(FileNotFoundError):
        metrics(tmp_path / "none.tflite", data)
    with pytest.raises(TypeError, match="expected a Keras 3 model"):
        metrics(3, data)
    with pytest.raises(ValueError, match="split must be one of"):
        metrics(trained, data, "all")
    with pytest.raises(ValueError, match="there are 5 class names"):
        metrics(trained, blobs(), class_names="abcde")


def test_the_chain_keeps_those_of_the_model_and_of_the_file(trained, data, tmp_path):
    work = tfopt.run([tfopt.ExportTFLite("float16")], tfopt.Work(trained, data, tmp_path, seed=3))
    artefact = json.loads((tmp_path / "report.json").read_text())["artefacts"]["tflite"]
    assert list(artefact["metrics"]) == ["keras", "tflite"]
    for key, model in (("keras", work.model), ("tflite", work.report.artefacts["tflite"]["path"])):
        assert artefact["metrics"][key] == metrics(model, data, seed=3).to_report()
    assert artefact["metrics"]["tflite"]["values"]["accuracy"]["value"] == pytest.approx(artefact["accuracy"])
    page = (tmp_path / "report.html").read_text()
    assert "Confusion matrix: Keras model" in page
    assert "Confusion matrix: File" in page


def test_the_chain_tells_the_model_from_the_file(tmp_path):
    x = RNG(0).normal(size=(200, 3)).astype("float32")
    data = tfopt.from_arrays((x, x.sum(axis=1)))
    model = keras.Sequential([keras.Input((3,), name="x"), layers.Dense(4, "relu"), layers.Dense(1)])
    work = tfopt.run(
        [tfopt.ExportTFLite("float16"), tfopt.Benchmark(runs=3, warmup=1)], tfopt.Work(model, data, tmp_path, seed=3)
    )
    found = work.report.artefacts["tflite"]
    assert found["metrics"]["keras"] == metrics(work.model, data, seed=3).to_report()
    assert found["metrics"]["tflite"] == metrics(found["path"], data, seed=3).to_report()
    assert found["metrics"]["tflite"]["values"]["mae"]["value"] == pytest.approx(found["parity"]["tflite_metric"])
    # An error is no accuracy, neither here nor among the variants.
    assert found["accuracy"] is None
    assert [row["accuracy"] for row in work.report.chain] == [None, None]
    assert found["metrics"]["keras"]["values"] != found["metrics"]["tflite"]["values"]


@pytest.mark.parametrize("units", [1, 2])
def test_a_file_that_decides_worse_is_refused_with_two_classes_too(units, tmp_path):
    def split(high):
        x = np.linspace(0, high, 60, dtype="float32")[:, None]
        return x, (x[:, 0] > 5).astype("int32")

    model = keras.Sequential([keras.Input((1,)), layers.Dense(units, "sigmoid" if units == 1 else "softmax")])
    steep = np.array([[-1.0, 1.0]])[:, -units:]
    model.set_weights([steep, -5 * steep[0]])
    # Calibrated where no example is of class 1, it cuts off what makes the others one.
    data = tfopt.from_arrays(split(1), split(10), split(10), class_names=("low", "high"))
    stage = tfopt.ExportTFLite("int8", max_drop=0.1)
    with pytest.raises(RuntimeError, match=r"the int8 file loses 0.500 of accuracy .*0.500 for 1.000"):
        tfopt.run([stage], tfopt.Work(model, data, tmp_path))
