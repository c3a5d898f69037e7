"""Training through Horovod: refused clearly where it is not installed, equal to one device where it is."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.horovod_cases import local, pruned, words
from tests.replica_cases import trained
from tests.test_replicas import assert_equal
from tfopt.train.strategies import strategy
from tfopt.workers.start import Start

# (policy, XLA, steps per execution): each value of each of them; what differs from the strategy multi_worker is the
# messages alone.
CASES = [("float32", False, 1), ("float32", True, 4), ("mixed_bfloat16", False, 4), ("mixed_float16", False, 1)]
IS_THERE = importlib.util.find_spec("horovod") is not None
needs_horovod = pytest.mark.skipif(not IS_THERE, reason="Horovod is not installed: see tfopt/train/STRATEGIES.md")


@pytest.mark.skipif(IS_THERE, reason="Horovod is installed")
def test_without_horovod_the_error_says_what_to_do():
    with pytest.raises(ModuleNotFoundError, match=r"STRATEGIES.md says how; multi_worker does the same without it"):
        strategy("horovod")


@pytest.mark.skipif(IS_THERE, reason="Horovod is installed")
def test_auto_does_not_train_alone_under_horovodrun(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(ModuleNotFoundError, match="the strategy horovod needs Horovod"):
        strategy("auto")


def test_processes_that_come_and_go_are_refused(monkeypatch):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    with pytest.raises(ValueError, match="leave --min-np and --max-np of horovodrun out"):
        strategy("horovod")


def test_replicas_are_not_for_horovod():
    with pytest.raises(ValueError, match="replicas=2 goes with the strategy mirrored, received 'horovod'"):
        strategy("horovod", replicas=2)


@pytest.mark.parametrize("flags", [{"workers": "a:1,b:2"}, {"local_workers": 2}])
def test_flags_of_workers_are_not_for_horovod(flags):
    with pytest.raises(ValueError, match="goes with --strategy=multi_worker, received --strategy=horovod"):
        Start(strategy="horovod", **flags)


def horovodrun(*command, seconds=500, **environ):
    """Ends with the exit code and the output of two processes."""
    return subprocess.run(
        [sys.executable, "-m", "horovod.runner.launch", "-np", "2", sys.executable, "-m", *command],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environ},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes came to."""
    folder = tmp_path_factory.mktemp("horovod")
    todo = {"cases": CASES, "micro_batches": [1, 3], "workdir": str(folder / "run")}
    (folder / "todo").write_text(json.dumps(todo))
    done = horovodrun("tests.horovod_cases", str(folder / "todo"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((folder / f"todo.{rank}").read_text()) for rank in (0, 1)]


def assert_close(found, alone, tolerance):
    assert found.keys() == alone.keys()
    for name, values in alone.items():
        assert found[name] == pytest.approx(values, rel=tolerance, abs=tolerance), name


@needs_horovod
@pytest.mark.slow
@pytest.mark.parametrize(("number", "case"), enumerate(CASES))
def test_two_processes_train_as_one_device(number, case, found):
    alone = trained(*case, None)
    for process in found:
        assert_equal(process["cases"][number], alone, case[0])


@needs_horovod
@pytest.mark.slow
def test_sparse_gradients_and_micro_batches_in_unequal_shares(found):
    alone = words(1, None)
    for process in found:
        for each in process["words"]:
            assert_close(each, alone, 1e-5)
        assert_close(process["equal"][0], words(1, None, drop_remainder=True), 1e-5)


@needs_horovod
@pytest.mark.slow
def test_a_step_is_that_of_horovods_own_tape(found):
    for process in found:
        by_hand, ours = process["tape"]
        assert ours == pytest.approx(by_hand, rel=1e-5, abs=1e-6)


@needs_horovod
@pytest.mark.slow
def test_local_sgd_is_that_of_two_replicas(found, mirrored):
    assert found[0]["local"] == found[1]["local"]
    assert_close(found[0]["local"][0], local(mirrored), 1e-5)


@needs_horovod
@pytest.mark.slow
def test_stages_train_as_on_one_device(found, tmp_path):
    alone = pruned(str(tmp_path), "one_device")
    assert found[0]["pruned"] == found[1]["pruned"]
    assert found[0]["pruned"][0]["weights"].count(0.0) == alone["weights"].count(0.0) > 500
    assert_close(found[0]["pruned"][0], alone, 1e-3)
