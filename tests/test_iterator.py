"""A training pipeline that goes on from a saved iterator gives what it would have given."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import quick
from tests.test_augment import OPERATIONS
from tfopt.data.pipeline import Pipeline

DONE = 2


def images(**options):
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 10, 3)).astype("uint8")
    return tfopt.from_arrays((x, np.arange(30)), batch_size=5, **options)


def one_size(x, y):
    """What cropped and resized images have in common with those of validation."""
    return x[:, :5, :7], y


def bits(batches):
    return [tuple(part.numpy().tobytes() for part in batch) for batch in batches]


def begun_and_saved(batches, folder):
    """The first batches, the rest, and a checkpoint in between."""
    iterator = iter(batches)
    first = bits(next(iterator) for _ in range(DONE))
    path = tf.train.Checkpoint(iterator=iterator).write(str(folder / "checkpoint"))
    return first, bits(iterator), path


def resumed(batches, path):
    iterator = iter(batches)
    tf.train.Checkpoint(iterator=iterator).read(path).assert_consumed()
    return bits(iterator)


# All draw from the same seeds: these have every kind of operation.


@pytest.mark.parametrize("name", quick(OPERATIONS, "pad_crop"))
def test_every_augmentation(name, tmp_path):
    sequential = images(augment=(OPERATIONS[name],), transform=one_size, pipeline=Pipeline(threads=1))
    parallel = dataclasses.replace(sequential, pipeline=Pipeline(threads=8))
    first, rest, path = begun_and_saved(sequential.training_batches(3), tmp_path)
    assert len(rest) == sequential.steps_per_epoch - DONE
    assert resumed(parallel.training_batches(3), path) == rest
    assert bits(parallel.training_batches(3)) == first + rest


SOURCES = {
    "arrays": lambda x, folder: tfopt.from_arrays((x, np.arange(50)), batch_size=8),
    "npy": lambda x, folder: tfopt.from_npy(folder / "x.npy", np.arange(50), batch_size=8),
    "memory": lambda x, folder: tfopt.from_npy(
        folder / "x.npy", np.arange(50), batch_size=8, pipeline=Pipeline(cache="memory")
    ),
    "files": lambda x, folder: tfopt.from_npy(
        folder / "x.npy", np.arange(50), batch_size=8, pipeline=Pipeline(cache=folder / "cache")
    ),
}


@pytest.mark.parametrize("shuffled", quick(["training_batches", "train"], "training_batches"))
@pytest.mark.parametrize("name", quick(SOURCES, "files"))
def test_every_source(name, shuffled, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, 8, 10, 3)).astype("uint8")
    np.save(tmp_path / "x.npy", x)
    data = dataclasses.replace(SOURCES[name](x, tmp_path), augment=(OPERATIONS["flip"], OPERATIONS["rand"]))

    def batches():
        return data.train if shuffled == "train" else data.training_batches(1)

    first, rest, path = begun_and_saved(batches(), tmp_path)
    assert len(first + rest) == data.steps_per_epoch
    assert resumed(batches(), path) == rest
