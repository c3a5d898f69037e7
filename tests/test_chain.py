"""`run`: order, validation before training, resuming, refusing what does not belong, damage found."""

import dataclasses
import errno
import json
import multiprocessing
import os
import pathlib

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, small_model
from tfopt.files import atomic_path
from tfopt.stage import Outcome
from tfopt.workdir import locked

FIT = tfopt.Fit(learning_rate=3e-3)


def chain(epochs=2, sparsity=0.6):
    return [
        tfopt.Train(epochs, FIT),
        tfopt.Prune(sparsity, epochs, fit=FIT),
        tfopt.ExportTFLite(calibration_examples=50, max_drop=0.5),
    ]


def weights_of(work):
    return [np.asarray(each) for each in work.model.get_weights()]


def assert_same(one, other):
    assert len(one) == len(other)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A chain that was run once: (work, its workdir, the model handed in)."""
    workdir = tmp_path_factory.mktemp("chain") / "run"
    keras.utils.set_random_seed(0)
    model = small_model(dropout=0.2)
    return tfopt.run(chain(), tfopt.Work(model, data, workdir), recipe="blobs"), workdir, model


def test_a_chain_ends_with_a_checked_file_and_a_report(finished):
    work, workdir, _ = finished
    assert [entry.name for entry in work.report.stages] == ["Train", "Prune", "ExportTFLite"]
    train, prune, export = work.report.stages
    assert train.metrics["after"]["accuracy"] > 0.8
    assert prune.metrics["before"] == train.metrics["after"]
    assert [len(train.history["loss"]), len(prune.history["val_loss"])] == [2, 2]
    assert prune.sparsity["hidden/kernel"] == round(0.6 * 1536) / 1536
    assert prune.changed == ["conv/kernel", "hidden/kernel", "out/kernel"]
    assert {"layer": "bn", "reason": "has no kernel of two or more dimensions"} in prune.skipped
    assert [each["holds"] for each in export.invariants] == [True]
    artefact = work.report.artefacts["tflite"]
    measured = tfopt.measure_tflite(artefact["path"])
    assert measured.total_sparsity >= 0.59
    assert measured.float_ops == []
    assert artefact["accuracy"] > 0.8
    written = json.loads((workdir / "report.json").read_text())
    assert set(written) == {"recipe", "environment", "stages", "artefacts", "chain"}
    assert set(written["stages"][0]) >= {
        "name", "repr", "seconds", "metrics", "changed", "skipped", "invariants"
    }  # fmt: skip
    assert written["artefacts"]["tflite"]["path"] == "03-ExportTFLite/model.tflite"
    assert (workdir / "report.html").exists()
    assert (workdir / "report.md").exists()


def test_what_was_handed_in_stays_as_it_was(data, tmp_path):
    model = small_model()
    before = model.get_weights()
    first = tfopt.Work(model, data, tmp_path)
    second = tfopt.Train(1, FIT)(first)
    kept = weights_of(second)
    third = tfopt.Prune(0.5, 1, fit=FIT)(second)
    assert_same(model.get_weights(), before)
    assert_same(weights_of(second), kept)
    assert first.report.stages == ()
    assert second.invariants == ()
    assert [type(each) for each in third.invariants] == [tfopt.Sparsity]


def test_a_second_run_does_nothing_again(finished, data):
    work, workdir, model = finished
    stamps = {path: path.stat().st_mtime_ns for path in workdir.glob("0*/*")}
    again = tfopt.run(chain(), tfopt.Work(model, data, workdir), recipe="blobs")
    assert_same(weights_of(again), weights_of(work))
    assert again.report.to_dict() == work.report.to_dict()
    assert again.invariants == work.invariants
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("0*/*")} == stamps


class Crash(Exception):
    pass


@dataclasses.dataclass(frozen=True, repr=False)
class CrashOnce(tfopt.Stage):
    """Raises as long as its file is not there."""

    path: str = ""

    def validate(self, work):
        return work

    def apply(self, work, folder):
        if not os.path.exists(self.path):
            pathlib.Path(self.path).touch()
            raise Crash
        (folder / "note.txt").write_text("done")
        return Outcome(work)


def test_a_chain_goes_on_after_its_last_finished_stage(finished, data, tmp_path):
    work, _, model = finished
    stages = chain()
    stages.insert(2, CrashOnce(str(tmp_path / "flag")))
    start = tfopt.Work(model, data, tmp_path / "run")
    with pytest.raises(Crash) as caught:
        tfopt.run(stages, start)
    assert "in stage 3 of 4: CrashOnce" in caught.value.__notes__[0]
    stamp = (tmp_path / "run" / "01-Train" / "model.keras").stat().st_mtime_ns
    resumed = tfopt.run(stages, start)
    assert (tmp_path / "run" / "01-Train" / "model.keras").stat().st_mtime_ns == stamp
    assert_same(weights_of(resumed), weights_of(work))


def test_a_workdir_of_other_settings_is_refused_with_the_difference(finished, data):
    _, workdir, model = finished
    start = tfopt.Work(model, data, workdir)
    with pytest.raises(ValueError, match=r"stage 2 was Prune\(final_sparsity=0.6.*now Prune\(final_sparsity=0.7"):
        tfopt.run(chain(sparsity=0.7), start, recipe="blobs")
    with pytest.raises(ValueError, match="stage 3 was ExportTFLite.*now nothing"):
        tfopt.run(chain()[:2], start, recipe="blobs")
    with pytest.raises(ValueError, match="recipe was blobs, now other"):
        tfopt.run(chain(), start, recipe="other")
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        tfopt.run(chain(), start.replace(seed=1), recipe="blobs")
    with pytest.raises(ValueError, match="data was .*, now "):
        other = tfopt.from_arrays(blobs(seed=9), batch_size=24, name="blobs", class_names=tuple("abc"))
        tfopt.run(chain(), start.replace(data=other), recipe="blobs")
    with pytest.raises(ValueError, match="model was .*, now "):
        keras.utils.set_random_seed(7)
        tfopt.run(chain(), start.replace(model=small_model(dropout=0.2)), recipe="blobs")


def copy_of(workdir, tmp_path):
    import shutil

    return pathlib.Path(shutil.copytree(workdir, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("01-Train/model.keras", lambda content: content[: len(content) // 2]),
        ("02-Prune/model.keras", lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:]),
        ("03-ExportTFLite/model.tflite", lambda content: content[:-8]),
        ("02-Prune/stage.json", lambda content: content[:-20]),
        ("02-Prune/model.keras", None),
        ("02-Prune/stage.json", None),
    ],
)
def test_damage_in_a_workdir_is_found_and_named(finished, data, tmp_path, name, damage):
    _, workdir, model = finished
    path = copy_of(workdir, tmp_path) / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.*(damaged|missing).*delete the folder"):
        tfopt.run(chain(), tfopt.Work(model, data, tmp_path / "copy"), recipe="blobs")


def test_run_json_that_is_damaged_or_missing_is_named(finished, data, tmp_path):
    _, workdir, model = finished
    copy = copy_of(workdir, tmp_path)
    (copy / "run.json").write_text('{"recipe": ')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        tfopt.run(chain(), tfopt.Work(model, data, copy), recipe="blobs")
    (copy / "run.json").unlink()
    with pytest.raises(ValueError, match=r"01-Train.*but no run\.json"):
        tfopt.run(chain(), tfopt.Work(model, data, copy), recipe="blobs")


def test_half_written_folders_of_a_killed_process_are_cleared(finished, data, tmp_path):
    _, workdir, model = finished
    copy = copy_of(workdir, tmp_path)
    leftover = copy / ".03-ExportTFLite.999.tmp"
    leftover.mkdir()
    (leftover / "model.tflite").write_bytes(b"half")
    tfopt.run(chain(), tfopt.Work(model, data, copy), recipe="blobs")
    assert not leftover.exists()


REFUSED = [
    ("stages is empty", lambda: []),
    ("received <class 'tfopt.train.stage.Train'> in it: write Train", lambda: [tfopt.Train]),
    ("at step 101, but only 16 steps are planned", lambda: [
        tfopt.Train(50, FIT), tfopt.Prune(0.8, 2, schedule=tfopt.PolynomialDecay(0.0, 0.8, 0, 101))]),
    ("final_sparsity is 0.8, but the schedule ends at 0.5", lambda: [
        tfopt.Train(50, FIT), tfopt.Prune(0.8, 2, schedule=tfopt.PolynomialDecay(0.0, 0.5, 0, 10))]),
    ("is not trained when ExportTFLite comes", lambda: [
        tfopt.Build(tfopt.models.cnn), tfopt.ExportTFLite(), tfopt.Train(50, FIT)]),
    ("Benchmark needs a trained model", lambda: [tfopt.Build(tfopt.models.cnn), tfopt.Benchmark()]),
    ("has no layer 'nope'", lambda: [tfopt.Train(50, FIT), tfopt.Prune(0.8, 2, layers=["nope"])]),
    ("unknown dataset 'digitz'; did you mean digits", lambda: [tfopt.Train(50), tfopt.LoadTFDS("digitz")]),
    ("epochs must be a whole number from 1, received 0", lambda: [tfopt.Train(50, FIT), tfopt.Prune(0.8, 0)]),
]  # fmt: skip


@pytest.mark.parametrize(("message", "make"), REFUSED, ids=[message[:30] for message, _ in REFUSED])
def test_a_chain_that_cannot_work_is_refused_before_anything_is_trained(data, tmp_path, message, make):
    with pytest.raises((ValueError, TypeError)) as caught:
        tfopt.run(make(), tfopt.Work(small_model(), data, tmp_path / "run"))
    assert message in str(caught.value)
    assert not list((tmp_path / "run").glob("01-*"))


def test_models_that_do_not_fit_are_refused_before_anything_is_trained(data, tmp_path):
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"not built.*add keras\.Input"):
        tfopt.run([tfopt.Train(1)], tfopt.Work(unbuilt, data, tmp_path / "a"))
    with pytest.raises(ValueError, match=r"takes examples of shape \(4,\).*the data 'blobs' give \(8, 8, 2\)"):
        other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        tfopt.run([tfopt.Train(1)], tfopt.Work(other, data, tmp_path / "b"))
    with pytest.raises(ValueError, match=r"label 2 .* is out of range.*expected integers from 0 to 1"):
        x = keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(2)])
        tfopt.run([tfopt.Train(1)], tfopt.Work(x, data, tmp_path / "c"))
    with pytest.raises(TypeError, match=r"must be a Keras 3 model, received builtins\.str.*load_model"):
        tfopt.Work("model.keras", data)
    with pytest.raises(ValueError, match=r"no model yet: pass Work\(model"):
        tfopt.run([tfopt.Train(1)], tfopt.Work(None, data, tmp_path / "d"))
    with pytest.raises(ValueError, match=r"no data yet: pass Work\(data"):
        tfopt.run([tfopt.Train(1)], tfopt.Work(small_model(), None, tmp_path / "e"))
    with pytest.raises(ValueError, match="ExportTFLite needs data.*to calibrate int8"):
        tfopt.run([tfopt.ExportTFLite()], tfopt.Work(small_model(), None, tmp_path / "f"))


class Unregistered(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.flat, self.head = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, inputs):
        return self.head(self.flat(inputs))


def test_a_model_that_cannot_be_saved_and_read_back_is_refused_at_once(data, tmp_path):
    model = Unregistered()
    model(np.zeros((1, 8, 8, 2), "float32"))
    with pytest.raises(ValueError, match="register its custom classes with @keras.saving"):
        tfopt.run([tfopt.Train(1, FIT)], tfopt.Work(model, data, tmp_path / "run"))


@keras.saving.register_keras_serializable("tests")
class Registered(Unregistered):
    pass


def test_a_subclassed_model_is_trained_and_pruned_but_not_cast(data, tmp_path):
    model = Registered()
    model(np.zeros((1, 8, 8, 2), "float32"))
    work = tfopt.run([tfopt.Train(2, FIT), tfopt.Prune(0.5, 1)], tfopt.Work(model, data, tmp_path / "run"))
    assert work.report.stages[1].metrics["after"]["accuracy"] > 0.6
    assert work.invariants[0].check(work.model) == []
    mixed = tfopt.Train(1, tfopt.Fit(precision="mixed_bfloat16"))
    with pytest.raises(ValueError, match="is a subclassed model"):
        tfopt.validate([mixed], tfopt.Work(model, data))


def test_a_workdir_that_cannot_be_written_is_named_at_once(data, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"cannot write to the workdir .*file/run.*choose another"):
        tfopt.run([tfopt.Train(1)], tfopt.Work(small_model(), data, tmp_path / "file" / "run"))


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path):
    target = tmp_path / "stage"

    def write(path):
        path.mkdir()
        (path / "model.keras").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"the disk is full: cannot write .*stage .*Free some space"):
        with atomic_path(target) as temporary:
            write(temporary)
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_device_is_named(tmp_path):
    """/dev/full answers every write as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="the disk is full"):
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.symlink_to("/dev/full")
            with open(temporary, "w") as file:
                file.write("x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def hold(workdir, ready, stop):
    with locked(pathlib.Path(workdir)):
        ready.set()
        stop.wait(30)


def test_a_second_process_is_kept_out_of_a_workdir(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), ready, stop))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(RuntimeError, match="another process is at work"), locked(tmp_path):
            pass
    finally:
        stop.set()
        process.join()
    with locked(tmp_path):
        pass


@pytest.mark.slow
def test_zeros_last_through_further_training_reload_and_export(data, tmp_path):
    stages = [
        tfopt.Prune(0.7, 2, fit=FIT),
        tfopt.Train(2, tfopt.Fit(learning_rate=0.05, optimizer="sgd", steps_per_execution=3)),
        tfopt.ExportTFLite("none"),
    ]
    work = tfopt.run(stages, tfopt.Work(small_model(), data, tmp_path))
    kernel = work.model.get_layer("hidden").kernel.numpy()
    assert (kernel == 0).mean() == pytest.approx(0.7, abs=1e-3)
    before = keras.saving.load_model(tmp_path / "01-Prune" / "model.keras").get_layer("hidden").kernel.numpy()
    assert np.array_equal(kernel == 0, before == 0)
    assert np.abs(kernel - before).max() > 0
    assert tfopt.measure_tflite(tmp_path / "03-ExportTFLite" / "model.tflite").total_sparsity >= 0.69


@dataclasses.dataclass(frozen=True, repr=False)
class Refill(tfopt.Stage):
    """Breaks the promise."""

    def validate(self, work):
        return work

    def apply(self, work, folder):
        work.model.get_layer("hidden").kernel.assign(np.ones((128, 12)))
        return Outcome(work, changed=["hidden"])


def test_a_broken_promise_is_an_error_that_names_it(data, tmp_path):
    stages = [tfopt.Prune(0.7, 1, fit=FIT), Refill()]
    with pytest.raises(RuntimeError, match=r"lost .*hidden/kernel: 0.7000 of zeros were promised, it has 0.0000"):
        tfopt.run(stages, tfopt.Work(small_model(), data, tmp_path))
    assert not (tmp_path / "02-Refill").exists()


def test_without_a_workdir_a_temporary_one_is_made(data):
    work = tfopt.run([tfopt.Train(1, FIT)], tfopt.Work(small_model(), data))
    assert (work.workdir / "01-Train" / "model.keras").exists()


@pytest.mark.slow
def test_metrics_before_are_those_of_the_model_that_came_in(data, tmp_path):
    """A stage may train its model in place; what was there before it is measured before."""
    model = small_model()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    untrained = model.evaluate(data.test, verbose=0, return_dict=True)
    stages = [tfopt.Train(2, FIT), tfopt.Prune(0.5, 1, fit=FIT), tfopt.Benchmark(runs=2, warmup=1)]
    work = tfopt.run(stages, tfopt.Work(model, data, tmp_path / "a"))
    train, prune, _ = work.report.stages
    assert train.metrics["before"]["loss"] == pytest.approx(untrained["loss"], rel=1e-5)
    assert train.metrics["after"]["loss"] < untrained["loss"]
    names = ["input (float32)", "Train (float32)", "Prune (float32)"]
    assert [row["variant"] for row in work.report.chain] == names
    accuracies = [
        each["accuracy"] for each in (train.metrics["before"], train.metrics["after"], prune.metrics["after"])
    ]
    assert [row["accuracy"] for row in work.report.chain] == pytest.approx(accuracies)
    fresh = tfopt.run(stages, tfopt.Work(model, data, tmp_path / "b", trained=False))
    assert [row["variant"] for row in fresh.report.chain] == names[1:]
