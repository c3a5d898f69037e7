"""Workers meet before TensorFlow starts: all texts for all, whoever is missing is named, strangers are ignored."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import tfopt
from tests.processes import PATIENCE, end_of
from tfopt.workers.addresses import Workers
from tfopt.workers.meet import check_port, check_same, meet
from tfopt.workers.supervise import LOST_PEER, PREEMPTED, local_workers


def meet_all(workers, seconds=PATIENCE, text="text {}"):
    """What each of the workers gets, or what it raises; in threads of this process."""

    def one(each):
        try:
            return meet(each, text.format(each.index), seconds)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(one, workers))


def listens(port):
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def port_of(workers):
    return int(workers.address.rpartition(":")[2])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_get_all_texts_in_order_and_ports_are_free_again(count):
    team = local_workers(count)
    # Twice at the same ports, at once: nothing waits for old connections.
    for _ in range(2):
        assert meet_all(team) == [tuple(f"text {index}" for index in range(count))] * count
        for each in team:
            assert not listens(port_of(each))
            check_port(each)


def test_texts_are_any_unicode_and_long():
    text = "ä\n\0 {}" + "x" * 100_000
    assert meet_all(local_workers(2), text=text) == [(text.format(0), text.format(1))] * 2
    with pytest.raises(ValueError, match="below a megabyte, received 1100000 characters"):
        meet(local_workers(2)[0], "x" * 1_100_000, 1)


def test_they_come_in_any_order_at_any_time():
    team, rng = local_workers(4), random.Random(0)

    def late(each):
        time.sleep(rng.uniform(0, 1.5))
        return meet(each, str(each.index), PATIENCE)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(late, team)) == {("0", "1", "2", "3")}


def test_one_that_never_comes_is_named_in_time():
    team, started = local_workers(3), time.monotonic()
    results = meet_all(team[:2], seconds=4)
    assert time.monotonic() - started < 60
    for index, result in enumerate(results):
        assert isinstance(result, TimeoutError)
        assert f"{team[0].name(index)} waited 4 s for the others; these did not come: " in str(result)
        assert f"{team[0].name(2)}: " in str(result)
        # The one that came is not accused.
        assert team[0].name(1 - index) not in str(result)
    (alone,) = meet_all(team[:1], seconds=1)
    assert str(alone).count("worker 1 (") == str(alone).count("worker 2 (") == 1


def test_a_name_that_nobody_knows_is_the_reason():
    workers = Workers((*(each.address for each in local_workers(1)), "host.invalid:5000"), 0)
    with pytest.raises(TimeoutError, match=r"these did not come: worker 1 \(host.invalid:5000\): .*[Nn]ame"):
        meet(workers, "", 1)


@pytest.mark.slow
def test_one_that_is_heard_and_cannot_be_reached_is_told_apart():
    """Its address is that of another program: it calls, and does not answer."""
    chief = local_workers(1)[0].address
    with socket.create_server(("", 0)) as other:
        wrong = f"localhost:{other.getsockname()[1]}"
        hello = json.dumps({"index": 1, "addresses": [chief, wrong], "text": "", "token": "x"}).encode()

        def call():
            with socket.socket() as caller:
                while caller.connect_ex(("127.0.0.1", port_of(Workers((chief,), 0)))):
                    time.sleep(0.05)
                caller.sendall(b"tfopt-meet/1 " + hello + b"\n")
                # Until it leaves.
                while caller.recv(1000):
                    continue

        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(call)
            with pytest.raises(TimeoutError, match=rf"these called and cannot be reached: worker 1 \({wrong}\)"):
                meet(Workers((chief, wrong), 0), "", 4)
            calling.result()


STRANGE = [
    b"",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    os.urandom(5000) + b"\n",
    b"tfopt-meet/1 ready\n",
    b"tfopt-meet/1 {}\n",
    b"tfopt-meet/1 [1]\n",
    b'tfopt-meet/1 {"index": true, "addresses": [], "text": "", "token": ""}\n',
    b'tfopt-meet/1 {"index": 0, "addresses": "ab", "text": "", "token": ""}\n',
    b'tfopt-meet/1 {"index": 0, "addresses": ["a:1"], "text": 5, "token": ""}\n',
    b'tfopt-meet/1 {"index": 0, "addresses": ["a:1"], "text": ""}\n',
    b"tfopt-meet/1 " + b"[" * 200_000 + b"\n",
    b"tfopt-meet/1 " + b"x" * 3_000_000,
]


def test_strangers_are_ignored():
    """Callers that say anything, say nothing, or go at once, while the second worker is on its way."""
    team, over = local_workers(2), threading.Event()
    calls = []

    def disturb():
        while not over.is_set():
            for what in STRANGE:
                with socket.socket() as stranger:
                    if stranger.connect_ex(("127.0.0.1", port_of(team[0]))) == 0:
                        calls.append(what)
                        try:
                            stranger.sendall(what)
                            stranger.settimeout(0.02)
                            stranger.recv(100)
                        except OSError:
                            continue
            time.sleep(0.01)

    def second():
        while len(calls) < 2 * len(STRANGE):
            time.sleep(0.02)
        return meet(team[1], "second", PATIENCE)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(disturb)
        try:
            results = [pool.submit(meet, team[0], "first", PATIENCE), pool.submit(second)]
            assert [each.result() for each in results] == [("first", "second")] * 2
        finally:
            over.set()


def test_an_address_where_something_else_answers():
    with socket.create_server(("", 0)) as other:
        workers = Workers((local_workers(1)[0].address, f"localhost:{other.getsockname()[1]}"), 0)

        def answer():
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"220 mail\r\n")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            with pytest.raises(TimeoutError, match="these did not come: worker 1"):
                meet(workers, "", 1.5)


def test_a_port_in_use_is_told():
    (workers,) = local_workers(1)
    with socket.create_server(("", port_of(workers))):
        for function in (check_port, lambda each: meet(each, "", 1)):
            with pytest.raises(
                OSError, match=r"worker 0 \(.*\) cannot use its port \d+ \(another process listens there\)"
            ):
                function(workers)
    check_port(workers)


def test_two_with_one_index_are_refused():
    """Two hosts that were both told to be the first one: what answers at the second address is no second worker."""
    addresses = tuple(each.address for each in local_workers(2))
    first, wrong = Workers(addresses, 0), Workers(addresses, 0)
    # The wrong one listens where the second should.
    wrong = Swapped(wrong.addresses, 0)
    one, other = meet_all([first, wrong])
    for each in (one, other):
        assert isinstance(each, ValueError)
        assert "says that it is worker 0, as this one: give each its own --worker_index" in str(each)


class Swapped(Workers):
    """On another host, its port is at another address."""

    @property
    def address(self):
        return self.addresses[1]


def test_other_lists_of_workers_are_refused_on_both_sides():
    one = local_workers(3)[0]
    with ThreadPoolExecutor(2) as pool:
        lists = (one.addresses[:2], one.addresses)
        results = [
            pool.submit(meet, Workers(lists[0], 0), "", PATIENCE),
            pool.submit(meet, Workers(lists[1], 1), "", PATIENCE),
        ]
        for result, own, theirs in zip(results, lists, reversed(lists), strict=True):
            error = result.exception()
            assert isinstance(error, ValueError)
            assert f"has other workers ({', '.join(theirs)}) than this one ({', '.join(own)})" in str(error)


# Without the rest of tfopt, and so without TensorFlow: it starts at once.
SOURCE = """
import os, signal, sys, time, types
sys.modules["tfopt"] = types.ModuleType("tfopt")
sys.modules["tfopt"].__path__ = [sys.argv[4]]
from tfopt.workers import addresses, meet as meeting
workers, text = addresses.Workers(tuple(sys.argv[2].split(",")), int(sys.argv[1])), sys.argv[3]
"""
MEETS = """
print("here", flush=True)
print(meeting.meet(workers, text, 300), flush=True)
"""


def start(source, index, addresses, text):
    words = [sys.executable, "-c", source, index, addresses, text, *tfopt.__path__]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_one_that_is_killed_and_comes_again_is_met():
    """A process that has said hello and is killed with -9; the meeting goes on with its successor's text."""
    team = local_workers(3)
    addresses = ",".join(team[0].addresses)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, team[0], "first", PATIENCE)
        victim = start(SOURCE + MEETS, "1", addresses, "victim")
        try:
            assert victim.stdout.readline() == "here\n"
            while not listens(port_of(team[1])):
                assert victim.poll() is None
                time.sleep(0.05)
            time.sleep(0.5)
        finally:
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
        again = start(SOURCE + MEETS, "1", addresses, "again")
        expected = ("first", "again", "third")
        assert meet(team[2], "third", PATIENCE) == expected
        assert first.result() == expected
        assert again.communicate()[0] == f"here\n{expected}\n"


COMPUTE = """
import os, sys
import tensorflow as tf
from tfopt.workers.addresses import Workers
from tfopt.workers.meet import join
workers = Workers(tuple(sys.argv[2].split(",")), int(sys.argv[1]))
os.environ["TF_CONFIG"] = workers.config()
with join(workers, "", 300).watched():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    run = tf.function(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(1.0 + workers.index)))
    print(float(strategy.run(run)))
"""


@pytest.mark.slow
def test_tensorflow_uses_the_ports_at_once():
    """Its servers listen at the same ports while the connections of the meeting stay, and compute together."""
    team = local_workers(2)
    commands = [[sys.executable, "-c", COMPUTE, str(index), ",".join(team[0].addresses)] for index in range(2)]
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in commands]
    try:
        assert [end_of(each)[1] for each in processes] == ["3.0\n"] * 2
    finally:
        for each in processes:
            each.kill()


WATCHED = """
class Loss(Exception):
    pass
with meeting.join(workers, text, 300).watched((Loss,)):
    print("here", flush=True)
    exec(text)
"""


def watch(team, *works):
    """Exit code and standard error of workers that do each its work while they are watched."""
    sources = [(SOURCE + WATCHED, str(index), ",".join(team[0].addresses), text) for index, text in enumerate(works)]
    processes = [start(*each) for each in sources]
    try:
        return [(code, err) for code, _, err in map(end_of, processes)]
    finally:
        for each in processes:
            each.kill()


WAIT = "time.sleep(1000)"
# Until the workers before it have ended: then `watch` closes its input.
LATE = "sys.stdin.read()"


@pytest.mark.parametrize(
    ("end", "number"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGUSR2),
        (f"sys.exit({LOST_PEER})", signal.SIGUSR2),
        ("raise KeyboardInterrupt", signal.SIGUSR2),
        ("raise Loss", signal.SIGUSR2),
        ("raise ValueError", signal.SIGUSR1),
        ("sys.exit(2)", signal.SIGUSR1),
        ("sys.exit('no')", signal.SIGUSR1),
    ],
)
def test_the_end_of_one_ends_the_others(end, number):
    """At once, and with a reason; in another way where it would fail again."""
    team = local_workers(3)
    one, other, _ = watch(team, WAIT, WAIT, end)
    says = "failed; its own lines say why" if number == signal.SIGUSR1 else "was lost: all workers have to start again"
    assert (one[0], other[0]) == (-number, -number)
    assert f"{team[0].name(2)} {says}\n" in one[1] + other[1]


def test_a_lost_worker_is_seen_while_python_is_locked():
    """As TensorFlow locks it while its servers start."""
    locked = "import ctypes; ctypes.PyDLL(None).sleep(1000)"
    assert watch(local_workers(2), locked, "os._exit(3)")[0][0] == -signal.SIGUSR2


@pytest.mark.parametrize("end", ["0", f"sys.exit({PREEMPTED})"])
def test_who_says_goodbye_is_not_lost(end):
    """Whether its work took time or none, and the others end as they like; one after it is still watched."""
    code = PREEMPTED if str(PREEMPTED) in end else 0
    assert watch(local_workers(3), end, LATE, LATE + "; " + end) == [(code, ""), (0, ""), (code, "")]
    first, second, third = watch(local_workers(3), end, LATE + "; os._exit(3)", WAIT)
    assert (first[0], second[0], third[0]) == (code, 3, -signal.SIGUSR2)


def test_what_differs_is_told_with_the_worker():
    workers = Workers(("a:1", "b:2", "c:3"), 1)
    check_same(workers, [{"keras": "3", "--epochs": 2}] * 3)
    with pytest.raises(ValueError, match="do not run the same") as caught:
        check_same(workers, [{"keras": "3", "--epochs": 2}, {"keras": "3", "--epochs": 3}, {"keras": "4", "--lr": 0.1}])
    assert str(caught.value) == (
        "the workers do not run the same: --epochs is 2 on worker 0 (a:1) and 3 on worker 1 (b:2); "
        "keras is '3' on worker 0 (a:1) and '4' on worker 2 (c:3); "
        "--epochs is 2 on worker 0 (a:1) and 'missing' on worker 2 (c:3); "
        "--lr is 'missing' on worker 0 (a:1) and 0.1 on worker 2 (c:3). "
        "Start all of them with the same recipe, flags and versions"
    )
