"""`LoadData` loads once for a chain's validation and its run, and never gives one set for another."""

import numpy as np
import pytest

import tfopt


def work(folder, seed=0):
    return tfopt.Work(None, None, folder, seed=seed)


def test_the_run_reads_what_the_validation_read(tmp_path):
    calls = []

    def source(seed):
        calls.append(seed)
        return tfopt.from_arrays((np.zeros((40, 2)), np.arange(40) % 2), seed=seed)

    stage = tfopt.LoadData(source)
    found = stage.validate(work(tmp_path)).data
    assert stage(work(tmp_path)).data is found
    assert calls == [0]
    assert stage.validate(work(tmp_path, seed=1)).data is not found
    assert calls == [0, 1]


def test_long_arrays_are_not_told_apart_by_their_repr(tmp_path):
    labels = np.arange(2000) % 2
    stages = []
    for value in (1.0, 2.0):
        x = np.zeros((2000, 2), "float32")
        x[1000] = value
        stages.append(tfopt.LoadData(tfopt.from_arrays, {"train": (x, labels)}))
    assert repr(stages[0]) == repr(stages[1])
    loaded = [stage.validate(work(tmp_path)).data for stage in stages]
    assert [max(np.max(x) for split in data.sizes for x, _ in data.examples(split)) for data in loaded] == [1.0, 2.0]


def test_a_source_must_give_data(tmp_path):
    with pytest.raises(TypeError, match=r"the source must return tfopt.Data, it returned dict"):
        tfopt.LoadData(dict).validate(work(tmp_path))
