"""The stages `Ensemble` and `DistillInto`: members, resuming, promises, stacking that cannot leak."""

import dataclasses

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import small_model
from tfopt.ensemble import (
    Architectures,
    Bagging,
    Boosting,
    DistillInto,
    Ensemble,
    Files,
    Seeds,
    Snapshots,
    Stacking,
    bootstrap,
    out_of_fold,
    parts_of,
    stacking_weights,
)
from tfopt.ensemble.rows import folds_of

FIT = tfopt.Fit(3e-3)


def start(data, folder, make=lambda: small_model(0.2)):
    keras.utils.set_random_seed(3)
    return tfopt.Work(make(), data, folder)


def flat(loss=None, units=3, end="softmax"):
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(units, end, name="out")], name="flat"
    )
    if loss is not None:
        model.compile("sgd", loss, jit_compile=False)
    return model


def same_weights(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


# Rows


def test_bootstrap_draws_with_replacement():
    x = np.arange(200, dtype="float32")
    data = tfopt.from_arrays((x, x), (x[:5], x[:5]), (x[:5], x[:5]), batch_size=16)
    drawn = bootstrap(data, seed=4)
    values = np.array([float(each) for each, _ in drawn.examples("train")])
    assert len(values) == drawn.sizes["train"] == 200
    assert 0.55 < len(set(values)) / 200 < 0.72
    again = [float(each) for each, _ in bootstrap(data, seed=4).examples("train")]
    assert again == values.tolist()
    assert [float(each) for each, _ in bootstrap(data, seed=5).examples("train")] != again
    assert bootstrap(data, fraction=0.25).sizes["train"] == 50
    assert sum(len(batch[0]) for batch in drawn.train) == 200
    for wrong in (0, 1.5, 40):
        with pytest.raises(ValueError, match="fraction"):
            bootstrap(data, fraction=wrong)


# Stacking


def by_heart(part, fold):
    """A model that knows exactly what it was trained on, and nothing else: training without the training's time."""
    seen, labels = (np.array(each) for each in zip(*part.examples("train").as_numpy_iterator(), strict=True))
    model = keras.Sequential([keras.Input((60,)), keras.layers.Dense(2, "softmax", use_bias=False)])
    model.set_weights([9 * seen.T @ np.eye(2)[labels]])
    return model


def test_predictions_of_random_labels_are_guesses():
    """Leakage would make them right: this model is right on every example that it was trained on."""
    x, y = np.eye(60, dtype="float32"), np.random.default_rng(0).integers(0, 2, 60)
    data = tfopt.from_arrays((x, y), (x, y), (x, y), batch_size=7)
    assert (by_heart(data, 0)(x).numpy().argmax(1) == y).all()
    found = out_of_fold(by_heart, data, folds=3)
    assert np.array_equal(found, np.full((60, 2), 0.5))


def test_copies_of_an_example_do_not_leak():
    x = np.repeat(np.eye(60, dtype="float32")[:20], 3, axis=0)
    y = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 3)
    data = tfopt.from_arrays((x, y), (x, y), (x, y), batch_size=7)
    assert np.array_equal(out_of_fold(by_heart, data, folds=2), np.full((60, 2), 0.5))
    folds = folds_of(data, 4)
    assert np.bincount(folds).tolist() == [15] * 4


def test_a_member_that_learns_by_heart_is_worth_nothing():
    """In its own training examples it is perfect; out of fold it is noise beside one that has learnt the rule."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    x = np.eye(60, dtype="float32")
    data = tfopt.from_arrays((x, y), (x, y), (x, y))
    rule = np.where(y[:, None] == np.arange(2), 0.7, 0.3)
    assert stacking_weights(np.stack([by_heart(data, 0)(x).numpy(), rule]), y)[0] > 0.99
    assert stacking_weights(np.stack([out_of_fold(by_heart, data, folds=2), rule]), y)[0] < 0.01


def test_stacking_weights_of_other_tasks():
    y = np.array([1, 0, 1, 1])
    sure, unsure = np.where(y == 1, 0.9, 0.1)[:, None], np.full((4, 1), 0.5)
    assert stacking_weights(np.stack([sure, unsure]), y)[0] > 0.99
    targets = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert np.allclose(stacking_weights(np.stack([targets + 1, targets - 1]), targets), 0.5)
    # An example that does not count.
    off = targets + np.array([[0.0], [0], [0], [9]])
    assert stacking_weights(np.stack([off, targets + 0.5]), targets, np.array([1, 1, 1, 0]))[0] > 0.99
    for predictions, truth, message in (
        (np.ones((1, 4, 2)), y, "two members or more"),
        (np.ones((2, 3, 2)), y, "predictions for 3 examples and 4 targets"),
        (np.ones((2, 4, 2)), targets, "float targets must be as many"),
    ):
        with pytest.raises(ValueError, match=message):
            stacking_weights(predictions, truth)


# The chain


@pytest.mark.slow
def test_members_are_trained_and_killed_and_resumed(data, tmp_path, broken_off):
    """Stacking has the most parts; it is broken off after the first, and ends with the same model."""
    stage = Ensemble(Seeds(2), Stacking(2), epochs=1, fit=FIT)
    whole = tfopt.run([stage], start(data, tmp_path / "whole", flat))
    broken_off(lambda: tfopt.run([stage], start(data, tmp_path / "broken", flat)))
    partial = tmp_path / "broken" / "01-Ensemble.partial"
    assert [each.name for each in partial.iterdir()] == ["member1"]
    resumed = tfopt.run([stage], start(data, tmp_path / "broken", flat))
    assert same_weights(whole.model, resumed.model)
    assert not partial.exists()
    entry = resumed.report.stages[0]
    assert entry.notes == whole.report.stages[0].notes
    weights, gain, cost = entry.notes
    assert weights.startswith("stacking weights from 2 folds: ")
    assert f"the ensemble {entry.metrics['after']['accuracy']:.4f}" in gain
    assert cost.startswith("cost: 774 parameters in place of 387 (x2.00), 768 multiplications in place of 384 (x2.00)")
    one, two = parts_of(resumed.model)
    assert not np.array_equal(one.get_weights()[0], two.get_weights()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "members",
    [
        Seeds(2, fresh=False),
        Bagging(2, 0.5),
        Snapshots(2),
        Boosting(2, 0.5),
        Architectures((tfopt.Build(tfopt.models.cnn, {"filters": 4}), tfopt.Build(tfopt.models.cnn, {"filters": 2}))),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_kind_of_members_resumes(members, data, tmp_path, broken_off):
    stage = Ensemble(members, epochs=1, fit=FIT)
    whole = tfopt.run([stage], start(data, tmp_path / "whole"))
    broken_off(lambda: tfopt.run([stage], start(data, tmp_path / "broken")))
    resumed = tfopt.run([stage], start(data, tmp_path / "broken"))
    assert same_weights(whole.model, resumed.model)
    assert resumed.report.stages[0].history == whole.report.stages[0].history
    one, two = parts_of(whole.model)
    assert not np.array_equal(one.get_weights()[0], two.get_weights()[0])
    assert whole.report.stages[0].metrics["after"]["accuracy"] > 0.5


@pytest.mark.slow
def test_promises_hold_in_every_member_down_to_the_file(data, tmp_path):
    stages = [
        tfopt.Prune(0.5, 1, tfopt.ConstantSparsity(0.5, 2), fit=FIT),
        tfopt.Cluster(8, 1, fit=FIT),
        Ensemble(Snapshots(2), "geometric", epochs=1, fit=FIT),
        tfopt.ExportTFLite(calibration_examples=20, max_drop=1.0),
    ]
    work = tfopt.run(stages, start(data, tmp_path))
    assert [each.kind for each in work.invariants] == ["sparsity", "sparsity", "clustered", "clustered"]
    assert all(each.check(work.model) == [] for each in work.invariants)
    assert {path.split("_")[0] for each in work.invariants for path in each.targets} == {"member1", "member2"}


@pytest.mark.slow
def test_seeds_to_a_quantized_student(data, tmp_path):
    stages = [
        Ensemble(Seeds(2), epochs=2, fit=FIT),
        DistillInto(tfopt.models.cnn, {"filters": 4}, 3, cache=tmp_path / "cache", fit=FIT),
        tfopt.QuantizeAware(1, fit=FIT),
        tfopt.ExportTFLite(calibration_examples=20, max_drop=1.0),
    ]
    work = tfopt.run(stages, start(data, tmp_path / "run"))
    ensemble, student, _, _ = work.report.stages
    teacher = ensemble.metrics["after"]["accuracy"]
    assert student.notes[0].startswith(
        f"learnt from the model as it entered; accuracy on the test split: the teacher {teacher:.4f}, the student after"
    )
    assert student.notes[-1].startswith("cost: 1,467 parameters in place of 3,526")
    assert work.report.artefacts["tflite"]["float_ops"] == []
    assert work.report.artefacts["tflite"]["accuracy"] > 0.5


def test_files_are_put_together(data, trained, tmp_path):
    paths = [tmp_path / "a.keras", tmp_path / "b.keras"]
    trained.save(paths[0])
    other = small_model()
    other.set_weights([0.9 * each for each in trained.get_weights()])
    other.save(paths[1])
    work = tfopt.run([Ensemble(Files([str(each) for each in paths]))], tfopt.Work(data=data, workdir=tmp_path / "run"))
    x = next(iter(data.batches("test")))[0]
    assert np.allclose(work.model(x), (trained(x) + other(x)) / 2, atol=1e-6)
    flat(units=4).save(paths[1])
    with pytest.raises(ValueError, match="different outputs: those of member 1 .* are .*3.*, those of member 2 .*4"):
        Ensemble(Files([str(each) for each in paths])).validate(tfopt.Work(data=data))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Seeds(1), ValueError, "two members or more, received 1"),
        (lambda: Bagging(True), ValueError, "two members or more, received True"),
        (lambda: Bagging(3, 0.0), ValueError, "fraction must be above 0"),
        (lambda: Snapshots(0), ValueError, "two members or more"),
        (lambda: Boosting(2, 1.5), ValueError, "shrinkage must be in"),
        (lambda: Files("a.keras"), ValueError, "paths must be a list"),
        (lambda: Files(["a.keras"]), ValueError, "two members or more, received 1"),
        (lambda: Architectures((small_model, small_model)), TypeError, "takes Build stages"),
        (lambda: Stacking(1), ValueError, "folds must be a whole number from 2"),
        (lambda: Ensemble(3), TypeError, "members must be Seeds, Bagging"),
        (lambda: Ensemble(combine="median"), ValueError, "method must be one of mean, geometric, vote"),
        (lambda: Ensemble(Files(["a", "b"]), Stacking()), ValueError, "not trained on"),
        (lambda: Ensemble(Snapshots(2), Stacking()), ValueError, "trained on all folds"),
        (lambda: Ensemble(Seeds(2, fresh=False), Stacking()), ValueError, "trained on all folds"),
        (lambda: DistillInto(tfopt.models.cnn, alpha=2), ValueError, "alpha"),
    ],
)
def test_stages_that_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_cannot_work_is_told_before_training(data, tmp_path):
    work = start(data, tmp_path, flat)
    promised = work.replace(invariants=(tfopt.Sparsity({"flat/out/kernel": 0.5}),))
    for stage, message in (
        (Ensemble(Seeds(2)), "put Prune and Cluster after Ensemble"),
        (Ensemble(Boosting(2)), "put Prune and Cluster after Ensemble"),
        (DistillInto(tfopt.models.cnn), "put Prune and Cluster after DistillInto"),
    ):
        with pytest.raises(ValueError, match=message):
            stage.validate(promised)
    quantized = work.replace(model=tfopt.quantize_aware(flat()))
    with pytest.raises(ValueError, match="put Ensemble before QuantizeAware"):
        Ensemble(Seeds(2)).validate(quantized)
    with pytest.raises(ValueError, match="has not been trained yet"):
        DistillInto(tfopt.models.cnn).validate(work.replace(trained=False))
    with pytest.raises(ValueError, match="epochs must be a whole number from 1"):
        Ensemble(Seeds(2), epochs=0).validate(work)
    numbers = tfopt.from_arrays((np.zeros((40, 8, 8, 2), "float32"), np.zeros((40, 1), "float32")))
    regression = tfopt.Work(flat("mse", 1, "linear"), numbers)
    assert Ensemble(Seeds(2)).validate(regression).model.output_shape == (None, 1)
    with pytest.raises(ValueError, match="is for classes"):
        Ensemble(Seeds(2), "vote").validate(regression)
    other = dataclasses.replace(data, class_names=tuple("abcd"))
    with pytest.raises(ValueError, match="shape|classes"):
        DistillInto(tfopt.models.cnn).validate(work.replace(data=other))
