"""The contract of every stage: a row in STAGES is all that a new one needs."""

import dataclasses
import shutil
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import quick, residual_model, small_model
from tfopt.blocks import PruneBlocks
from tfopt.fuse import Fuse
from tfopt.train import models  # noqa: F401 - named in the reprs of stages

FIT = tfopt.Fit(learning_rate=3e-3)


@dataclasses.dataclass(frozen=True)
class Row:
    """A stage, what must come before it, and what it does.

    `changes`: it makes or changes a model. `idempotent`: done twice, the model is as after once. `make`: the model.
    """

    stage: tfopt.Stage
    before: tuple[tfopt.Stage, ...] = ()
    changes: bool = False
    idempotent: bool = False
    make: Callable[[float], keras.Model] = small_model

    @property
    def trains(self) -> bool:
        return hasattr(self.stage, "fit")


TRAIN = tfopt.Train(1, FIT)
EXPORT = tfopt.ExportTFLite(calibration_examples=20, max_drop=1.0)
STAGES = {
    "LoadTFDS": Row(tfopt.LoadTFDS("digits", batch_size=16), idempotent=True),
    "LoadFolder": Row(tfopt.LoadFolder("pictures", (8, 8)), idempotent=True),
    "LoadData": Row(tfopt.LoadData(tfopt.from_npz, {"path": "set.npz"}), idempotent=True),
    "Prepare": Row(tfopt.Prepare((tfopt.tabular.Clip(0.05, 0.95), tfopt.tabular.Scale())), idempotent=True),
    "Clean": Row(tfopt.Clean("skip"), idempotent=True),
    "Augment": Row(tfopt.Augment((tfopt.augment.Flip(), tfopt.augment.PadCrop(1))), idempotent=True),
    "Build": Row(tfopt.Build(tfopt.models.cnn, {"filters": 4}), changes=True, idempotent=True),
    "LoadModel": Row(tfopt.LoadModel("handed-over.keras"), changes=True, idempotent=True),
    "Train": Row(tfopt.Train(2, FIT), changes=True),
    "Distill": Row(tfopt.Distill(None, 2, fit=FIT), changes=True),
    "Ensemble": Row(tfopt.ensemble.Ensemble(tfopt.ensemble.Seeds(2), epochs=2, fit=FIT), changes=True),
    "AverageWeights": Row(tfopt.ensemble.AverageWeights(2, decay=0.9, fit=FIT), changes=True),
    "DistillInto": Row(
        tfopt.ensemble.DistillInto(tfopt.models.cnn, {"filters": 4, "dropout": 0.0}, 2, fit=FIT), changes=True
    ),
    "Prune": Row(tfopt.Prune(0.5, 2, tfopt.ConstantSparsity(0.5, 2), fit=FIT), changes=True),
    "Cluster": Row(tfopt.Cluster(8, 2, fit=FIT), changes=True),
    "PruneChannels": Row(tfopt.PruneChannels(0.5, epochs=2, fit=FIT), changes=True),
    "PruneBlocks": Row(PruneBlocks(["sum"], 2, fit=FIT), changes=True, make=residual_model),
    "Fuse": Row(Fuse(), before=(TRAIN,), changes=True),
    "QuantizeAware": Row(tfopt.QuantizeAware(2, fit=FIT), changes=True),
    "AnalyzeSensitivity": Row(tfopt.AnalyzeSensitivity(levels=(0.5,), examples=20), before=(TRAIN,), idempotent=True),
    "ExportTFLite": Row(EXPORT, before=(TRAIN,), idempotent=True),
    "Benchmark": Row(tfopt.Benchmark(runs=3, warmup=1), before=(TRAIN, EXPORT), idempotent=True),
}
# They train or measure longer than the others.
SLOW = (
    *("Benchmark", "AnalyzeSensitivity", "PruneChannels", "PruneBlocks", "Cluster", "Prune", "Distill"),
    *("Ensemble", "AverageWeights", "DistillInto", "Fuse", "Build", "LoadModel"),
)


def test_every_stage_has_a_row():
    parts = (tfopt, tfopt.blocks, tfopt.ensemble, tfopt.fuse)
    names = [each for part in parts for each in vars(part).values()]
    public = [each for each in names if isinstance(each, type) and issubclass(each, tfopt.Stage)]
    assert {each.__name__ for each in public} - {"Stage"} == set(STAGES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What stages name."""
    folder = tmp_path_factory.mktemp("files")
    small_model().save(folder / "handed-over.keras")
    np.savez(folder / "set.npz", x=np.zeros((40, 8, 8, 1), "float32"), y=np.arange(40) % 3)
    for number in range(9):
        path = folder / "pictures" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path, np.full((8, 8, 3), 20 * number), scale=False)
    return folder


@pytest.fixture(params=STAGES)
def row(request, files, tmp_path, monkeypatch, digits_dir):
    """A row; files that stages name are in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return STAGES[request.param]


def start(data, folder, dropout=0.2, make=small_model):
    keras.utils.set_random_seed(3)
    return tfopt.Work(make(dropout), data, folder)


def same_weights(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def test_repr_rebuilds_the_stage(row):
    parts = (tfopt, tfopt.augment, tfopt.blocks, tfopt.ensemble, tfopt.fuse, tfopt.tabular)
    rebuilt = eval(
        repr(row.stage), {"tfopt": tfopt, **{key: each for part in parts for key, each in vars(part).items()}}
    )
    assert rebuilt == row.stage
    assert repr(rebuilt) == repr(row.stage)
    assert dataclasses.is_dataclass(row.stage)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.stage.anything = 1
    # Seven is the habit; how to train is one field for all. PruneChannels says what its channels are multiples of, too.
    assert len(dataclasses.fields(row.stage)) <= 7 + isinstance(row.stage, tfopt.PruneChannels)


def test_validate_changes_nothing(row, data, tmp_path):
    work = start(data, tmp_path / "run", make=row.make)
    before = [weight.copy() for weight in work.model.get_weights()]
    expected = row.stage.validate(work)
    assert isinstance(expected, tfopt.Work)
    assert all(np.array_equal(a, b) for a, b in zip(before, work.model.get_weights(), strict=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "row",
    quick(STAGES, *(name for name in STAGES if name not in SLOW)),
    indirect=True,
)
def test_result_resume_and_reload(row, data, tmp_path):
    stages = [*row.before, row.stage]
    once = tfopt.run(stages, start(data, tmp_path / "one", make=row.make))
    entry = once.report.stages[-1]
    assert entry.repr == repr(row.stage)
    assert entry.seconds > 0
    folder = tmp_path / "one" / f"{len(stages):02d}-{row.stage.name}"
    assert (folder / "model.keras").exists() == row.changes
    if row.changes:
        assert same_weights(keras.saving.load_model(folder / "model.keras"), once.model)
    # A second run reads everything back; a run in another workdir computes the same again.
    again = tfopt.run(stages, start(data, tmp_path / "one", make=row.make))
    elsewhere = tfopt.run(stages, start(data, tmp_path / "two", make=row.make))
    for other in (again, elsewhere):
        assert same_weights(once.model, other.model)
        assert other.invariants == once.invariants
        assert other.trained == once.trained
    assert again.report.to_dict() == once.report.to_dict()


# A second training changes the weights: that is its purpose.
@pytest.mark.parametrize(
    "row",
    quick(
        [name for name, each in STAGES.items() if each.idempotent],
        *("LoadTFDS", "LoadFolder", "LoadData", "Prepare", "Clean", "Augment", "Build", "LoadModel"),
    ),
    indirect=True,
)
def test_twice_is_as_once_where_that_is_promised(row, data, tmp_path):
    work = tfopt.run([*row.before, row.stage, row.stage], start(data, tmp_path, make=row.make))
    once = tfopt.run([*row.before, row.stage], start(data, tmp_path / "once", make=row.make))
    assert [each.shape for each in work.model.weights] == [each.shape for each in once.model.weights]
    if not isinstance(row.stage, tfopt.Build):
        assert same_weights(work.model, once.model)
    assert set(work.report.artefacts) == set(once.report.artefacts)


def trained_by(row, data, folder, **fit):
    """The last loss of a training stage with another way to fit, and the work after it."""
    stage = dataclasses.replace(row.stage, fit=dataclasses.replace(FIT, **fit))
    work = tfopt.run([stage], start(data, folder, dropout=0.0, make=row.make))
    return work.report.stages[-1].history["loss"], work


TRAINING = [name for name, each in STAGES.items() if each.trains]


@pytest.mark.parametrize("name", quick(TRAINING, "Train"))
def test_steps_per_execution_trains_equally(name, data, tmp_path):
    row = STAGES[name]
    plain, _ = trained_by(row, data, tmp_path / "plain")
    several, work = trained_by(row, data, tmp_path / "several", steps_per_execution=3)
    assert several == plain
    assert all(promise.check(work.model) == [] for promise in work.invariants)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_xla_trains_equally(name, data, tmp_path):
    row = STAGES[name]
    plain, _ = trained_by(row, data, tmp_path / "plain")
    compiled, work = trained_by(row, data, tmp_path / "xla", jit_compile=True)
    # XLA sums in another order.
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert all(promise.check(work.model) == [] for promise in work.invariants)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", quick(TRAINING, "Train", "QuantizeAware"))
def test_mixed_precision_keeps_every_promise(name, precision, data, tmp_path):
    losses, work = trained_by(STAGES[name], data, tmp_path, precision=precision)
    assert losses[-1] < losses[0]
    assert all(promise.check(work.model) == [] for promise in work.invariants)
    assert {each.compute_dtype for each in work.model.layers} == {"float32"}


@pytest.mark.parametrize("name", quick(TRAINING, "Train"))
def test_a_crash_in_the_middle_changes_nothing(name, data, tmp_path, broken_off):
    stage, make = STAGES[name].stage, STAGES[name].make
    whole = tfopt.run([stage], start(data, tmp_path / "whole", make=make))
    broken_off(lambda: tfopt.run([stage], start(data, tmp_path / "broken", make=make)))
    resumed = tfopt.run([stage], start(data, tmp_path / "broken", make=make))
    assert same_weights(whole.model, resumed.model)
    assert resumed.report.stages[-1].history == whole.report.stages[-1].history


def test_promises_hold_on_two_replicas(data, mirrored):
    """What a stage promised is kept when the user goes on under MirroredStrategy, and one device agrees."""
    x, y = (np.concatenate(parts) for parts in zip(*data.batches("train").as_numpy_iterator(), strict=True))
    losses = []
    for scope in (tf.distribute.get_strategy().scope(), mirrored.scope()):
        with scope:
            model = keras.Sequential(
                [keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
            )
            model.set_weights([np.linspace(-1, 1, 384).reshape(128, 3), np.zeros(3)])
            model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        callback = tfopt.PruningCallback(tfopt.PolynomialDecay(0.0, 0.75, 0, 10, frequency=3))
        losses.append(
            model.fit(x, y, batch_size=24, epochs=2, shuffle=False, verbose=0, callbacks=[callback]).history["loss"]
        )
        assert callback.invariant.check(model) == []
        assert set(callback.sparsity.values()) == {0.75}
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
