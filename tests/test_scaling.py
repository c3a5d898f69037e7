"""The scaling benchmark on tiny models: finite figures that fit together, and no process left, however it ends."""

import math
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests.processes import PATIENCE, end_of, wait_until

ROOT = pathlib.Path(__file__).parent.parent
TINY = ["--counts=1,2", "--rounds=1", "--steps=2", "--global_batch=8", "--width=4"]
# Starts of several processes, on a busy machine too.
pytestmark = pytest.mark.slow


def start(*arguments):
    command = [sys.executable, "-m", "recipes.benchmarks.scaling", *arguments]
    environ = {**os.environ, "COLUMNS": "200", "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A session of its own tells which processes there are.
    return subprocess.Popen(command, cwd=ROOT, env=environ, text=True, start_new_session=True, **pipes)


def is_anyone_left(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def rows(output, title):
    """The figures of a table, by its rows."""
    table = output.partition(title)[2].partition("└")[0]
    cells = [[cell.strip() for cell in line.strip("│ \n").split("│")] for line in table.splitlines() if "│" in line]
    return [
        [float(re.sub(r"[ %]", "", cell)) for cell in row if re.fullmatch(r"[-+]?[\d.]+ ?%?", cell)] for row in cells
    ]


def test_figures_are_finite_and_nobody_is_left():
    process = start(*TINY)
    code, output, errors = end_of(process, 2 * PATIENCE)
    assert code == 0, errors[-3000:]
    assert not is_anyone_left(process.pid)
    (one, step, faster, alone, share), (two, *pair) = rows(output, "Measured")
    assert (one, faster, alone, share) == (1, 1, 0, 0)
    assert two == 2
    assert all(0 < value < math.inf for value in (step, *pair))
    network = rows(output, "The network")
    assert [row[:2] for row in network] == [[2, size] for size in (2**10, 2**14, 2**18, 2**22)]
    for _, _, timed, modelled, error in network:
        assert 100 * (modelled / timed - 1) == pytest.approx(error, abs=0.6 + 1.5 / timed)
    modelled = rows(output, "The model of a step")
    assert [row[:2] for row in modelled] == [[1, step], [2, pair[0]]]
    assert modelled[0][2] == step
    assert modelled[1][3] == pytest.approx(100 * (modelled[1][2] / pair[0] - 1), abs=0.6 + 20 / pair[0])
    # All-reduces of the gradients, of BatchNormalization's statistics, of the loss.
    # As many as STRATEGIES.md says: two of each of nine normalizations, of the gradients one.
    assert int(re.search(r"has (\d+) all-reduces", output)[1]) == 21
    projected = rows(output, "Projection")
    assert [row[0] for row in projected] == [8, 8, 64, 64, 512, 512]
    assert all(len(row) == 4 and min(row) >= 0 for row in projected)
    # What is sent is small, so that latency decides, and hosts first are faster.
    assert all(ring[1] > by_hosts[1] for ring, by_hosts in zip(projected[::2], projected[1::2], strict=True))


def test_workers_end_when_the_benchmark_is_killed():
    process = start(*TINY)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 3)
    os.kill(process.pid, signal.SIGKILL)
    end_of(process)
    wait_until(lambda: not is_anyone_left(process.pid))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--counts=2,4", "--counts needs 1 and others in rising order, received 2,4"),
        ("--counts=1,4,2", "--counts needs 1 and others in rising order, received 1,4,2"),
        ("--global_batch=9", "--global_batch=9 must be a multiple of each of --counts=1,2"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flag, message):
    process = start(*TINY, flag)
    code, _, errors = end_of(process)
    assert code != 0
    assert message in errors
