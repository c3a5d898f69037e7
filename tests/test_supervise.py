"""Real processes, really killed: all start again, errors are told, and nothing stays behind."""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import tfopt
from tfopt.workers.addresses import Workers
from tfopt.workers.start import Start
from tfopt.workers.supervise import LOST_PEER, PREEMPTED, local_workers, supervise

ROOT = pathlib.Path(__file__).parent.parent
# What a worker can use: its index, how often it was started (a file in the folder that is the argument), a note.
WORKER = """
import json, os, pathlib, signal, subprocess, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
folder = pathlib.Path(sys.argv[1])
with open(folder / f"starts{index}", "a") as file:
    file.write(f"{os.getpid()} {os.environ['TF_CONFIG']}\\n")
starts = len((folder / f"starts{index}").read_text().splitlines())
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
"""


def command(source, folder):
    return [sys.executable, "-I", "-S", "-c", WORKER + textwrap.dedent(source), str(folder)]


def run(source, folder, workers=2, **options):
    """Exit code, standard output and standard error of a supervised run."""
    out, err = io.StringIO(), io.StringIO()
    options = {"grace": 5.0, "output": (out, err), **options}
    code = supervise(command(source, folder), lambda: local_workers(workers), **options)
    return code, out.getvalue(), err.getvalue()


def starts(folder, index=0):
    """Process id and TF_CONFIG of each start of a worker."""
    path = folder / f"starts{index}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), json.loads(text)) for pid, text in (line.split(" ", 1) for line in lines)]


def left_behind(folder):
    """The processes that have the folder in their command."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(process.name) != os.getpid():
            found.append(words.replace(b"\0", b" ").decode())
    return found


def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    assert left_behind(tmp_path) == []


def test_each_worker_has_its_own_config_and_lines(tmp_path):
    source = """
    print(f"I am {index}", os.environ["TFOPT_SUPERVISED"], os.getsid(0) != os.getppid() or "leader")
    print("ä and no end of line \\udcff", end="", file=sys.stderr)
    """
    code, out, err = run(source, tmp_path, 3)
    assert code == 0
    assert sorted(out.splitlines()) == [f"[worker {index}] I am {index} 1 leader" for index in range(3)]
    assert sorted(err.splitlines()) == [f"[worker {index}] ä and no end of line \\udcff" for index in range(3)]
    configs = [starts(tmp_path, index)[0][1] for index in range(3)]
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    for index, config in enumerate(configs):
        assert config == {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}


def test_lines_of_workers_do_not_mix(tmp_path):
    code, out, _ = run("for line in range(3000): print('x' * 50, line)", tmp_path, 3)
    assert code == 0
    assert len(out.splitlines()) == 9000
    for index in range(3):
        own = [line for line in out.splitlines() if line.startswith(f"[worker {index}] ")]
        assert own == [f"[worker {index}] {'x' * 50} {line}" for line in range(3000)]


def test_one_that_ends_well_does_not_end_the_others(tmp_path):
    code, out, err = run("time.sleep(0.7 * index); print('done')", tmp_path)
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == ["[worker 0] done", "[worker 1] done"]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_all_start_again_at_new_ports_when_any_is_killed(victim, tmp_path):
    """kill -9 from outside, while the others would wait for ever."""

    def kill():
        wait_until(lambda: all(starts(tmp_path, index) for index in range(3)))
        os.kill(starts(tmp_path, victim)[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    code, out, err = run("if starts == 1: time.sleep(60)\nprint('second')", tmp_path, 3)
    killer.join()
    assert code == 0
    assert sorted(out.splitlines()) == [f"[worker {index}] second" for index in range(3)]
    ports = [set(config["cluster"]["worker"]) for _, config in starts(tmp_path)]
    assert len(ports) == 2
    assert not ports[0] & ports[1]
    assert re.fullmatch(
        rf"\[supervisor\] worker {victim} \(localhost:\d+\) was ended by SIGKILL; all workers are started again in "
        r"0.5 s \(restart 1 of 3\)\n",
        err,
    )


def test_the_guard_of_a_worker_may_be_killed_too(tmp_path):
    def kill():
        wait_until(lambda: starts(tmp_path))
        os.kill(parent(starts(tmp_path)[0][0]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    code, _, err = run("if starts == 1: time.sleep(60)", tmp_path, 1)
    killer.join()
    assert code == 0
    assert "worker 0" in err
    assert "was ended by SIGKILL" in err


def test_restarts_are_bounded_and_the_error_names_the_worker(tmp_path):
    source = """
    if index == 1:
        print("line one\\nthe disk is full", file=sys.stderr)
        os._exit(3)
    time.sleep(60)
    """
    code, _, err = run(source, tmp_path, restarts=2)
    assert code == 1
    assert [len(starts(tmp_path, index)) for index in (0, 1)] == [3, 3]
    last = err[err.index("[supervisor] error: ") :]
    assert re.fullmatch(
        r"\[supervisor\] error: worker 1 \(localhost:\d+\) ended with exit code 3, and 2 restarts are used up "
        r"\(--restarts\); the end of what it wrote to its standard error:\n  line one\n  the disk is full\n",
        last,
    )
    assert err.count("in 0.5 s (restart 1 of 2)") == err.count("in 1 s (restart 2 of 2)") == 1


def test_without_restarts_the_first_death_is_the_error(tmp_path):
    code, _, err = run("os.kill(os.getpid(), signal.SIGSEGV)", tmp_path, 1, restarts=0)
    assert code == 1
    assert len(starts(tmp_path)) == 1
    assert "was ended by SIGSEGV, and 0 restarts are used up (--restarts); it wrote nothing" in err


@pytest.mark.parametrize("code", [1, 2])
@pytest.mark.parametrize("who", ["index == 0", "index == 1", "True"])
def test_errors_that_were_told_are_not_tried_again(code, who, tmp_path):
    """Those of the recipe and of its flags; the other workers, which may wait for this one, are stopped."""
    source = f"""
    if {who}:
        print("error: there is no such folder", file=sys.stderr)
        sys.exit({code})
    time.sleep(60)
    """
    got, _, err = run(source, tmp_path)
    assert got == code
    # Where both end so, the second may be stopped before it has begun.
    assert max(len(starts(tmp_path, index)) for index in (0, 1)) == 1
    assert f"ended with exit code {code}: an error that another start would not mend" in err


def test_who_lost_another_worker_is_not_the_cause(tmp_path):
    """It may be seen first, and an error that was told behind it is final."""
    source = f"""
    if index == 0:
        sys.exit({LOST_PEER})
    time.sleep(0.5)
    print("error: no", file=sys.stderr)
    sys.exit(1)
    """
    code, _, err = run(source, tmp_path)
    assert code == 1
    assert "worker 1" in err
    assert len(starts(tmp_path)) == 1


def test_a_lost_peer_on_another_host_is_a_restart(tmp_path):
    """As where each host supervises its own worker: the addresses stay."""
    workers, err = [Workers(("here:1", "there:2"), 0)], io.StringIO()
    source = f"sys.exit({LOST_PEER} if starts < 3 else 0)"
    assert supervise(command(source, tmp_path), workers, output=(io.StringIO(), err)) == 0
    assert [config for _, config in starts(tmp_path)] == [json.loads(workers[0].config())] * 3
    assert err.getvalue().count("worker 0 (here:1) lost another worker and ended") == 2
    assert "(restart 2 of 3)" in err.getvalue()


def test_preempted_workers_start_again_and_it_does_not_count(tmp_path):
    """All save and end by themselves, one after the other; none is killed over it."""
    source = f"""
    if starts < 3:
        time.sleep(index)
        (folder / f"saved{{index}}{{starts}}").touch()
        sys.exit({PREEMPTED})
    """
    code, _, err = run(source, tmp_path, restarts=0)
    assert code == 0
    assert len(list(tmp_path.glob("saved*"))) == 4
    assert err.count("saved its state after a SIGTERM and ended") == err.count("(not counted)") == 2


def test_sigterm_comes_before_sigkill(tmp_path):
    """One ends in its own way, one ignores it and is killed after the time of grace."""
    source = """
    def end(*_):
        (folder / "asked").touch()
        sys.exit(0)
    if index == 0:
        signal.signal(signal.SIGTERM, end)
    elif index == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"ready{index}").touch()
    if index == 2:
        wait_for("ready0")
        wait_for("ready1")
        os._exit(9)
    while True:
        time.sleep(0.01)
    """
    started = time.monotonic()
    code, _, err = run(source, tmp_path, 3, restarts=0, grace=1.0)
    assert code == 1
    assert time.monotonic() - started > 1
    assert (tmp_path / "asked").exists()
    assert "worker 2" in err
    assert "ended with exit code 9" in err


GRANDCHILDREN = """
# One in the same group, one in a session of its own, one whose parent has ended.
for words in (["sleep", "1000"], ["setsid", "sleep", "1000"], ["sh", "-c", "setsid sleep 1000 & sleep 1000"]):
    subprocess.Popen([*words, ], env={"MARK": str(folder)})
subprocess.run(["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 &"], env={"MARK": str(folder)})
"""


def marked(folder):
    """The processes that have the folder in their environment."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={folder}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_workers_started_ends_with_them(end, tmp_path):
    source = GRANDCHILDREN + 'wait_for("go")\n' + end

    def go():
        wait_until(lambda: len(marked(tmp_path)) >= 5)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=go)
    thread.start()
    run(source, tmp_path, 1, restarts=0)
    thread.join()
    assert marked(tmp_path) == []


SUPERVISOR = """
import json, sys, types
sys.modules["tfopt"] = types.ModuleType("tfopt")
sys.modules["tfopt"].__path__ = [sys.argv[1]]
from tfopt.workers.supervise import local_workers, supervise
sys.exit(supervise(json.loads(sys.argv[2]), lambda: local_workers(2), grace=float(sys.argv[3])))
"""


def supervisor(source, folder, grace=5.0):
    """A supervisor in a process of its own, when its workers run."""
    words = [sys.executable, "-c", SUPERVISOR, *tfopt.__path__, json.dumps(command(source, folder)), str(grace)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: all((folder / f"ready{index}").exists() for index in range(2)))
    return process


def end_of(process):
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


IGNORES = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"ready{index}").touch()
while True:
    time.sleep(0.01)
"""


def test_kill_9_of_the_supervisor_leaves_nothing(tmp_path):
    process = supervisor(GRANDCHILDREN + IGNORES, tmp_path)
    wait_until(lambda: len(marked(tmp_path)) >= 10)
    process.kill()
    end_of(process)
    wait_until(lambda: not left_behind(tmp_path) and not marked(tmp_path))


def test_a_worker_does_not_outlive_its_guard(tmp_path):
    """While the supervisor cannot do anything about it."""
    process = supervisor(IGNORES, tmp_path)
    process.send_signal(signal.SIGSTOP)
    pids = [starts(tmp_path, index)[0][0] for index in range(2)]
    for pid in pids:
        os.kill(parent(pid), signal.SIGKILL)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    process.kill()
    end_of(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_lets_the_workers_save(number, tmp_path):
    source = f"""
    def save(*_):
        (folder / f"saved{{index}}").touch()
        sys.exit({PREEMPTED})
    signal.signal(signal.SIGTERM, save)
    (folder / f"ready{{index}}").touch()
    time.sleep(60)
    """
    process = supervisor(source, tmp_path)
    process.send_signal(number)
    code, _, err = end_of(process)
    assert code == PREEMPTED
    assert "started again" not in err
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()


def test_workers_that_ignore_a_sigterm_are_killed_in_the_end(tmp_path):
    process = supervisor(IGNORES, tmp_path, grace=0.5)
    process.terminate()
    assert end_of(process)[0] == PREEMPTED


def test_a_second_signal_does_not_wait(tmp_path):
    process = supervisor(IGNORES, tmp_path, grace=1000)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end_of(process)[0] == PREEMPTED


def test_a_reader_that_goes_ends_the_run(tmp_path):
    """As `| head` does."""
    source = """
    (folder / f"ready{index}").touch()
    while True:
        print("line", flush=True)
        time.sleep(0.01)
    """
    process = supervisor(source, tmp_path)
    process.stdout.close()
    with process.stderr:
        assert process.wait(30) == PREEMPTED


def test_bad_arguments():
    for options, message in (
        ({"restarts": -1}, "restarts must be at least 0, received -1"),
        ({"grace": -1}, "grace must be at least 0 seconds, received -1"),
    ):
        with pytest.raises(ValueError, match=message):
            supervise(["true"], local_workers(1), **options)
    with pytest.raises(ValueError, match="there are no workers to start"):
        supervise(["true"], [])
    with pytest.raises(ValueError, match="local_workers must be a whole number from 1, received 0"):
        local_workers(0)


# The flags of recipes


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
            time.sleep(100)
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
