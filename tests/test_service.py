"""A tf.data service of real processes: each element once an epoch, the same ones, whoever dies."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.processes import free_ports, wait_until
from tfopt import augment
from tfopt.data.pipeline import Pipeline
from tfopt.data.service import _replace_the_dead, _Worker, local_service, worker_processes

SIZE = 150


def pictures(size=SIZE, batch_size=8, **options):
    x = np.random.default_rng(0).integers(0, 256, (size, 8, 8, 3)).astype("uint8")
    return tfopt.from_arrays((x, np.arange(size)), batch_size=batch_size, **options)


def many_pictures():
    """More batches than are made ahead: when somebody dies, there is something to do."""
    return pictures(1500, 2, augment=(augment.Flip(), augment.PadCrop(2)))


def served(data, address, **options):
    return dataclasses.replace(data, pipeline=Pipeline(deterministic=False, service=address, **options))


def bits(batches):
    return [tuple(part.numpy().tobytes() for part in batch) for batch in batches]


def labels(batches):
    return sorted(int(label) for _, y in batches for label in y)


@pytest.fixture(scope="module")
def address():
    with local_service(workers=2) as address:
        yield address


def test_each_element_once_an_epoch_as_without_a_service(address):
    """Real processes; the last batch is smaller, and augmentations do not depend on who makes them."""
    data = pictures(augment=(augment.Flip(), augment.PadCrop(2)), transform=lambda x, y: (tf.cast(x, tf.float32), y))
    remote, epoch = served(data, address), tf.Variable(0, dtype=tf.int64)
    stream = remote.training_batches(epoch)
    assert int(stream.cardinality()) == data.steps_per_epoch
    assert stream.element_spec == data.training_batches(0).element_spec
    for number in (0, 1):
        epoch.assign(number)
        # Batches come in another order, and are the same.
        assert sorted(bits(stream)) == sorted(bits(data.training_batches(number)))
    wanted = labels(data.training_batches(0))
    train = remote.train
    one, other = list(train), list(train)
    assert sorted(bits(one)) != sorted(bits(other))
    assert labels(one) == labels(other) == wanted
    assert bits(remote.test) == bits(data.test)


@pytest.mark.slow
def test_rows_of_files_through_a_snapshot(address, tmp_path):
    """Python code cannot be called by other processes: what it made is in a snapshot."""
    np.save(tmp_path / "x.npy", np.arange(SIZE * 4, dtype="float32").reshape(SIZE, 4))
    data = tfopt.from_npy(tmp_path / "x.npy", np.arange(SIZE), batch_size=8)
    with pytest.raises(ValueError, match=r"made by Python code .*: pass Pipeline\(snapshot=folder\)"):
        served(data, address)
    remote = served(data, address, snapshot=tmp_path / "snapshot")
    assert sorted(bits(remote.training_batches(5))) == sorted(bits(data.training_batches(5)))
    filtered = tfopt.as_data({"train": tf.data.Dataset.range(60).map(lambda x: (x[None], x)).batch(4)})
    with pytest.raises(ValueError, match=r"does not allow .*: pass Pipeline\(snapshot=folder\)"):
        served(filtered, address)
    remote = served(filtered, address, snapshot=tmp_path / "snapshot")
    assert sorted(bits(remote.training_batches(5))) == sorted(bits(filtered.training_batches(5)))


def test_a_model_trains(address):
    import keras

    data = served(pictures(transform=lambda x, y: (tf.cast(x, tf.float32) / 255, y % 3)), address)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    history = model.fit(data.train, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 2 * data.steps_per_epoch
    assert np.isfinite(history.history["loss"]).all()


def received(remote, epoch, in_mid_epoch):
    """Bits of an epoch, in which something happens."""
    batches = []
    for step, batch in enumerate(remote.training_batches(epoch)):
        batches.append(tuple(part.numpy().tobytes() for part in batch))
        if step == 50:
            in_mid_epoch()
    return sorted(batches)


@pytest.mark.slow
def test_the_death_of_a_worker_costs_nothing():
    """Killed in mid-epoch: the epoch ends, and nothing is missing or seen twice; so does the next one."""
    data = many_pictures()
    dispatcher = tf.data.experimental.service.DispatchServer()
    try:
        with worker_processes(dispatcher.target.split("://")[1], 2) as workers:
            remote, begun = served(data, dispatcher.target), [each.process.pid for each in workers]
            for epoch in range(2):
                batches = received(remote, epoch, lambda: os.kill(begun[epoch], signal.SIGKILL))  # noqa: B023
                assert batches == sorted(bits(data.training_batches(epoch)))
            assert not {each.process.pid for each in workers} & set(begun)
    finally:
        dispatcher.stop()


class Dying(_Worker):
    """A process that ends as it starts."""

    def __init__(self):
        self.port, self.command, self.starts = 1, [sys.executable, "-c", "import sys; sys.exit('no memory')"], 0
        self.start()

    def start(self):
        self.starts += 1
        super().start()


def test_a_worker_that_dies_as_it_starts_is_started_less_often(caplog):
    worker, over = Dying(), threading.Event()
    guard = threading.Thread(target=_replace_the_dead, args=([worker], over))
    guard.start()
    try:
        wait_until(lambda: worker.starts == 4)
        # At once three times; the next would be eight seconds after the third.
        time.sleep(1.5)
        assert worker.starts == 4
    finally:
        over.set()
        guard.join()
        worker.end()
    assert caplog.text.count("no memory") == 3


class Host:
    """`python -m tfopt.data.serve` with one worker, which can be killed and started again."""

    def __init__(self, *arguments):
        self.command = [sys.executable, "-m", "tfopt.data.serve", "--workers=1", *arguments]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.address = re.fullmatch(r"serving at (\S+)\n", self.process.stdout.readline())[1]
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (self.worker,) = map(int, children.split())

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        wait_until(lambda: not os.path.exists(f"/proc/{self.worker}"))

    def restart(self):
        self.kill()
        self.start()


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_a_host_is_killed_and_started_again(place, tmp_path):
    """Two commands, as on two hosts; one is killed in mid-epoch, the first with the dispatcher, the second without."""
    port, *own = free_ports(3)
    hosts = [Host(f"--port={port}", f"--worker_port={own[0]}", f"--folder={tmp_path}")]
    try:
        hosts.append(Host(f"--dispatcher=localhost:{port}", f"--worker_port={own[1]}"))
        data, address = many_pictures(), f"grpc://localhost:{port}"
        assert [each.address for each in hosts] == [address, address]
        for epoch, happens in enumerate((hosts[place].restart, list)):
            batches = received(served(data, address), epoch, happens)
            assert batches == sorted(bits(data.training_batches(epoch)))
    finally:
        for each in reversed(hosts):
            each.kill()


def test_an_address_where_nothing_answers():
    (port,), started = free_ports(1), time.monotonic()
    with pytest.raises(
        ConnectionError, match=rf"no tf.data service answers at grpc://localhost:{port} .*start one with"
    ):
        served(pictures(), f"grpc://localhost:{port}")
    assert time.monotonic() - started < 60
    with pytest.raises(ValueError, match="must be such as 'grpc://localhost:5050', received 'somewhere'"):
        served(pictures(), "somewhere")


def test_bad_arguments():
    with pytest.raises(ValueError, match="workers must be at least 1, received 0"), local_service(workers=0):
        pass
