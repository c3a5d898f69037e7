"""Workers that are killed at any moment: the run ends as if nothing had happened, and leaves no process behind."""

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
from tfopt.workdir import load_saved

pytestmark = pytest.mark.slow
STEPS = {"03-Train": 4, "04-Prune": 3}


def start(folder, digits_dir):
    (folder / "pids").mkdir(parents=True)
    flags = [f"--workdir={folder / 'run'}", f"--pids={folder / 'pids'}", f"--data_dir={digits_dir}", "--restarts=5"]
    command = [sys.executable, "-m", "tests.fault_recipe", "--local_workers=2", *flags]
    environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pids(folder, index=None):
    """The process numbers of the workers that were started so far, the last ones last."""
    files = sorted((folder / "pids").iterdir())
    found = [path.read_text() for path in files if index is None or path.name.endswith(f"-{index}")]
    # One may just be being written.
    return [int(text) for text in found if text]


def kill_one(folder, process, victim, seconds):
    """Kills a worker so many seconds after its start; whether there was one."""
    wait_until(lambda: pids(folder, victim))
    time.sleep(seconds)
    try:
        os.kill(pids(folder, victim)[-1], signal.SIGKILL)
    except ProcessLookupError:
        return False
    return process.poll() is None


def result(folder):
    """Histories and weights at the end."""
    state = json.loads((folder / "run" / "04-Prune" / "stage.json").read_text())
    histories = [stage["history"] for stage in state["report"]["stages"]]
    return histories, load_saved(folder / "run" / "04-Prune" / "model.keras").get_weights()


def gone(folder):
    return not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids(folder))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits_dir):
    folder = tmp_path_factory.mktemp("undisturbed")
    begin = time.monotonic()
    process = start(folder, digits_dir)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return (*result(folder), time.monotonic() - begin)


@pytest.mark.parametrize("number", range(10))
def test_killed_at_a_random_moment(number, undisturbed, digits_dir, tmp_path):
    histories, weights, seconds = undisturbed
    chance = random.Random(number)
    moment = chance.uniform(0, 0.8 * seconds)
    # Earlier, where the machine has become faster.
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        process = start(folder, digits_dir)
        alive = kill_one(folder, process, number % 2, moment / 2**attempt)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        if alive:
            break
    assert alive, "the run had ended before the worker was killed"
    found, ours = result(folder)
    assert [len(each.get("loss", ())) for each in found] == [0, 0, 4, 3]
    assert found == histories
    for one, other in zip(ours, weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert gone(folder)


def test_preempted_and_started_again(undisturbed, digits_dir, tmp_path):
    histories, weights, _ = undisturbed
    process = start(tmp_path, digits_dir)
    checkpoint = tmp_path / "run" / "03-Train.partial" / "checkpoint.npz"
    wait_until(checkpoint.exists)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, output
    assert gone(tmp_path)
    again = start(tmp_path / "again", digits_dir)
    again.kill()
    again.communicate()
    command = [each.replace(str(tmp_path / "again" / "run"), str(tmp_path / "run")) for each in again.args]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    found, ours = result(tmp_path)
    for mine, theirs in zip(found, histories, strict=True):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            assert mine[name] == pytest.approx(values, rel=1e-6), name
    for one, other in zip(ours, weights, strict=True):
        np.testing.assert_array_equal(one, other)
