"""Reaching a target: what is refused, chosen and told, and that a search that was broken off ends as another."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

import tfopt
from recipes import auto as command
from tests.conftest import blobs, residual_model, small_model
from tfopt import tune
from tfopt.tune.better import trained_on
from tfopt.tune.reference import _epoch_seconds, measure_reference, value_of


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "the target is empty: give at least one of max_drop"),
        ({"max_drop": 1.0}, "max_drop must be a fraction in [0, 1), received 1.0"),
        ({"max_drop": -0.01}, "max_drop must be a fraction"),
        ({"max_drop": 2}, "for 2 % write 0.02"),
        ({"max_latency_ms": 0}, "max_latency_ms must be above 0, received 0"),
        ({"max_bytes": 0}, "max_bytes must be above 0"),
        ({"max_gzip_bytes": -5, "max_drop": 0.01}, "max_gzip_bytes must be above 0"),
        ({"max_drop": 0.01, "max_minutes": 0}, "max_minutes must be above 0"),
        ({"max_drop": 0.01, "learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_targets_that_contradict_themselves_are_refused(limits, message, trained, data, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        tune.reach(trained, data, workdir=tmp_path / "run", **limits)
    assert not (tmp_path / "run" / "candidates").exists()


@keras.saving.register_keras_serializable("test_auto")
class Strange(keras.layers.Layer):
    def call(self, x):
        return keras.ops.erf(x)


def test_layers_without_rules_are_named_before_anything_is_written(data, tmp_path):
    layers = [keras.Input((8, 8, 2)), Strange(name="odd"), keras.layers.Flatten(), keras.layers.Dense(3)]
    with pytest.raises(ValueError, match="odd"):
        tune.reach(keras.Sequential(layers), data, workdir=tmp_path / "run", max_drop=0.01)
    assert not (tmp_path / "run").exists()


def test_models_that_are_quantized_or_not_trained_are_refused(trained, data, tmp_path):
    with pytest.raises(ValueError, match="quantization-aware already"):
        tune.reach(tfopt.quantize_aware(trained), data, workdir=tmp_path, max_drop=0.1)
    untrained = small_model()
    untrained.get_layer("out").set_weights([np.zeros((12, 3)), np.zeros(3)])
    with pytest.raises(ValueError, match="no better than chance"):
        tune.reach(untrained, data, workdir=tmp_path, max_drop=0.1)
    assert not list(tmp_path.iterdir())


def test_how_far_a_file_is_from_the_goal():
    goal = tune.Goal(max_drop=0.01, max_bytes=100, max_latency_ms=2.0)
    within = {"drop": 0.01, "bytes": 100, "gzip_bytes": 999, "median_ms": 2.0}
    assert goal.excess(within) == {}
    assert goal.distance(within) == 0
    assert goal.excess({**within, "bytes": 150, "drop": 0.03}) == {"drop": 0.02, "bytes": 0.5}
    # Two points are twenty percent.
    assert goal.distance({**within, "drop": 0.03}) == pytest.approx(0.2)
    assert goal.distance({**within, "drop": 0.03, "median_ms": 3.0}) == pytest.approx(0.5)


def test_a_model_that_was_not_at_its_best_is_trained_on(data, tmp_path):
    keras.utils.set_random_seed(0)
    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    model.fit(data.batches("train"), epochs=1, shuffle=False, verbose=0)
    weights = model.get_weights()
    reference, known = measure_reference(model, data, False, tmp_path)
    better, said = trained_on(model, known, reference, 0.05, 1e6, tmp_path, seed=0)
    assert value_of(better, known, "validation")[1] > reference.value
    assert "in 3 more epochs its accuracy on the validation split went from" in said[0]
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    # Neither without the time for it, nor where it helps nothing.
    assert trained_on(model, known, reference, 0.05, 0.0, tmp_path / "none", seed=0) == (model, [])
    assert trained_on(model, known, reference, 1e-9, 1e6, tmp_path / "slow", seed=0) == (model, [])


def test_what_an_epoch_waits_for_before_its_first_batch_is_not_counted_by_step(trained, data):
    def wait(number):
        time.sleep(0.4 * (number == 0))
        return number

    def first_one_late(number, element):
        with tf.control_dependencies([tf.numpy_function(wait, [number], tf.int64)]):
            return tf.nest.map_structure(tf.identity, element)

    late = data.splits["train"].enumerate().map(first_one_late)
    assert _epoch_seconds(trained, dataclasses.replace(data, splits={**data.splits, "train": late})) < 0.4


def noisy(size, seed):
    """Blobs of which a tenth have a wrong label: to be right on these, a model must know them."""
    images, labels = blobs(size, seed)
    wrong = np.random.default_rng(seed).random(size) < 0.3
    return images, np.where(wrong, (labels + 1) % 3, labels)


@pytest.mark.slow
def test_a_validation_split_that_the_model_knows_does_not_decide(tmp_path):
    train, validation, test = noisy(200, 1), noisy(200, 2), noisy(400, 3)
    data = tfopt.from_arrays(train, validation, test, class_names=tuple("abc"))
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(256, "relu"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"], jit_compile=False)
    x, y = (np.concatenate(each) for each in zip(train, validation, strict=True))
    model.fit(x, y, epochs=60, verbose=0)
    assert model.evaluate(*validation, verbose=0)[1] > 0.95
    reference, known = measure_reference(model, data, True, tmp_path / "seen")
    assert reference.has_seen
    assert reference.value < 0.9
    assert known.sizes == {"train": 400, "validation": 200, "test": 200}
    halves = [np.concatenate([y for _, y in known.batches(split)]) for split in ("validation", "test")]
    np.testing.assert_array_equal(np.stack(halves, 1).ravel(), test[1])
    # One that does not know it keeps its splits.
    model.fit(*train, epochs=1, verbose=0)
    fresh = keras.models.clone_model(model)
    fresh.compile("adam", loss, metrics=["accuracy"], jit_compile=False)
    fresh.fit(*train, epochs=60, verbose=0)
    reference, known = measure_reference(fresh, data, True, tmp_path / "fresh")
    assert not reference.has_seen
    assert known.sizes == data.sizes


LIMITS = {"max_drop": 0.1, "max_bytes": 4300}


def outcome(found):
    """What must not depend on the time that anything took."""
    left_out = {"seconds", "median_ms"}
    rows = [{key: value for key, value in each.to_dict().items() if key not in left_out} for each in found.candidates]
    return rows, (found.workdir / "model.tflite").read_bytes()


@pytest.mark.slow
def test_a_target_is_reached_and_told_and_a_search_that_was_broken_off_ends_alike(trained, data, tmp_path, broken_off):
    weights = trained.get_weights()
    found = tune.reach(trained, data, workdir=tmp_path / "one", **LIMITS)
    assert found.reached
    assert found.limits == ()
    assert found.best.number > 0
    assert found.best.bytes <= 4300 < found.reference.bytes
    assert max(found.best.drop, found.best.test_drop) <= 0.1
    assert (tmp_path / "one" / "model.tflite").stat().st_size == found.best.bytes
    # The accuracy is that of the file, on all test images.
    metrics = tfopt.verify_tflite(trained, tmp_path / "one" / "model.tflite", data)
    assert metrics.tflite_metric == pytest.approx(found.best.test_value)
    for before, after in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    told = json.loads((tmp_path / "one" / "report.json").read_text())
    assert told["reached"] is True
    assert told["front"] == [each.number for each in found.front]
    page, text = (tmp_path / "one" / "report.html").read_text(), (tmp_path / "one" / "report.md").read_text()
    assert "<svg" in page
    assert page.count("<tr>") == 1 + len(found.candidates)
    assert "Reached: candidate" in text

    def again():
        return tune.reach(trained, data, workdir=tmp_path / "two", **LIMITS)

    broken_off(again)
    assert not (tmp_path / "two" / "report.json").exists()
    assert outcome(again()) == outcome(found)
    # Once more: nothing is trained anew.
    started = time.perf_counter()
    before = (tmp_path / "two" / "candidates" / "01" / "report.json").stat().st_mtime_ns
    assert outcome(again()) == outcome(found)
    assert (tmp_path / "two" / "candidates" / "01" / "report.json").stat().st_mtime_ns == before
    assert time.perf_counter() - started < 60
    with pytest.raises(ValueError, match=r"belongs to another run: goal was Goal\(max_drop=0.1, max_bytes=4300\)"):
        tune.reach(trained, data, workdir=tmp_path / "two", max_drop=0.2)


@pytest.mark.slow
def test_what_is_out_of_reach_is_said_with_the_nearest(trained, data, tmp_path):
    # Even the smallest option is slower than a thousandth of the plain file.
    found = tune.reach(trained, data, workdir=tmp_path, max_drop=0.1, max_latency_ms=1e-6)
    assert not found.reached
    assert any("latency, ms: of the files within the drop, candidate" in each for each in found.limits)
    assert any("the least median ms of any is about" in each for each in found.notes)
    assert "Not reached; nearest: candidate" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_with_a_drop_alone_the_file_becomes_smaller(trained, data, tmp_path):
    found = tune.reach(trained, data, workdir=tmp_path, max_drop=0.05)
    assert found.reached
    # The search goes from step to step, and back where one loses too much.
    assert found.best.gzip_bytes <= 0.85**2 * found.reference.gzip_bytes
    within = [each for each in found.measured if max(each.drop, each.test_drop) <= 0.05]
    assert found.best.gzip_bytes == min(each.gzip_bytes for each in within)
    numbers = [each.number for each in found.candidates]
    assert numbers == list(range(len(numbers)))
    assert found.front[0].drop == min(each.drop for each in found.measured)


@pytest.mark.slow
def test_blocks_are_tried_beside_channels(data, tmp_path):
    keras.utils.set_random_seed(0)
    model = residual_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    model.fit(data.batches("train"), epochs=6, shuffle=False, verbose=0)
    found = tune.reach(model, data, workdir=tmp_path, max_drop=0.1, max_bytes=4000)
    options = {each.option for each in found.candidates}
    assert any(each.startswith("without sum") for each in options)
    assert any(not each.startswith("without sum") for each in options - {"plain int8, not trained"})
    assert found.reached
    again = tune.reach(model, data, workdir=tmp_path, max_drop=0.1, max_bytes=4000)
    assert outcome(again) == outcome(found)


SCRIPT = """
import sys, keras, tfopt
from tests.conftest import blobs
data = tfopt.from_arrays(blobs(), batch_size=24, name="blobs", class_names=tuple("abc"))
tfopt.tune.reach(keras.saving.load_model(sys.argv[1]), data, workdir=sys.argv[2], max_drop=0.1, max_bytes=4300)
"""


@pytest.mark.slow
def test_kills_change_nothing(trained, data, tmp_path):
    trained.save(tmp_path / "model.keras")
    whole = tune.reach(keras.saving.load_model(tmp_path / "model.keras"), data, workdir=tmp_path / "one", **LIMITS)
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.keras"), str(tmp_path / "two")]
    waits = ["reference", "options.json", "candidates/01/01-*", "candidates/01/candidate.json"]
    for wait in waits:
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=dict(os.environ))
        while not list((tmp_path / "two").glob(wait)) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = tune.reach(keras.saving.load_model(tmp_path / "model.keras"), data, workdir=tmp_path / "two", **LIMITS)
    assert outcome(found) == outcome(whole)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls recipes.auto as a process of its own would be."""
    monkeypatch.chdir(tmp_path)
    before = flagsaver.save_flag_values(command._FLAGS)
    yield lambda *words: command.main(["auto", *words])
    flagsaver.restore_flag_values(before, command._FLAGS)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--max_dorp=0.01"], 2, "Did you mean: max_drop"),
        (["--dataset=digits", "--max_drop=0.01"], 2, "--model names no trained model"),
        (["--model=m.keras", "--max_drop=0.01"], 2, "--dataset names no data"),
        (["--model=m.keras", "--dataset=digits"], 1, "the target is empty"),
        (["--model=m.keras", "--dataset=digits", "--max_drop=1.5"], 1, "max_drop must be a fraction"),
        (["--model=m.keras", "--dataset=digits", "--max_latency_ms=0"], 1, "max_latency_ms must be above 0"),
        (["--model=m.keras", "--dataset=digits", "--max_drop=0.01"], 1, "m.keras"),
    ],
)
def test_the_command_line_says_what_is_wrong(words, code, message, capsys, call):
    assert call(*words) == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_reads_arrays_and_refuses_what_no_file_can_be(trained, tmp_path, capsys, call):
    trained.save(tmp_path / "m.keras")
    x, y = blobs()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    words = ["--model=m.keras", "--dataset=set.npz", "--batch_size=24", "--workdir=run"]
    assert call(*words, "--max_bytes=100") == 1
    assert "max_bytes=100 cannot be reached: the smallest file" in capsys.readouterr().err
    assert not (tmp_path / "run" / "candidates").exists()
    assert call(*words, "--max_bytes=4300", "--workdir=other") == 0
    assert "front: candidate" in capsys.readouterr().out
    assert (tmp_path / "other" / "model.tflite").stat().st_size <= 4300
