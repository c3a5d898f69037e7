"""Datasets that shuffle by themselves: their splits must not mix."""

import numpy as np
import tensorflow as tf
from absl import logging

import tfopt
from tfopt.data.dataset import SPLITS


def test_a_dataset_that_shuffles_by_itself_is_kept_as_it_is_first_read(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: said.append(message % values))
    x = np.arange(60, dtype="float32")[:, None]
    shuffled = tf.data.Dataset.from_tensor_slices((x, np.arange(60) % 2)).shuffle(60).batch(8)
    data = tfopt.as_data(shuffled)
    assert "the train dataset gives other examples each time it is read" in said[0]

    def read():
        return {split: [int(each) for batch in data.batches(split) for each in np.ravel(batch[0])] for split in SPLITS}

    first = read()
    assert sorted(each for split in first.values() for each in split) == list(range(60))
    assert read() == first
