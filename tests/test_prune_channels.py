"""The stage PruneChannels, measured targets, and shares chosen by sensitivity."""

import keras
import pytest

import tfopt
from tests.conftest import blobs, quick, small_model
from tfopt.analyze.allocate import allocate
from tfopt.channels.measured import plan_pruning
from tfopt.channels.plan import plan_channels

FIT = tfopt.Fit(3e-3)


def widths(model):
    return {layer.name: layer.kernel.shape[-1] for layer in model.layers if hasattr(layer, "kernel")}


@pytest.mark.slow
def test_the_stage_narrows_trains_and_exports(trained, data, tmp_path):
    stages = [tfopt.PruneChannels(0.5, epochs=2, fit=FIT), tfopt.QuantizeAware(1, fit=FIT), tfopt.ExportTFLite()]
    work = tfopt.run(stages, tfopt.Work(trained, data, tmp_path))
    assert widths(keras.saving.load_model(tmp_path / "01-PruneChannels" / "model.keras")) == {
        "conv": 8,
        "hidden": 8,
        "out": 3,
    }
    entry = work.report.stages[0]
    assert entry.changed == ["hidden"]
    assert any("parameters" in each for each in entry.notes)
    assert work.report.artefacts["tflite"]["accuracy"] > 0.8


@pytest.mark.parametrize("iterations", quick([1, 3], 3))
def test_iterations_end_where_one_shot_does(iterations, data, tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(32, 3, activation="relu", name="first"),
            keras.layers.Conv2D(48, 3, activation="relu", name="second"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax", name="out"),
        ]
    )
    stage = tfopt.PruneChannels(layers={"first": 0.5, "second": 0.75}, epochs=1, iterations=iterations, fit=FIT)
    work = tfopt.run([stage], tfopt.Work(model, data, tmp_path))
    assert widths(work.model) == {"first": 16, "second": 16, "out": 3}
    assert len(work.report.stages[0].history["loss"]) == iterations


@pytest.mark.slow
def test_a_target_shared_out_by_sensitivity(trained, data, tmp_path):
    found = tfopt.sensitivity(trained, data, "ratio", levels=(0.25, 0.5, 0.75))
    ratios = allocate(trained, found, {"parameters": 0.5}, multiple=1)
    small = tfopt.prune_channels(trained, layers=ratios, multiple=1)
    assert small.count_params() <= 0.5 * trained.count_params()
    with pytest.raises(ValueError, match=r"cannot be reached with ratios up to 0.75: the nearest is"):
        allocate(trained, found, {"parameters": 0.01})
    stage = tfopt.PruneChannels(target={"parameters": 0.75}, layers="sensitivity", epochs=1, fit=FIT)
    work = tfopt.run([stage], tfopt.Work(trained, data, tmp_path))
    assert work.model.count_params() <= 0.75 * trained.count_params()


DROPS = {
    # Without a channel of the first layer the second has less to do, too: at the same drop it saves more.
    "same drops": ({"first": {0.25: 0.1, 0.5: 0.2}, "second": {0.25: 0.1, 0.5: 0.2}}, {"first": 0.5}),
    "dear": ({"first": {0.25: 0.3, 0.5: 0.6}, "second": {0.25: 0.01, 0.5: 0.02}}, {"second": 0.5}),
}


@pytest.mark.parametrize("case", DROPS)
def test_allocation_pays_the_least_for_what_is_saved(case):
    values, expected = DROPS[case]
    layers = [keras.layers.Conv2D(8, 3, padding="same", name=name) for name in ("first", "second", "out")]
    layers[1].filters, layers[2].filters = 24, 1
    model = keras.Sequential([keras.Input((8, 8, 4)), *layers])
    left = {layer: {ratio: 0.9 - drop for ratio, drop in row.items()} for layer, row in values.items()}
    found = tfopt.Sensitivity("ratio", "accuracy", 0.9, left)
    ratios = allocate(model, found, {"macs": 0.7}, multiple=1)
    assert ratios == expected
    plan = plan_channels(model, layers=ratios, multiple=1)
    assert plan.after.macs <= 0.7 * plan.before.macs


@pytest.mark.slow
def test_bytes_are_those_of_the_file(trained, tmp_path):
    plan = plan_pruning(trained, target={"bytes": 0.8}, multiple=1)
    small = tfopt.prune_channels(trained, target={"bytes": 0.8}, multiple=1)
    sizes = [tfopt.export_tflite(each, tmp_path / "m.tflite", "int8", blobs(8)[0]).bytes for each in (trained, small)]
    assert sizes[1] <= 0.8 * sizes[0]
    assert plan.after.parameters < plan.before.parameters


@pytest.mark.slow
def test_clusters_follow_the_channels_that_stay(data, tmp_path):
    stages = [tfopt.Cluster(6, 1, fit=FIT), tfopt.PruneChannels(layers={"conv": 0.5}, epochs=1, fit=FIT)]
    work = tfopt.run([tfopt.Train(1, FIT), *stages], tfopt.Work(wide(), data, tmp_path))
    (promise,) = work.invariants
    assert promise.check(work.model) == []
    assert widths(work.model)["conv"] == 8


def wide():
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="out")(x))


REFUSED = {
    "two ways": ([tfopt.PruneChannels(0.5, {"macs": 0.5})], "give one of ratio, target"),
    "a ratio of one": ([tfopt.PruneChannels(1.0)], "ratio must be"),
    "out of reach": ([tfopt.PruneChannels(target={"parameters": 0.001})], "cannot be reached: the nearest"),
    "the output layer": ([tfopt.PruneChannels(0.5, layers=["out"])], "the output layer would be pruned"),
    "after Prune": ([tfopt.Prune(0.5, 1), tfopt.PruneChannels(0.5)], "put PruneChannels before Prune"),
    "after QuantizeAware": (
        [tfopt.QuantizeAware(1), tfopt.PruneChannels(0.5)],
        "put PruneChannels before QuantizeAware",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_training(case, data, tmp_path):
    stages, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tfopt.run([tfopt.Train(1, FIT), *stages], tfopt.Work(small_model(), data, tmp_path))
    assert not list(tmp_path.glob("01-*"))


def test_refused_kinds():
    with pytest.raises(ValueError, match="iterations must be a whole number from 1"):
        tfopt.PruneChannels(0.5, iterations=0)
    for key in ("latency", "bytes"):
        with pytest.raises(ValueError, match=f"can be counted, received a target of {key}: give it in macs"):
            tfopt.PruneChannels(target={key: 0.5}, layers="sensitivity")
    with pytest.raises(ValueError, match="shares a target out: give one"):
        tfopt.PruneChannels(0.5, layers="sensitivity")
