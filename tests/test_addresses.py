"""Who the workers are: from an argument, from TF_CONFIG, from SLURM; what cannot be right is refused."""

import itertools
import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfopt.workers.addresses import Workers, find_workers, split_address
from tfopt.workers.slurm import expand_counts, expand_hosts, slurm_workers


def config(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_the_text_of_tf_config_gives_the_same_workers_again():
    workers = Workers(("a:1", "b:2", "[::1]:3"), 2)
    assert find_workers(environ={"TF_CONFIG": workers.config()}) == workers
    assert eval(repr(workers)) == workers
    assert (workers.chief, workers.address, workers.name(1)) == (False, "[::1]:3", "worker 1 (b:2)")
    assert Workers(("a:1", "b:2"), 0).chief
    assert split_address("[::1]:3") == ("::1", 3)


def test_tensorflow_reads_the_text_alike(monkeypatch):
    import tensorflow as tf

    monkeypatch.setenv("TF_CONFIG", Workers(("a:1", "b:2"), 1).config())
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    assert resolver.cluster_spec().as_dict() == {"worker": ["a:1", "b:2"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)


def test_the_argument_comes_before_tf_config_and_that_before_slurm():
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "1"}
    both = {**config({"worker": ["c:1", "d:1"]}), **slurm}
    assert find_workers("a:1, b:2", 1, both) == Workers(("a:1", "b:2"), 1)
    assert find_workers(["a:1", "b:2"], 0, both) == Workers(("a:1", "b:2"), 0)
    assert find_workers(environ=both) == Workers(("c:1", "d:1"), 0)
    assert find_workers(environ=slurm) == Workers(("n1:10064", "n2:10064"), 1)
    assert find_workers(environ={**slurm, "TF_CONFIG": " "}).addresses[0] == "n1:10064"
    assert find_workers(environ={}) is None
    assert find_workers("", None, {}) is None


def test_a_chief_is_the_first_worker():
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    assert find_workers(environ=config(cluster, "chief")) == Workers(("a:1", "b:1", "c:1"), 0)
    assert find_workers(environ=config(cluster, "worker", 1)) == Workers(("a:1", "b:1", "c:1"), 2)
    assert find_workers(environ=config({"chief": ["a:1"]}, "chief", "0")) == Workers(("a:1",), 0)


GOOD = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG is not JSON .* received '{', expected such as"),
        ("[]", "TF_CONFIG is no JSON object"),
        ("{}", 'TF_CONFIG has no "cluster"'),
        ('{"cluster": {}}', 'TF_CONFIG has no "cluster"'),
        (json.dumps({"cluster": GOOD}), 'TF_CONFIG has no "task" with "type" and "index"'),
        (json.dumps({"cluster": GOOD, "task": {"type": "worker"}}), 'a "task" of index None, and 2 of type'),
        (config({"worker": "a:1"})["TF_CONFIG"], 'must have a list of addresses as "worker"'),
        (config({"worker": ["a:1"], "ps": ["b:1"]})["TF_CONFIG"], "names ps; only workers .* no parameter servers"),
        (config({"chief": ["a:1", "b:1"]}, "chief")["TF_CONFIG"], "has 2 chiefs, not one"),
        (config(GOOD, "chief")["TF_CONFIG"], "a \"task\" of type 'chief', which the cluster does not have"),
        (config(GOOD, "evaluator")["TF_CONFIG"], "a \"task\" of type 'evaluator'"),
        (config(GOOD, "worker", 2)["TF_CONFIG"], 'a "task" of index 2, and 2 of type'),
        (config(GOOD, "worker", -1)["TF_CONFIG"], 'a "task" of index -1'),
        (config(GOOD, "worker", True)["TF_CONFIG"], 'a "task" of index True'),
        (config({"worker": ["a:1", "A:1"]})["TF_CONFIG"], "the workers 0 and 1 have the same address A:1"),
        (config({"worker": []})["TF_CONFIG"], 'a "task" of index 0, and 0 of type'),
        (config({"worker": ["a"]})["TF_CONFIG"], "must be host:port, such as gpu1:5000; received 'a'"),
    ],
)
def test_a_wrong_tf_config_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        find_workers(environ={"TF_CONFIG": text})


@pytest.mark.parametrize(
    "address", ["a", "a:", ":1", "a:0", "a:65536", "a:x", "a b:1", "grpc://a:1", "::1:5", "a:1:2", "", 5, "a:-1"]
)
def test_a_wrong_address_is_told(address):
    with pytest.raises(ValueError, match="must be host:port, such as gpu1:5000; received"):
        find_workers(["b:1", address], 0, {})


def test_the_own_index_is_found_by_the_host():
    assert find_workers("localhost:1,240.0.0.1:1", None, {}).index == 0
    assert find_workers("240.0.0.1:1,127.0.0.1:1", None, {}).index == 1
    assert find_workers(f"host.invalid:1,{socket.gethostname()}:1", None, {}).index == 1
    with pytest.raises(ValueError, match=r"several of the workers \(localhost:1, 127.0.0.1:2\) .*worker_index=0 or 2"):
        find_workers("localhost:1,240.0.0.1:1,127.0.0.1:2", None, {})
    with pytest.raises(
        ValueError, match=r"none of the workers \(240.0.0.1:1, 240.0.0.2:1\) is .*--worker_index=0 to 1"
    ):
        find_workers("240.0.0.1:1,240.0.0.2:1", None, {})


def test_an_index_that_cannot_be_is_told():
    with pytest.raises(ValueError, match=r"from 0 to 1, since there are 2 \(a:1, b:1\); received 2"):
        find_workers("a:1,b:1", 2, {})
    with pytest.raises(ValueError, match=r"worker_index \(1\) needs workers"):
        find_workers(None, 1, {})
    with pytest.raises(ValueError, match="there are no workers"):
        Workers((), 0)


# SLURM


def slurm(**changes):
    environ = {
        "SLURM_STEP_NODELIST": "gpu[01-03]",
        "SLURM_NTASKS": "5",
        "SLURM_PROCID": "3",
        "SLURM_TASKS_PER_NODE": "2(x2),1",
        "SLURM_JOB_ID": "313",
    }
    environ.update({f"SLURM_{name}": value for name, value in changes.items()})
    return {name: value for name, value in environ.items() if value is not None}


def test_tasks_of_a_step_are_workers():
    addresses = ("gpu01:10064", "gpu01:10065", "gpu02:10064", "gpu02:10065", "gpu03:10064")
    assert slurm_workers(slurm()) == (addresses, 3)
    assert slurm_workers(slurm(NODEID="1")) == (addresses, 3)
    # Without the counts, as SLURM shares tasks out.
    assert slurm_workers(slurm(TASKS_PER_NODE=None)) == (addresses, 3)
    older = slurm(STEP_NODELIST=None, STEP_ID="0", JOB_NODELIST="gpu[01-03]")
    assert slurm_workers(older) == (addresses, 3)
    # The step may be smaller than the job.
    smaller = slurm(STEP_NUM_TASKS="2", STEP_TASKS_PER_NODE="1(x2)", STEP_NODELIST="a,b", PROCID="0")
    assert slurm_workers(smaller) == (("a:10064", "b:10064"), 0)


def test_what_is_no_task_among_several_is_no_worker():
    # A batch script, and a shell of salloc.
    assert slurm_workers(slurm(STEP_NODELIST=None, JOB_NODELIST="gpu[01-03]", PROCID="0")) is None
    assert slurm_workers(slurm(PROCID=None)) is None
    assert slurm_workers(slurm(NTASKS="1", STEP_NODELIST="a", PROCID="0", TASKS_PER_NODE="1")) is None


def test_neighbouring_jobs_have_other_ports_below_those_of_the_system():
    ports = [
        {int(address.split(":")[1]) for address in slurm_workers(slurm(JOB_ID=str(job)))[0]} for job in range(900, 1000)
    ]
    assert all(not one & other for one, other in itertools.combinations(ports, 2))
    assert all(1024 < port < 32768 for each in ports for port in each)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NTASKS": "6"}, "SLURM says 6 tasks, '2\\(x2\\),1' for the hosts 'gpu\\[01-03\\]'"),
        ({"TASKS_PER_NODE": "2,3"}, "does not fit together: give the addresses with --workers"),
        ({"TASKS_PER_NODE": "two"}, "tasks per host must be such as 2\\(x3\\),1; received 'two'"),
        ({"PROCID": "5"}, "SLURM_PROCID is 5, and there are 5 tasks"),
        ({"PROCID": "x"}, "SLURM_PROCID must be a whole number, received 'x'"),
        ({"JOB_ID": None}, "SLURM_JOB_ID must be a whole number, received None"),
        ({"NODEID": "2"}, "task 3 on host 2, not on host 1: run srun with --distribution=block"),
        ({"STEP_NODELIST": "gpu[3-1]"}, "numbers or ranges in its brackets, not '3-1'"),
        ({"STEP_NODELIST": "gpu[1-2"}, "a list of hosts must be such as"),
    ],
)
def test_what_slurm_cannot_mean_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        slurm_workers(slurm(**changes))


@pytest.mark.parametrize("text", ["", ",a", "a,", "a,,b", "a[", "a]", "a[]", "a[x]", "a[1-]", "a[1,]", "a b", "a[[1]]"])
def test_wrong_lists_of_hosts_are_told(text):
    with pytest.raises(ValueError, match="a list of hosts must"):
        expand_hosts(text)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 5)), min_size=1, max_size=5), st.integers(1, 4))
def test_ranges_of_hosts_name_each_host_once(ranges, width):
    text = ",".join(f"{first:0{width}d}-{first + more}" for first, more in ranges)
    expected = [f"n{number:0{width}d}x" for first, more in ranges for number in range(first, first + more + 1)]
    assert expand_hosts(f"n[{text}]x,z") == [*expected, "z"]


def test_counts():
    assert expand_counts("3,1(x2),4") == [3, 1, 1, 4]
