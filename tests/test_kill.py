"""Runs that are killed at any moment and started again end with the same files as one that was left alone."""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.processes import PATIENCE, wait_until

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["--epochs=2", "--prune_epochs=3", "--filters=8", "--batch_size=64"]


def start(workdir, data_dir):
    command = [sys.executable, "-m", "recipes.digits_int8", f"--workdir={workdir}", f"--data_dir={data_dir}", *SMALL]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(workdir, data_dir):
    process = start(workdir, data_dir)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output[-3000:]
    return output


def final_file(workdir):
    return hashlib.sha256((workdir / "05-ExportTFLite" / "model.tflite").read_bytes()).hexdigest()


def kill_at(workdir, data_dir, seconds):
    """Starts the run, kills it with all its children after some seconds; whether it was still running."""
    process = start(workdir, data_dir)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits_dir):
    """The final file of a run that was left alone, and how long it took."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    started = time.monotonic()
    finish(workdir, digits_dir)
    return final_file(workdir), time.monotonic() - started


def check_kills(moments, tmp_path, digits_dir, expected):
    for index, moment in enumerate(moments):
        # Earlier, where the machine has become faster.
        for attempt in range(4):
            workdir = tmp_path / f"{index}-{attempt}"
            killed = kill_at(workdir, digits_dir, moment / 2**attempt)
            if killed:
                break
        assert killed, f"it had ended before {moment:.1f} s"
        finish(workdir, digits_dir)
        assert final_file(workdir) == expected, f"killed after {moment:.1f} s"
        left = [path.name for path in workdir.rglob("*") if ".tmp" in path.name or path.name.endswith(".partial")]
        assert left == []


@pytest.mark.slow
def test_a_few_kills_change_nothing(tmp_path, digits_dir, undisturbed):
    expected, seconds = undisturbed
    # Early enough that a run on a machine that has become quieter has not ended yet.
    check_kills([0.35 * seconds, 0.6 * seconds], tmp_path, digits_dir, expected)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path, digits_dir, undisturbed):
    expected, seconds = undisturbed
    rng = random.Random(0)
    check_kills([rng.uniform(0.1, 0.9) * seconds for _ in range(10)], tmp_path, digits_dir, expected)


@pytest.mark.slow
def test_a_training_goes_on_from_its_last_finished_epoch(tmp_path, digits_dir, undisturbed):
    """Waits for the checkpoint of the first pruning epoch before it kills."""
    expected, _ = undisturbed
    # Anew, where the stage has just ended.
    for attempt in range(4):
        workdir = tmp_path / str(attempt)
        process = start(workdir, digits_dir)
        checkpoint = workdir / "04-Prune.partial" / "checkpoint.npz"
        wait_until(lambda: checkpoint.exists() or process.poll() is not None)  # noqa: B023
        assert process.poll() is None, process.communicate()[0]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if checkpoint.exists():
            break
    with np.load(checkpoint) as saved:
        done = json.loads(saved["meta.json"].tobytes())["epochs_done"]
    assert done in (1, 2, 3)
    finish(workdir, digits_dir)
    assert final_file(workdir) == expected
    history = json.loads((workdir / "report.json").read_text())["stages"][3]["history"]
    assert len(history["loss"]) == 3
