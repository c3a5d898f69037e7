"""Techniques one after the other, in every order: promises kept down to the integers, or refused before training."""

import itertools

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import residual_model, small_model
from tests.test_patterns import weights_in
from tfopt.blocks import PruneBlocks

FIT = tfopt.Fit(3e-3)
STAGES = {
    "Prune": tfopt.Prune(0.5, 1, fit=FIT),
    "PruneChannels": tfopt.PruneChannels(layers={"hidden": 0.5}, epochs=1, fit=FIT),
    "Cluster": tfopt.Cluster(8, 1, fit=FIT),
    "QuantizeAware": tfopt.QuantizeAware(1, fit=FIT),
}
REFUSED = {
    ("Cluster", "Prune"): "put Prune before Cluster",
    # Of the 8 that are left none may go: they are kept in eights.
    ("PruneChannels", "PruneChannels"): "nothing would be pruned",
    ("Prune", "PruneChannels"): "put PruneChannels before Prune",
    ("QuantizeAware", "PruneChannels"): "put PruneChannels before QuantizeAware",
    ("QuantizeAware", "Cluster"): "Put Cluster before QuantizeAware",
    ("QuantizeAware", "QuantizeAware"): "already",
}


def chain(names, data, folder):
    quantized = "QuantizeAware" in names
    export = tfopt.ExportTFLite() if quantized else tfopt.ExportTFLite("int8", max_drop=1.0)
    stages = [tfopt.Train(1, FIT), *(STAGES[name] for name in names), export]
    return tfopt.run(stages, tfopt.Work(small_model(), data, folder))


def check(names, work):
    """Reads the promises from the file itself."""
    assert all(promise.check(work.model) == [] for promise in work.invariants)
    stored = weights_in(work.report.artefacts["tflite"]["path"])
    hidden = 8 if "PruneChannels" in names else 12
    assert sorted(each.size for each in stored) == sorted([3 * hidden, 144, 128 * hidden])
    for tensor in stored:
        if "Prune" in names:
            assert (tensor == 0).mean() >= 0.5
        # Post-training scales by channel make more integers of as many clusters; the trained ones do not.
        if "Cluster" in names and "QuantizeAware" in names:
            assert len(np.unique(np.abs(tensor))) <= 8


# Every pair is run; those of one technique, and those that a longer chain holds, with the slow tests.
PAIRS = [
    pytest.param(names, marks=[pytest.mark.slow] * (names not in REFUSED), id="-".join(names))
    for names in itertools.product(STAGES, STAGES)
]


@pytest.mark.parametrize("names", PAIRS)
def test_pairs(names, data, tmp_path):
    if names in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[names]):
            chain(names, data, tmp_path)
        # Not even the first stage has trained.
        assert not list(tmp_path.glob("01-*"))
        return
    check(names, chain(names, data, tmp_path))


BLOCKS = {
    "Prune": "put PruneBlocks before the stages that promise it",
    "Cluster": "put PruneBlocks before the stages that promise it",
    "QuantizeAware": "put PruneBlocks before QuantizeAware",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_do_not_go_where_something_is_promised_of_them(name, data, tmp_path):
    with pytest.raises(ValueError, match=BLOCKS[name]):
        tfopt.run([STAGES[name], PruneBlocks(1, 1, fit=FIT)], tfopt.Work(residual_model(), data, tmp_path))
    assert not list(tmp_path.glob("01-*"))


def test_blocks_go_first_or_where_the_promise_is_of_other_layers(data, tmp_path):
    stages = [
        tfopt.Prune(0.5, 1, layers=["conv"], fit=FIT),
        PruneBlocks(["sum"], 1, fit=FIT),
        tfopt.Cluster(8, 1, fit=FIT),
        tfopt.QuantizeAware(1, fit=FIT),
        tfopt.ExportTFLite(),
    ]
    work = tfopt.run(stages, tfopt.Work(residual_model(), data, tmp_path))
    stored = {each.size: each for each in weights_in(work.report.artefacts["tflite"]["path"])}
    # The convolution before the block and the dense layer behind it; that of the block, of 576, is gone.
    assert sorted(stored) == [144, 384]
    assert (stored[144] == 0).mean() >= 0.5
    assert all(len(np.unique(np.abs(each))) <= 8 for each in stored.values())


def test_prune_cluster_and_quantize(data, tmp_path):
    names = ("Prune", "Cluster", "QuantizeAware")
    work = chain(names, data, tmp_path)
    check(names, work)
    assert [promise.kind for promise in work.invariants] == ["sparsity", "clustered"]
    for kernel in (each for each in work.model.weights if each.name == "kernel"):
        values = keras.ops.convert_to_numpy(kernel)
        assert (values == 0).mean() >= 0.5
        assert len(np.unique(values)) <= 8
