"""Sensitivity: what each layer alone costs, against what was computed by hand."""

import keras
import numpy as np
import pytest

import tfopt
from tfopt.evaluation import evaluate
from tfopt.prune.magnitude import magnitude_mask
from tfopt.train.statistics import recalibrate


def test_sparsity_is_that_of_one_kernel_at_a_time(trained, data):
    before = trained.get_weights()
    found = tfopt.sensitivity(trained, data, levels=(0.9, 0.5))
    assert list(found.values) == ["conv", "hidden", "out"]
    assert all(list(row) == [0.5, 0.9] for row in found.values.values())
    for one, other in zip(before, trained.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert found.baseline == pytest.approx(evaluate(trained, data, "validation")["accuracy"])
    pruned = keras.models.clone_model(trained)
    pruned.set_weights(before)
    kernel = pruned.get_layer("conv").kernel
    kernel.assign(kernel * magnitude_mask(kernel, 0.9))
    assert found.values["conv"][0.9] == pytest.approx(evaluate(pruned, data, "validation")["accuracy"])


def test_all_kernels_of_a_layer_change_together():
    x = np.random.default_rng(0).normal(size=(120, 6, 3)).astype("float32")
    data = tfopt.as_data((x, (x[:, :, 0].sum(1) > 0).astype(int)))
    model = keras.Sequential([keras.Input((6, 3)), keras.layers.GRU(8, name="gru"), keras.layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    found = tfopt.sensitivity(model, data, levels=[0.9], layers=["gru"])
    assert found.metric == "loss"
    for kernel in (model.layers[0].cell.kernel, model.layers[0].cell.recurrent_kernel):
        kernel.assign(kernel * magnitude_mask(kernel, 0.9))
    (metric,) = [metric for row in found.values.values() for metric in row.values()]
    assert metric == pytest.approx(evaluate(model, data, "validation")["loss"], rel=1e-6)


def test_ratio_removes_channels(trained, data):
    found = tfopt.sensitivity(trained, data, "ratio", levels=(0.0, 0.75))
    assert set(found.values) == {"conv", "hidden"}
    for layer, row in found.values.items():
        small = tfopt.prune_channels(trained, layers={layer: 0.75}, multiple=1)
        recalibrate(small, data)
        assert row[0.75] == pytest.approx(evaluate(small, data, "validation")["accuracy"])


def test_ratio_measures_statistics_of_what_is_left(data):
    """The second layer's inputs become far smaller without the first channels: statistics of before would hide it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(8, 3, activation="relu", name="first"),
            keras.layers.Conv2D(8, 3, use_bias=False, name="second"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(data.training_batches(), epochs=4, shuffle=False, verbose=0)
    before = model.get_weights()
    found = tfopt.sensitivity(model, data, "ratio", levels=(0.75,), layers=["first"])
    small = tfopt.prune_channels(model, layers={"first": 0.75}, multiple=1)
    stale = evaluate(small, data, "validation")["loss"]
    recalibrate(small, data)
    assert found.values["first"][0.75] == pytest.approx(evaluate(small, data, "validation")["loss"], rel=1e-4)
    assert found.values["first"][0.75] < 0.95 * stale
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_bits_round_weights(trained, data):
    found = tfopt.sensitivity(trained, data, "bits", levels=(8, 2), layers=["conv", "hidden"])
    assert set(found.values) == {"conv", "hidden"}
    for row in found.values.values():
        assert row[8] == pytest.approx(found.baseline, abs=0.05)
    chosen = found.targets(max_drop=0.05)
    assert set(chosen.values()) <= {2, 8}
    assert all(isinstance(bits, int) for bits in chosen.values())


def test_targets_stop_at_the_first_level_that_costs_too_much():
    values = {"a": {0.5: 0.895, 0.7: 0.5, 0.9: 0.9}, "b": {0.5: 0.9, 0.7: 0.9, 0.9: 0.88}, "c": {0.5: 0.1}}
    found = tfopt.Sensitivity("sparsity", "accuracy", 0.9, values)
    assert found.targets(0.01) == {"a": 0.5, "b": 0.7, "c": 0.0}
    loss = tfopt.Sensitivity("bits", "loss", 1.0, {"a": {8: 1.0, 4: 1.2, 2: 3.0}})
    assert loss.targets(0.5) == {"a": 4}
    assert loss.targets(0.1) == {"a": 8}


def test_targets_are_what_prune_takes(trained, data, tmp_path):
    targets = tfopt.sensitivity(trained, data, levels=(0.5, 0.75)).targets(max_drop=0.5)
    stages = [tfopt.AnalyzeSensitivity(levels=(0.5,)), tfopt.Prune(epochs=1, layers=targets, fit=tfopt.Fit(1e-3))]
    work = tfopt.run(stages, tfopt.Work(trained, data, tmp_path))
    for path, share in work.invariants[0].targets.items():
        assert share == pytest.approx(targets[path.split("/")[-2]], abs=0.02)
    assert (tmp_path / "01-AnalyzeSensitivity" / "sensitivity.json").exists()
    written = work.report.write(tmp_path / "report")
    page = written["html"].read_text()
    assert "Sensitivity: accuracy by sparsity of one layer" in page


REFUSED = {
    "kind": ({"kind": "size"}, "kind must be one of sparsity, ratio, bits, blocks; received 'size'"),
    "level": ({"levels": [1.0]}, "a level of sparsity must be"),
    "bits": ({"kind": "bits", "levels": [0.5]}, "bits must be whole numbers from 2 to 8, received 0.5"),
    "no levels": ({"levels": []}, "levels is empty"),
    "no examples": ({"examples": 0}, "examples must be at least 1, received 0"),
    "no such layer": ({"layers": ["cone"]}, "did you mean 'conv'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, trained, data):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tfopt.sensitivity(trained, data, **options)
