"""Pipelines: threads, caches and snapshots change how batches are made, and not what is in them."""

import dataclasses
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import quick
from tfopt import augment
from tfopt.data import profile
from tfopt.data.pipeline import Pipeline

READS = []


def counted(number):
    """A picture that only its number tells, and a note that it was made."""
    READS.append(int(number))
    return np.random.default_rng(int(number)).integers(0, 256, (6, 6, 3)).astype("uint8")


def read(number, label):
    image = tf.numpy_function(counted, [number], tf.uint8, stateful=False)
    image.set_shape((6, 6, 3))
    return image, label


@pytest.fixture
def data():
    READS.clear()
    return tfopt.from_arrays(
        (np.arange(50), np.arange(50) % 2),
        batch_size=8,
        read=read,
        augment=(augment.Flip(), augment.PadCrop(1)),
        transform=lambda x, y: (tf.cast(x, tf.float32) / 255, y),
    )


def on(data, **options):
    return dataclasses.replace(data, pipeline=Pipeline(**options))


def bits(batches):
    return [tuple(part.tobytes() for part in batch) for batch in batches.as_numpy_iterator()]


def everything(data):
    """Bits of two epochs, and of what is evaluated."""
    return [bits(data.training_batches(0)), bits(data.training_batches(1)), bits(data.validation), bits(data.test)]


OPTIONS = {
    "threads": lambda folder: {"threads": 1},
    "more_threads": lambda folder: {"threads": 8},
    "prefetch": lambda folder: {"prefetch": 0},
    "memory": lambda folder: {"cache": "memory"},
    "files": lambda folder: {"cache": str(folder / "cache")},
    "snapshot": lambda folder: {"snapshot": str(folder / "snapshot")},
    "device": lambda folder: {"device": "CPU:1"},
}


@pytest.mark.parametrize("name", quick(OPTIONS, "more_threads", "files"))
def test_batches_are_the_same(name, data, tmp_path):
    options = OPTIONS[name](tmp_path)
    changed = on(data, **options)
    assert changed.element_spec == data.element_spec
    assert list(tmp_path.iterdir()) == []
    wanted = everything(data)
    assert everything(changed) == wanted
    assert everything(changed) == wanted
    assert changed.fingerprint() == data.fingerprint()
    assert eval(repr(changed.pipeline)) == changed.pipeline


@pytest.mark.parametrize("name", quick(["memory", "files", "snapshot"], "files"))
def test_what_is_kept_is_read_once(name, data, tmp_path):
    changed = on(data, **OPTIONS[name](tmp_path))
    everything(changed)
    READS.clear()
    everything(changed)
    assert READS == []
    again = on(data, **OPTIONS[name](tmp_path))
    everything(again)
    # Files outlive their `Data`; some examples are read to see that they are the same.
    assert sorted(READS) == list(range(50)) if name == "memory" else len(READS) <= 3 * 20


@pytest.mark.slow
def test_other_data_have_other_files(data, tmp_path):
    one = on(data, snapshot=tmp_path)
    before = everything(one)
    other = tfopt.from_arrays((np.arange(50) + 1000, np.arange(50) % 2), batch_size=8, read=read, seed=0)
    shifted = dataclasses.replace(other, augment=data.augment, transform=data.transform)
    assert everything(on(shifted, snapshot=tmp_path)) == everything(shifted) != before
    # The same rows of another file.
    inverted = dataclasses.replace(data, read=lambda number, label: (255 - read(number, label)[0], label))
    assert everything(on(inverted, snapshot=tmp_path)) == everything(inverted) != before
    assert everything(on(data, snapshot=tmp_path)) == before
    assert len([each for each in tmp_path.iterdir() if each.is_dir()]) == 3


def test_examples_of_any_size_and_words(tmp_path):
    """The same in a snapshot: what has no shape of its own until it is batched."""
    words = np.array(["a", "bc", "", "défg"] * 10)
    plain = tfopt.from_arrays(
        ({"text": words, "number": np.arange(40.0)}, np.arange(40) % 2),
        batch_size=8,
        read=lambda x, y: ({"length": tf.strings.length(x["text"]), **x}, y),
    )
    for options in ({"snapshot": tmp_path / "s"}, {"cache": tmp_path / "c"}):
        kept = on(plain, **options)
        for one, other in zip(kept.training_batches(3), plain.training_batches(3), strict=True):
            tf.nest.map_structure(np.testing.assert_array_equal, one, other)


KILLED = """
import os, signal, sys, numpy as np, tensorflow as tf, tfopt
from tfopt.data.pipeline import Pipeline
def make(number):
    if sys.argv[2] == "die" and number == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.float32(number) * 2
def read(number, label):
    doubled = tf.numpy_function(make, [number], tf.float32, stateful=False)
    doubled.set_shape(())
    return doubled, label
pipeline = Pipeline(**eval(sys.argv[1]))
data = tfopt.from_arrays((np.arange(200), np.arange(200)), read=read, pipeline=pipeline)
print(sum(float(x.numpy().sum()) for split in data.splits for x, _ in data.batches(split)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cache", "snapshot"])
def test_a_killed_run_leaves_nothing_that_breaks_the_next(kind, tmp_path):
    command = [sys.executable, "-c", KILLED, repr({kind: str(tmp_path)})]
    died = subprocess.run([*command, "die"], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL
    assert any(".tmp" in each.name for each in tmp_path.iterdir())
    assert float(subprocess.run([*command, "live"], capture_output=True, text=True, check=True).stdout) == 199 * 200
    assert not any(".tmp" in each.name for each in tmp_path.iterdir())


@pytest.mark.slow
def test_a_half_written_file_is_written_anew(data, tmp_path):
    """As in the test above, without a process to kill: what it leaves."""
    wanted = everything(data)
    for kind in ("cache", "snapshot"):
        whole = on(data, **{kind: tmp_path / kind})
        assert everything(whole) == wanted
        (place,) = (each for each in (tmp_path / kind).iterdir() if each.is_dir())
        leftover = place.with_name(f".{place.name}.999.tmp")
        place.rename(leftover)
        next(leftover.iterdir()).write_bytes(b"half")
        assert everything(on(data, **{kind: tmp_path / kind})) == wanted
        assert place.is_dir()
        assert not leftover.exists()


def test_out_of_order_each_example_keeps_its_augmentation(data):
    loose = on(data, deterministic=False)
    single = [dataclasses.replace(each, batch_size=1) for each in (loose, data)]
    assert sorted(bits(single[0].training_batches(2))) == sorted(bits(single[1].training_batches(2)))
    # What is evaluated keeps its order.
    assert bits(loose.validation) == bits(data.validation)
    assert loose.fingerprint() == data.fingerprint()


def test_batches_come_to_the_device(data):
    images, _ = next(iter(on(data, device="CPU:1").training_batches(0)))
    assert images.device.endswith("CPU:1")


def test_without_the_device_the_log_says_so(data, caplog):
    with caplog.at_level("WARNING", "absl"):
        batches = on(data, device="GPU:7").training_batches(0)
    assert "there is no device GPU:7 here" in caplog.text
    assert bits(batches) == bits(data.training_batches(0))


@pytest.mark.slow
def test_training_with_options(data, tmp_path):
    def trained(data, name):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
        return tfopt.run([tfopt.Train(2)], tfopt.Work(model=model, data=data, workdir=tmp_path / name)).model

    options = {"threads": 2, "snapshot": tmp_path / "snapshot", "device": "CPU:0", "prefetch": 1}
    one, other = trained(on(data, **options), "one"), trained(data, "other")
    for left, right in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("name", quick(["memory", "files", "snapshot"], "snapshot"))
def test_the_profile_sees_what_is_kept(name, data, tmp_path):
    changed = on(data, **OPTIONS[name](tmp_path), threads=2)
    found = profile(changed, batches=2, rounds=2)
    assert list(found.milliseconds) == [
        "source",
        *(["read"] if name == "snapshot" else []),
        "batch",
        "augment",
        "transform",
        "transfer",
    ]
    # Read once to be kept, and, of files, a few times to be recognized: never by a turn.
    assert len([each for each in READS if READS.count(each) > 2]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be a whole number of at least 1, received 0"),
        ({"prefetch": -2}, "prefetch must be a whole number of at least -1, received -2"),
        ({"cache": ""}, "received an empty name"),
        ({"cache": "memory", "snapshot": "s"}, "choose one"),
        ({"service": "grpc://localhost:1"}, "pass deterministic=False"),
        ({"service": "grpc://localhost:1", "deterministic": False, "cache": "memory"}, "use a snapshot"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(**options)
