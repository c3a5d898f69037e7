"""Real processes, really killed: all start again, errors are told, and nothing stays behind."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import tfopt
from tests.processes import PATIENCE, end_of, left_behind, marked, parent, wait_until
from tfopt.workers.addresses import Workers, split_address
from tfopt.workers.supervise import LOST_PEER, PREEMPTED, local_workers, supervise

# What a worker can use: its index, how often it was started (a file in the folder that is the argument), a note.
WORKER = """
import json, os, pathlib, signal, subprocess, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
folder = pathlib.Path(sys.argv[1])
with open(folder / f"starts{index}", "a") as file:
    file.write(f"{os.getpid()} {os.environ['TF_CONFIG']}\\n")
def starts_of(index):
    path = folder / f"starts{index}"
    return len(path.read_text().splitlines()) if path.exists() else 0
starts = starts_of(index)
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
    with contextlib.ExitStack() as held:

        def team():
            made = local_workers(workers)
            for each in made:
                # A later start shall not be given the same port by chance; where another program has it, it is not.
                with contextlib.suppress(OSError):
                    held.enter_context(socket.create_server(("", split_address(each.address)[1])))
            return made

        code = supervise(command(source, folder), team, **options)
    return code, out.getvalue(), err.getvalue()


def starts(folder, index=0):
    """Process id and TF_CONFIG of each start of a worker."""
    path = folder / f"starts{index}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), json.loads(text)) for pid, text in (line.split(" ", 1) for line in lines)]


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
    code, out, err = run("if starts == 1: time.sleep(1000)\nprint('second')", tmp_path, 3)
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
    code, _, err = run("if starts == 1: time.sleep(1000)", tmp_path, 1)
    killer.join()
    assert code == 0
    assert "worker 0" in err
    assert "was ended by SIGKILL" in err


def test_restarts_are_bounded_and_the_error_names_the_worker(tmp_path):
    source = """
    if index == 1:
        # Not before the other one has begun, which it would end.
        while starts_of(0) < starts:
            time.sleep(0.01)
        print("line one\\nthe disk is full", file=sys.stderr)
        os._exit(3)
    time.sleep(1000)
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
    time.sleep(1000)
    """
    got, _, err = run(source, tmp_path)
    assert got == code
    # Where both end so, the second may be stopped before it has begun.
    assert max(len(starts(tmp_path, index)) for index in (0, 1)) == 1
    assert f"ended with exit code {code}: an error that another start would not mend" in err


def test_who_lost_another_worker_is_not_the_cause(tmp_path, monkeypatch):
    """It may be seen first, and an error that was told behind it is final."""
    monkeypatch.setattr("tfopt.workers.supervise._SECONDS_TO_SETTLE", float(PATIENCE))
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
        time.sleep(0.5 * index)
        (folder / f"saved{{index}}{{starts}}").touch()
        sys.exit({PREEMPTED})
    """
    code, _, err = run(source, tmp_path, restarts=0, grace=PATIENCE)
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
    code, _, err = run(source, tmp_path, 3, restarts=0, grace=3.0)
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
    time.sleep(1000)
    """
    process = supervisor(source, tmp_path, grace=PATIENCE)
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
    source = """
    signal.signal(signal.SIGTERM, lambda *_: (folder / f"asked{index}").touch())
    (folder / f"ready{index}").touch()
    while True:
        time.sleep(0.01)
    """
    process = supervisor(source, tmp_path, grace=1000)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: all((tmp_path / f"asked{index}").exists() for index in range(2)))
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
        assert process.wait(PATIENCE) == PREEMPTED


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
