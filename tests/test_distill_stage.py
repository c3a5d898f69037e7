"""The stage `Distill`, and `Fit(distill=...)` in the stages that train."""

import dataclasses

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, small_model
from tfopt.distill import Attention, Hint, Relational, Teaching

FIT = tfopt.Fit(3e-3)
SELF = tfopt.Fit(3e-3, distill=Teaching(alpha=0.8))


@pytest.fixture(scope="module")
def teacher(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    trained.save(path)
    return path


def start(data, folder, make=small_model, **options):
    keras.utils.set_random_seed(3)
    return tfopt.Work(make(), data, folder, **options)


def flat(classes=3, shape=(8, 8, 2)):
    layers = keras.layers
    # Named, as a run knows its model by the names of its variables.
    hidden = [layers.Flatten(), layers.Dropout(0.2), layers.Dense(6, "relu", name="hidden")]
    return keras.Sequential([keras.Input(shape), *hidden, layers.Dense(classes, "softmax", name="out")], name="flat")


@pytest.mark.slow
def test_sparsity_holds_while_distilling_down_to_the_file(teacher, data, tmp_path):
    stages = [
        tfopt.Distill(teacher, 3, features=[("hidden", "hidden"), Attention("pool")], fit=FIT),
        tfopt.Prune(0.75, 2, fit=SELF),
        tfopt.QuantizeAware(2, fit=SELF),
        tfopt.ExportTFLite(calibration_examples=20, max_drop=1.0),
    ]
    work = tfopt.run(stages, start(data, tmp_path))
    distilled, pruned, quantized, _ = work.report.stages
    # The student comes back as it went in: no projection, no teacher.
    kept = keras.saving.load_model(tmp_path / "01-Distill" / "model.keras")
    assert [each.shape for each in kept.variables] == [each.shape for each in small_model().variables]
    after = distilled.metrics["after"]["accuracy"]
    assert after > distilled.metrics["before"]["accuracy"]
    assert distilled.notes[-1] == (
        f"learnt from teacher.keras; accuracy on the test split: the teacher 1.0000, the student after {after:.4f}, "
        f"the student before {distilled.metrics['before']['accuracy']:.4f}"
    )
    for stage, before in ((pruned, distilled), (quantized, pruned)):
        # The teacher is the model that entered.
        accuracy = before.metrics["after"]["accuracy"]
        assert (
            f"learnt from the model as it entered; accuracy on the test split: the teacher {accuracy:.4f}"
            in (stage.notes[-1])
        )
    file = tfopt.measure_tflite(work.report.artefacts["tflite"]["path"])
    assert file.total_sparsity >= 0.74
    assert all(promise.check(work.model) == [] for promise in work.invariants)


@pytest.mark.parametrize(
    "stage",
    [
        tfopt.Train(1, SELF, layers=["out"]),
        # They share their code with the chain above.
        pytest.param(
            tfopt.QuantizeAware(1, fit=tfopt.Fit(distill=Teaching(features=[("conv", "conv"), ("hidden", "hidden")]))),
            marks=pytest.mark.slow,
        ),
        pytest.param(tfopt.Cluster(8, 1, fit=SELF), marks=pytest.mark.slow),
        pytest.param(tfopt.PruneChannels(0.5, epochs=1, fit=SELF), marks=pytest.mark.slow),
    ],
    ids=lambda stage: stage.name,
)
def test_every_stage_that_trains_learns_from_the_model_as_it_entered(stage, trained, data, tmp_path):
    work = tfopt.run([stage], tfopt.Work(trained, data, tmp_path / "taught"))
    assert "learnt from the model as it entered" in work.report.stages[0].notes[-1]
    alone = dataclasses.replace(stage, fit=dataclasses.replace(stage.fit, distill=None))
    without = tfopt.run([alone], tfopt.Work(trained, data, tmp_path / "alone"))
    pairs = zip(work.model.get_weights(), without.model.get_weights(), strict=True)
    assert not all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def test_a_quantized_student_is_near_the_confident_model_that_it_was(trained, data):
    teacher = keras.models.clone_model(trained)
    # Logits so far apart that an int8 probability of the last class is 0.
    teacher.set_weights([*trained.get_weights()[:-2], *(8 * each for each in trained.get_weights()[-2:])])
    aware = tfopt.quantize_aware(teacher)
    tfopt.calibrate(aware, data)
    distiller = tfopt.Distiller(aware, teacher, temperature=4.0, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", jit_compile=False)
    x, y = next(iter(data.batches("train")))
    assert np.min(aware.predict(x, verbose=0)) == 0
    assert distiller.train_on_batch(x, y) < 0.1


def test_a_model_from_earlier_in_the_chain_teaches(data, tmp_path):
    float_one = tfopt.Fit(3e-3, distill=Teaching(stage="Train"))
    first = tfopt.Fit(3e-3, distill=Teaching(stage="input"))
    stages = [tfopt.Train(1, FIT), tfopt.Prune(0.8, 1, fit=FIT), tfopt.QuantizeAware(1, fit=float_one)]
    work = tfopt.run([*stages, tfopt.Train(1, first)], start(data, tmp_path))
    trained, _, quantized, last = work.report.stages
    for stage, who, accuracy in (
        (quantized, "Train", trained.metrics["after"]["accuracy"]),
        (last, "input", trained.metrics["before"]["accuracy"]),
    ):
        assert (
            f"learnt from the model as {who} left it; accuracy on the test split: the teacher {accuracy:.4f}"
            in (stage.notes[-1])
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Prune", "no stage 'Prune' before this one .*: there are input, Train"),
        ("QuantizeAware", "no stage 'QuantizeAware' before this one"),
        # It makes no model.
        ("Augment", "no stage 'Augment' before this one"),
    ],
)
def test_a_stage_that_left_no_model_is_refused_before_training(name, words, data, tmp_path):
    fit = tfopt.Fit(distill=Teaching(stage=name))
    chain = [tfopt.Augment((tfopt.augment.Flip(),)), tfopt.Train(1, FIT), tfopt.QuantizeAware(1, fit=fit)]
    with pytest.raises(ValueError, match=words):
        tfopt.run(chain, start(data, tmp_path))
    assert not list(tmp_path.glob("02-*"))


def test_a_model_in_memory_teaches_and_is_told_apart_by_its_weights(trained, data, tmp_path):
    before = trained.get_weights()
    tfopt.run([tfopt.Distill(trained, 1, fit=FIT)], start(data, tmp_path))
    assert all(map(np.array_equal, before, trained.get_weights()))
    assert trained.trainable
    other = keras.models.clone_model(trained)
    other.set_weights([2 * each for each in before])
    assert repr(tfopt.Distill(trained)) == repr(tfopt.Distill(trained)) != repr(tfopt.Distill(other))
    with pytest.raises(ValueError, match="belongs to another run: stage 1 was Distill"):
        tfopt.run([tfopt.Distill(other, 1, fit=FIT)], start(data, tmp_path))


def test_a_run_that_was_broken_off_ends_the_same(teacher, data, tmp_path, broken_off):
    stage = tfopt.Distill(teacher, 2, features=[("hidden", "hidden")], fit=FIT)
    whole = tfopt.run([stage], start(data, tmp_path / "whole", flat))
    broken_off(lambda: tfopt.run([stage], start(data, tmp_path / "broken", flat)))
    resumed = tfopt.run([stage], start(data, tmp_path / "broken", flat))
    assert all(map(np.array_equal, whole.model.get_weights(), resumed.model.get_weights()))
    assert resumed.report.stages[0].history == whole.report.stages[0].history


def test_a_changed_teacher_is_noticed(trained, data, tmp_path, broken_off):
    trained.save(tmp_path / "t.keras")
    stage = tfopt.Distill(tmp_path / "t.keras", 2, fit=FIT)
    broken_off(lambda: tfopt.run([stage], start(data, tmp_path / "run", flat)))
    other = keras.models.clone_model(trained)
    other.set_weights([1.01 * each for each in trained.get_weights()])
    other.save(tmp_path / "t.keras")
    with pytest.raises(ValueError, match="is not the one that this training began with"):
        tfopt.run([stage], start(data, tmp_path / "run", flat))


# The quick one is that of `Distiller`.
@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_two_replicas_train_as_one_device(cached, teacher, data, mirrored, tmp_path):
    stage = tfopt.Distill(teacher, 2, features=() if cached else [Attention("pool")], fit=tfopt.Fit(1e-2))
    if cached:
        stage = dataclasses.replace(stage, cache=tmp_path / "cache")
    found = [
        tfopt.run([stage], start(data, tmp_path / name, strategy=strategy))
        for name, strategy in (("one", "one_device"), ("two", mirrored))
    ]
    losses = [each.report.stages[0].history["loss"] for each in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for ours, theirs in zip(*(each.model.get_weights() for each in found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=2e-3)


@pytest.mark.slow
def test_weights_of_examples_and_classes(teacher, tmp_path):
    x, y = blobs()
    weighted = tfopt.from_arrays((x, y, np.where(y == 0, 0.0, 1.0).astype("float32")), batch_size=24, name="w")
    by_class = tfopt.from_arrays((x, y), batch_size=24, name="w")
    found = []
    for name, each, fit in (
        ("examples", weighted, FIT),
        ("classes", by_class, dataclasses.replace(FIT, class_weight={0: 0.0, 1: 1.0, 2: 1.0})),
    ):
        work = tfopt.run([tfopt.Distill(teacher, 1, fit=fit)], start(each, tmp_path / name, flat))
        found.append(work.model.get_weights())
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def silent():
    model = flat()
    model.set_weights([np.zeros(each.shape) for each in model.weights])
    return model


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: flat(4), {}, r"outputs of shape \(4,\) an example, the student 'small' \(3,\)"),
        (lambda: flat(3, (9, 9, 2)), {}, "cannot take the inputs of the student"),
        (silent, {}, "no better than chance with 3 classes"),
        (small_model, {"features": [("hiden", "hidden")]}, "no layer 'hiden'; did you mean hidden"),
        (small_model, {"features": [("pool", "hidden")]}, "no places in common"),
        (small_model, {"features": [Relational("hidden")], "fit": tfopt.Fit(micro_batches=2)}, "have only a part each"),
    ],
)
def test_refused_before_training(make, options, words, data, tmp_path):
    keras.utils.set_random_seed(8)
    make().save(tmp_path / "t.keras")
    stages = [tfopt.Train(1, FIT), tfopt.Distill(tmp_path / "t.keras", **options)]
    with pytest.raises(ValueError, match=words) as error:
        tfopt.run(stages, start(data, tmp_path / "run"))
    assert "in stage 2 of 2" in error.value.__notes__[0]
    assert not list((tmp_path / "run").glob("01-*"))


def test_a_model_without_training_does_not_teach_itself(data, tmp_path):
    work = start(data, tmp_path).replace(trained=False)
    with pytest.raises(ValueError, match="would teach itself, and has not been trained yet"):
        tfopt.validate([tfopt.Prune(0.5, fit=SELF)], work)
    tfopt.validate([tfopt.Train(1), tfopt.Prune(0.5, fit=SELF)], work)


def test_what_is_kept_and_augmented_data_exclude_each_other(teacher, data, tmp_path):
    augmented = dataclasses.replace(data, augment=(tfopt.augment.Flip(),))
    with pytest.raises(ValueError, match="augmented anew in each epoch"):
        tfopt.validate([tfopt.Distill(teacher, cache=tmp_path / "cache")], start(augmented, tmp_path))
    tfopt.validate([tfopt.Distill(teacher)], start(augmented, tmp_path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tfopt.Distill("t.keras", temperature=0), "temperature must be a number above 0"),
        (lambda: tfopt.Distill("t.keras", alpha=2), "alpha must be a fraction in"),
        (lambda: tfopt.Distill("t.keras", fit=SELF), "leave distill out of its fit"),
        (lambda: Teaching("t.keras", features=[("a", "b")], cache="folder"), "leave one of the two out"),
        (lambda: Teaching("t.keras", stage="Train"), "leave one of stage and teacher out"),
        (lambda: tfopt.Fit(distill="t.keras"), "distill must be None or a tfopt.distill.Teaching"),
    ],
)
def test_refused_when_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_reprs_rebuild():
    for each in (
        tfopt.Distill("t.keras", features=[Hint("a", "b", 0.5), Relational("c")]),
        tfopt.Prune(fit=tfopt.Fit(distill=Teaching(["a.keras", "b.tflite"], cache="folder"))),
    ):
        names = {**vars(tfopt), "Hint": Hint, "Relational": Relational, "Teaching": Teaching}
        assert eval(repr(each), names) == each


@pytest.mark.slow
def test_rates_by_layer_and_smoothed_labels_while_distilling(teacher, data, tmp_path):
    """Whose projections have variables beside the student's, and whose loss tells what outputs are."""
    # A layer that learns next to nothing, and the plain one beside it.
    fit = tfopt.Fit(3e-3, "sgd", label_smoothing=0.1, layer_rates={"out": 1e-9})
    stage = tfopt.Distill(teacher, 1, features=[("hidden", "hidden")], fit=fit)
    work = start(data, tmp_path, flat)
    before = work.model.get_weights()
    after = tfopt.run([stage], work).model.get_weights()
    changes = [np.abs(new - old).max() for new, old in zip(after, before, strict=True)]
    assert max(changes[-2:]) < 1e-7
    assert min(changes[:-2]) > 1e-5
