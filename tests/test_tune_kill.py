"""Searches in processes, killed at any moment: the same number of trials, none repeated, no process left behind."""

import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests.processes import PATIENCE, marked, wait_until
from tests.tune_recipe import stages
from tfopt import tune

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent


def start(folder, trials, jobs, pause=0.4):
    words = ["-m", "tests.tune_recipe", str(folder), str(trials), str(jobs), str(pause)]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "MARK": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trials_of(output):
    """The trials that a search printed at its end, without the lines of progress."""
    return [line for line in output.splitlines() if re.match(r"\d+ (complete|failed|pruned) ", line)]


def finish(folder, trials, jobs):
    process = start(folder, trials, jobs)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output[-3000:]
    return trials_of(output)


def ended(folder):
    """How many trials have ended, as the journal tells."""
    path = folder / "journal.log"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    # Optuna's SET_TRIAL_STATE_VALUES.
    return sum(json.loads(line)["op_code"] == 6 for line in lines)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_search_killed_twice_has_as_many_trials_and_none_twice(jobs, tmp_path):
    broken = tmp_path / "broken"
    for least in (2, 6):
        process = start(broken, 12, jobs)
        wait_until(lambda least=least: ended(broken) >= least)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # Those that it started end by themselves.
        wait_until(lambda: not marked(broken))
        assert ended(broken) < 12
    lines = finish(broken, 12, jobs)
    assert not marked(broken)
    assert [int(line.split()[0]) for line in lines] == list(range(12))
    assert all(" complete " in line for line in lines)
    assert len({line.partition("{")[2] for line in lines}) == 12
    done = (broken / "trials" / "done.txt").read_text().splitlines()
    # Finished stages are not done again.
    assert len(set(done)) == len(done)
    if jobs == 1:
        assert lines == finish(tmp_path / "whole", 12, 1)


def test_a_process_that_dies_is_a_failed_trial_and_the_search_goes_on(tmp_path):
    spaces = {"x": tune.Range(0.0, 1.0, 0.1), "fault_above": tune.Choice(0.55, 0.65), "fault": tune.Choice("die", "x")}
    found = tune.search(stages, spaces, ("accuracy", "bytes"), 10, workdir=tmp_path, jobs=2)
    assert len(found.trials) == 10
    for each in found.trials:
        dies = each.parameters["fault"] == "die" and each.parameters["x"] > each.parameters["fault_above"]
        assert each.state == ("failed" if dies else "complete")
        assert ("exit code -9" in each.reason) == dies
    assert {each.state for each in found.trials} == {"complete", "failed"}


def test_bad_trials_end_early_in_processes_too(tmp_path):
    found = tune.search(stages, {"x": tune.Range(0.0, 1.0)}, trials=20, workdir=tmp_path, jobs=2)
    states = [each.state for each in found.trials]
    assert len(states) == 20
    assert "pruned" in states
    assert "failed" not in states


def test_an_error_of_the_search_leaves_no_process(tmp_path):
    with pytest.raises(ValueError, match="no 'gzip_bytes'"):
        tune.search(stages, {"x": tune.Range(0.0, 1.0)}, ("gzip_bytes",), 6, workdir=tmp_path, jobs=2)
    assert multiprocessing.active_children() == []
