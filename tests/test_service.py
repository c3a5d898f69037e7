"""A tf.data service of real processes: each element once an epoch, the same ones, whoever dies."""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt import augment
from tfopt.data.pipeline import Pipeline
from tfopt.data.service import local_service, worker_processes

SIZE = 150


def pictures(**options):
    x = np.random.default_rng(0).integers(0, 256, (SIZE, 8, 8, 3)).astype("uint8")
    return tfopt.from_arrays((x, np.arange(SIZE)), batch_size=8, **options)


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
    one, other = bits(train), bits(train)
    assert sorted(one) != sorted(other)
    assert labels(train) == wanted
    assert bits(remote.test) == bits(data.test)


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
    model.compile("sgd", loss)
    history = model.fit(data.train, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 2 * data.steps_per_epoch
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.slow
def test_the_death_of_a_worker_costs_nothing():
    """Killed in mid-epoch: the epoch ends, and nothing is missing or seen twice; so does the next one."""
    data = pictures(augment=(augment.Flip(), augment.PadCrop(2)))
    dispatcher = tf.data.experimental.service.DispatchServer()
    try:
        with worker_processes(dispatcher.target.split("://")[1], 2) as workers:
            remote, killed = served(data, dispatcher.target), []
            for number in range(3):
                received = []
                for step, batch in enumerate(remote.training_batches(number)):
                    received.append(tuple(part.numpy().tobytes() for part in batch))
                    if step == 3 and number < 2:
                        killed.append(workers[number].process.pid)
                        os.kill(killed[-1], signal.SIGKILL)
                assert sorted(received) == sorted(bits(data.training_batches(number)))
            assert not {each.process.pid for each in workers} & set(killed)
    finally:
        dispatcher.stop()


@pytest.mark.slow
def test_hosts_join_and_end_with_who_started_them():
    """Two commands, as on two hosts; a killed one leaves no worker behind."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tfopt.data.serve", "--workers=1"]
    first = subprocess.Popen([*command, f"--port={port}"], stdout=subprocess.PIPE, text=True)
    second, children = None, []
    try:
        address = re.fullmatch(r"serving at (\S+)\n", first.stdout.readline())[1]
        joining = [*command, f"--dispatcher=localhost:{port}"]
        second = subprocess.Popen(joining, stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == f"serving at {address}\n"
        data = pictures()
        assert sorted(bits(served(data, address).training_batches(0))) == sorted(bits(data.training_batches(0)))
        children = [
            int(child)
            for process in (first, second)
            for child in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
        assert len(children) == 2
    finally:
        for process in filter(None, (second, first)):
            process.kill()
            process.wait()
            process.stdout.close()
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{child}") for child in children)


def test_an_address_where_nothing_answers():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(
        ConnectionError, match=rf"no tf.data service answers at grpc://localhost:{port} .*start one with"
    ):
        served(pictures(), f"grpc://localhost:{port}")
    assert time.monotonic() - started < 10
    with pytest.raises(ValueError, match="must be such as 'grpc://localhost:5050', received 'somewhere'"):
        served(pictures(), "somewhere")


def test_bad_arguments():
    with pytest.raises(ValueError, match="workers must be at least 1, received 0"), local_service(workers=0):
        pass
