"""Batch prediction in real processes that are killed: every row once, with the bits of an undisturbed run."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest

import tfopt
from tests.processes import PATIENCE, marked, parent, wait_until
from tfopt.tflite.run import predict_tflite

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent
ROWS, SHARD = 6000, 16
SHARDS = ROWS // SHARD


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(ROWS, 40)).astype("float32")
    x[[3, 77, 5000], 1] = np.inf
    net = keras.Sequential(
        [keras.Input((40,), name="x"), keras.layers.Dense(64, "relu"), keras.layers.Dense(5, name="y")]
    )
    good = x[np.isfinite(x).all(1)]
    tfopt.export_tflite(net, folder / "m.tflite", quantization="int8", calibration_data=good[:200])
    net.save(folder / "m.keras")
    np.save(folder / "x.npy", x)
    return folder


def start(files, out, *words, model="m.tflite"):
    given = [f"--input={files / 'x.npy'}", f"--output={out}", f"--shard_rows={SHARD}", "--on_bad=skip"]
    return subprocess.Popen(
        [sys.executable, "-m", "tfopt.predict", str(files / model), *given, *words],
        cwd=ROOT,
        env={**os.environ, "MARK": str(out), "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def notes(out):
    return len(list((out / "_shards").glob("*.json")))


def wait_for_notes(process, out, least):
    """Until so many shards are done, or the run has ended, which the test will find out."""
    wait_until(lambda: notes(out) >= least or process.poll() is not None)


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output[-3000:]
    return output


def check(files, out):
    """Every row is there once, with the bits of the file, or listed once."""
    manifest = json.loads((out / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["skipped"], len(manifest["shards"])) == (ROWS, 3, SHARDS)
    table = pq.read_table(out)
    skipped = [int(line.split(",")[0]) for line in (out / "_skipped.csv").read_text().splitlines()[1:]]
    rows = table["row"].to_numpy()
    assert sorted([*rows, *skipped]) == list(range(ROWS))
    assert skipped == [3, 77, 5000]
    expected = predict_tflite(files / "m.tflite", np.load(files / "x.npy")[rows])
    np.testing.assert_array_equal(np.stack(table["y"].to_numpy()), expected)
    assert not list(out.rglob(".*.tmp*"))


def workers_of(process, out):
    """The processes that do shards: children of the server that the run has started."""
    servers = [pid for pid in marked(out) if parent(pid) == process.pid]
    return [pid for pid in marked(out) if parent(pid) in servers]


def test_a_run_killed_three_times_ends_with_every_row_once(files, tmp_path):
    out = tmp_path / "out"
    for least, workers in ((1, 2), (90, 1), (200, 3)):
        process = start(files, out, f"--workers={workers}")
        wait_for_notes(process, out, least)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # Those that it started end by themselves.
        wait_until(lambda: not marked(out))
        assert not (out / "_manifest.json").exists()
    assert notes(out) < SHARDS
    output = finish(start(files, out, "--workers=2"))
    assert "of them before" in output
    assert not marked(out)
    check(files, out)


def test_a_worker_that_is_killed_is_replaced(files, tmp_path):
    out, killed = tmp_path / "out", []
    process = start(files, out, "--workers=2")
    for least in (5, 60, 120):
        wait_until(lambda least=least: notes(out) >= least and workers_of(process, out))
        killed.append(workers_of(process, out)[-1])
        os.kill(killed[-1], signal.SIGKILL)
    output = finish(process)
    assert len(set(killed)) == 3
    assert output.count("a worker has ended with exit code -9") + output.count("exit code 255") >= 1, output[-2000:]
    check(files, out)


def test_a_second_run_on_the_same_folder_is_refused_and_sigterm_ends_the_first(files, tmp_path):
    out = tmp_path / "out"
    first = start(files, out, "--workers=1")
    wait_for_notes(first, out, 2)
    # So that it is not done before the second one has started.
    os.kill(workers_of(first, out)[0], signal.SIGSTOP)
    second = start(files, out, "--workers=1")
    output, _ = second.communicate(timeout=PATIENCE)
    assert (second.returncode, "another process is at work in" in output) == (1, True), output[-2000:]
    first.terminate()
    first.communicate(timeout=PATIENCE)
    # As a training that was asked to end: start it again.
    assert first.returncode == 75
    wait_until(lambda: not marked(out))
    finish(start(files, out, "--workers=2"))
    check(files, out)


def test_an_input_that_changes_while_it_is_read_ends_the_run_and_is_refused(files, tmp_path):
    rows = np.load(files / "x.npy")
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "x.npy", rows)
    out = tmp_path / "out"
    process = start(tmp_path / "in", out, "--workers=1", model=files / "m.tflite")
    wait_for_notes(process, out, 2)
    worker = workers_of(process, out)[0]
    os.kill(worker, signal.SIGSTOP)
    np.save(tmp_path / "in" / "x.npy", rows + 1)
    os.kill(worker, signal.SIGCONT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "was changed while it was read" in output) == (1, True), output[-2000:]
    done = notes(out)
    again = start(tmp_path / "in", out, "--workers=1", model=files / "m.tflite")
    output, _ = again.communicate(timeout=PATIENCE)
    assert (again.returncode, "the input has changed since" in output) == (1, True), output[-2000:]
    assert notes(out) == done


def test_kinds_of_models_and_engines_agree(files, tmp_path):
    net = keras.saving.load_model(files / "m.keras")
    net.export(files / "saved", verbose=False)
    rows = np.load(files / "x.npy")
    good = np.flatnonzero(np.isfinite(rows).all(1))
    found = {}
    for model, engine in (("m.keras", "local"), ("saved", "local"), ("m.keras", "ray")):
        out = tmp_path / f"{model}_{engine}"
        finish(start(files, out, f"--engine={engine}", "--workers=2", "--shard_rows=1000", model=model))
        table = pq.read_table(out)
        order = np.argsort(table["row"].to_numpy())
        assert table["row"].to_numpy()[order].tolist() == good.tolist()
        found[model, engine] = np.stack(table.columns[-1].to_numpy())[order]
    for each in found.values():
        np.testing.assert_array_equal(each, found["m.keras", "local"])
    np.testing.assert_allclose(found["m.keras", "local"], net.predict(rows[good], verbose=0), atol=1e-5)


def test_ray_goes_on_where_processes_were_killed_and_survives_the_loss_of_its_own(files, tmp_path):
    out = tmp_path / "out"
    process = start(files, out, "--workers=2")
    wait_for_notes(process, out, 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not marked(out))
    before = notes(out)
    process = start(files, out, "--workers=2", "--engine=ray")
    wait_for_notes(process, out, before + 20)
    actors = [pid for pid in marked(out) if b"MapWorker" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    finish(process)
    check(files, out)


def test_an_error_on_ray_is_told_as_it_is_here(files, tmp_path):
    words = ["--engine=ray", "--workers=1", "--on_bad=raise"]
    process = start(files, tmp_path / "out", *words)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "error: row 3, x.npy[3], cannot be used: it holds NaN or infinity for the input 'x'" in output, output[
        -3000:
    ]
    assert "Traceback" not in output
