"""The flags of recipes about processes, the command that starts one again, and a recipe on workers."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import tfopt
from tests.processes import end_of
from tfopt.workers.addresses import Workers
from tfopt.workers.start import Start
from tfopt.workers.supervise import local_workers

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"strategy": "mirored"}, "--strategy=mirored does not exist: did you mean mirrored?"),
        ({"restarts": -1}, "--restarts must be at least 0"),
        ({"local_workers": 0}, "--local_workers must be at least 1, received 0"),
        ({"local_workers": 2, "workers": "a:1,b:1"}, "give one of them"),
        ({"strategy": "mirrored", "workers": "a:1,b:1"}, "--workers goes with --strategy=multi_worker, received"),
        ({"strategy": "one_device", "local_workers": 2}, "--local_workers goes with --strategy=multi_worker"),
        ({"worker_index": 0}, "--worker_index=0 says which one of --workers this host is, and there are none"),
        ({"workers": "a:1,b:1", "worker_index": 2}, "from 0 to 1"),
        ({"workers": "a:1,a:1"}, "the workers 0 and 1 have the same address a:1"),
        ({"workers": "a:1,b"}, "must be host:port"),
    ],
)
def test_flags_that_contradict_each_other(flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Start(**flags)


def test_who_is_started_where():
    config = Workers(("a:1", "b:1"), 1)
    environ = {"TF_CONFIG": config.config()}
    child = {**environ, "TFOPT_SUPERVISED": "1"}
    assert Start().team({}) is None
    assert Start().own({}) is None
    assert [each.index for each in Start(local_workers=3).team({})()] == [0, 1, 2]
    assert Start(workers="a:1,b:1", worker_index=1).team({}) == [config]
    # The child has the same flags, and works itself.
    for flags in ({"local_workers": 2}, {"workers": "a:1,b:1"}):
        assert Start(**flags).team(child) is None
        assert Start(**flags).own(child) == config
    # Who sets TF_CONFIG looks after the process.
    assert Start().team(environ) is None
    assert Start().own(environ) == config
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "0"}
    assert Start().team(slurm) == [Workers(("n1:10000", "n2:10000"), 1)]
    for strategy in ("one_device", "mirrored", "tpu", "horovod"):
        assert Start(strategy).team(environ) is Start(strategy).own(environ) is None
    with pytest.raises(ValueError, match="--strategy=multi_worker needs workers: --local_workers=2"):
        Start("multi_worker").team({})
    with pytest.raises(ValueError, match="TF_CONFIG names others: unset it"):
        Start(local_workers=2).team(environ)
    with pytest.raises(ValueError, match="TF_CONFIG is not JSON"):
        Start().team({"TF_CONFIG": "{"})


COMMAND = f"""
import sys, types
sys.modules["tfopt"] = types.ModuleType("tfopt")
sys.modules["tfopt"].__path__ = {[*tfopt.__path__]}
from tfopt.workers.start import own_command
print(own_command(), own_command(["program", "--b"]))
"""


@pytest.mark.slow
def test_the_own_command_starts_the_same_again(tmp_path):
    (tmp_path / "tool.py").write_text(COMMAND)
    for words in (["-X", "faulthandler", "tool.py"], ["-Bm", "tool"]):
        done = subprocess.run([sys.executable, *words, "--a", "1"], cwd=tmp_path, capture_output=True, text=True)
        own = [sys.executable, *words, "--a", "1"], [sys.executable, *words, "--b"]
        assert done.stdout == f"{own[0]} {own[1]}\n", done.stderr
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True)
    assert "this program is in no file: write it to one" in done.stderr


RECIPE = '''"""Shows what a worker is told."""

import os
import time

import tfopt


def stages(epochs: int = 1, end: str = ""):
    if end == "error":
        if '"index": 0' in os.environ["TF_CONFIG"]:
            time.sleep(1000)
        raise ValueError("no such epochs")
    print("works", os.environ["TF_CONFIG"])
    raise SystemExit(0)


if __name__ == "__main__":
    tfopt.run_recipe(stages)
'''


def recipe(folder, *flags):
    (folder / "shows.py").write_text(RECIPE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "shows.py", *flags, f"--workdir={folder / 'run'}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_recipe_on_local_workers(tmp_path):
    code, out, err = end_of(recipe(tmp_path, "--local_workers=2", "--epochs=2"))
    assert code == 0, err
    found = dict(re.findall(r"\[worker (\d)\] works (.*)", out))
    assert {key: json.loads(text)["task"]["index"] for key, text in found.items()} == {"0": 0, "1": 1}


@pytest.mark.slow
def test_an_error_of_one_worker_ends_the_recipe(tmp_path):
    """The other one waits for it, deep in its work."""
    code, out, err = end_of(recipe(tmp_path, "--local_workers=2", "--end=error"))
    assert code == 1
    assert "works" not in out
    assert "[worker 1] error: no such epochs\n" in err
    assert re.search(r"\[supervisor\] worker \d \(localhost:\d+\) ended with exit code 1: an error that", err)
    assert "started again" not in err


@pytest.mark.slow
def test_hosts_with_other_flags_refuse_to_start(tmp_path):
    addresses = ",".join(local_workers(2)[0].addresses)
    both = [
        recipe(tmp_path, f"--workers={addresses}", f"--worker_index={index}", f"--epochs={index}") for index in range(2)
    ]
    for process in both:
        code, out, err = end_of(process)
        assert code == 1
        assert "works" not in out
        assert "error: the workers do not run the same: --epochs is 0 on worker 0" in err
        assert "and 1 on worker 1" in err
