"""Which part of a pipeline is said to limit it."""

import dataclasses
import time

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs, quick
from tfopt import augment
from tfopt.data import profile


def slow(seconds, *tensors):
    """The tensors, after a while."""

    def wait(first):
        time.sleep(seconds)
        return first

    first = tf.numpy_function(wait, [tensors[0]], tensors[0].dtype)
    first.set_shape(tensors[0].shape)
    return first, *tensors[1:]


class Slow(augment.Augmentation):
    """Leaves images as they are, after a while."""

    def apply(self, images, seeds):
        return slow(0.2, images)[0]


SLOW = {
    "source": lambda data: dataclasses.replace(
        data, splits={name: each.map(lambda *parts: slow(0.002, *parts)) for name, each in data.splits.items()}
    ),
    "read": lambda data: dataclasses.replace(data, read=lambda *parts: slow(0.02, *parts)),
    "augment": lambda data: dataclasses.replace(data, augment=(Slow(),)),
    "transform": lambda data: dataclasses.replace(data, transform=lambda *parts: slow(0.2, *parts)),
}


@pytest.mark.parametrize("part", quick(SLOW, "read", "augment"))
def test_the_slow_part_is_found(part):
    x, y = blobs(120)
    data = tfopt.from_arrays((np.clip(x / 9, 0, 1), y), batch_size=24)
    found = profile(SLOW[part](data), batches=4, rounds=1)
    assert found.limit == part
    assert f"{part} limits it: " in str(found)
    assert found.milliseconds[part] > 0.5 * sum(found.milliseconds.values())


def test_bad_arguments(data):
    with pytest.raises(ValueError, match="at least 1, received 0, 3"):
        profile(data, batches=0)
