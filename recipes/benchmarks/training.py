"""What distillation and ensembles bring at equal budgets, over seeds: mean and spread, and each difference by seed.

    python -m recipes.benchmarks.training --workdir=runs/training --tfds_dir=~/tensorflow_datasets
    python -m recipes.benchmarks.training --workdir=runs/small --examples=2000 --budget=2 --int4_epochs=1

For each seed, all on the same examples: the members of an ensemble, wider than the student; a student trained by
itself, one that learns from the first member, and one that learns from all, each for as many epochs. Then 4 bits, again
for as many epochs: the student trained by itself, with and without what the ensemble says from here on; and the one
that learned from the ensemble, which goes on learning from it. Accuracies in 4 bits are those of the .tflite files. The
best member is the one that is best on the test split: no easier one to beat. Kill it whenever you like and start it
again with the same flags: what is finished is kept.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import rich.console
import rich.table
from absl import app, flags

import tfopt
from tfopt.distill import Teaching
from tfopt.ensemble.rows import with_rows
from tfopt.evaluation import evaluate
from tfopt.report import describe_environment
from tfopt.train.models import resnet8

_DATASET = flags.DEFINE_string("tfds", "cifar10", "A TFDS image classification set.")
_FOLDER = flags.DEFINE_string("tfds_dir", None, "Folder of the prepared TFDS sets.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/training", "Where models and reports are kept.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples, the first ones; 0: all.", lower_bound=0)
_BUDGET = flags.DEFINE_integer("budget", 20, "Epochs of each training in float.", lower_bound=1)
_INT4 = flags.DEFINE_integer("int4_epochs", 5, "Epochs of each training in 4 bits.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("training_seeds", 3, "How many seeds.", lower_bound=1)
_MEMBERS = flags.DEFINE_integer("members", 3, "Of the ensemble.", lower_bound=2)
_FILTERS = flags.DEFINE_list("filters", ["16", "8"], "Of the first stack of ResNet-8: a member's and the student's.")
_RATE = flags.DEFINE_float("rate", 3e-3, "Highest learning rate in float.")
_INT4_RATE = flags.DEFINE_float("int4_rate", 1e-3, "Highest learning rate in 4 bits.")
_BATCH = flags.DEFINE_integer("examples_a_step", 128, "The batch size.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 3.0, "Of the distillation.")
_ALPHA = flags.DEFINE_float("alpha", 0.7, "What the teacher counts beside the labels.")
_SHIFTED = flags.DEFINE_bool("augment", True, "Mirrors training images and moves them by up to 4 pixels.")

# What is held against what.
PAIRS = (
    ("student from one member", "plain student"),
    ("student from the ensemble", "plain student"),
    ("student from the ensemble", "student from one member"),
    ("student from the ensemble", "best member"),
    ("ensemble", "best member"),
    ("int4, distilled", "int4, plain"),
    ("int4, distilled from the start", "int4, plain"),
)


def load(seed: int) -> tfopt.Data:
    """The data in the order of a seed."""
    data = tfopt.from_tfds(_DATASET.value, _FOLDER.value, batch_size=_BATCH.value)
    if _EXAMPLES.value:
        data = with_rows(data, (np.arange(data.sizes["train"]) < _EXAMPLES.value).astype(int))
    augment = (tfopt.augment.Flip(), tfopt.augment.PadCrop(4)) if _SHIFTED.value else ()
    return dataclasses.replace(data, augment=augment, seed=seed)


def measure(seed: int, folder: pathlib.Path) -> dict[str, float]:
    """The accuracies of a seed by what was trained."""
    data = load(seed)
    fit, int4 = tfopt.Fit(tfopt.Cosine(_RATE.value)), tfopt.Fit(tfopt.Cosine(_INT4_RATE.value))
    wide, narrow = (tfopt.Build(resnet8, {"filters": int(each)}) for each in _FILTERS.value)

    def run(name: str, stages: Sequence[tfopt.Stage], model: keras.Model | None = None) -> tfopt.Work:
        return tfopt.run(stages, tfopt.Work(model, data, folder / name, seed=seed), name)

    def accuracy(work: tfopt.Work) -> float:
        return float(work.report.stages[-1].metrics["after"]["accuracy"])

    def teach(teacher: keras.Model, how: tfopt.Fit) -> tfopt.Fit:
        return dataclasses.replace(how, distill=Teaching(teacher, _TEMPERATURE.value, _ALPHA.value))

    # With the same seed all students begin with the same weights, and see the same order.
    epochs = _BUDGET.value
    together = run(
        "ensemble", [wide, tfopt.ensemble.Ensemble(tfopt.ensemble.Seeds(_MEMBERS.value), "mean", epochs, fit)]
    )
    members = tfopt.ensemble.parts_of(together.need_model())
    scores = [evaluate(each, data)["accuracy"] for each in members]
    plain = run("plain", [narrow, tfopt.Train(epochs, fit)])
    from_one = run("from_one", [narrow, tfopt.Train(epochs, teach(members[0], fit))])
    from_all = run("from_all", [narrow, tfopt.Train(epochs, teach(together.need_model(), fit))])
    files, taught = {}, teach(together.need_model(), int4)
    for name, start, how in (
        ("int4, plain", plain, int4),
        ("int4, distilled", plain, taught),
        ("int4, distilled from the start", from_all, taught),
    ):
        stages = [tfopt.QuantizeAware(_INT4.value, weight_bits=4, fit=how), tfopt.ExportTFLite(max_drop=1.0)]
        work = run(name.replace(", ", "_").replace(" ", "_"), stages, start.need_model())
        files[name] = float(work.report.artefacts["tflite"]["accuracy"])
    return {
        "plain student": accuracy(plain),
        "student from one member": accuracy(from_one),
        "student from the ensemble": accuracy(from_all),
        "best member": max(scores),
        "mean member": float(np.mean(scores)),
        "ensemble": accuracy(together),
        **files,
    }


def table_of(found: Sequence[dict[str, float]]) -> rich.table.Table:
    """Accuracies and their differences: of each seed, the mean, and the spread (standard deviation over seeds)."""
    table = rich.table.Table("test accuracy, %", *(f"seed {index}" for index in range(len(found))), "mean", "spread")

    def add(name: str, values: Sequence[float], sign: str) -> None:
        percent = 100 * np.array(values)
        spread = f"{percent.std(ddof=1):.2f}" if len(values) > 1 else ""
        table.add_row(name, *(f"{each:{sign}.2f}" for each in percent), f"{percent.mean():{sign}.2f}", spread)

    for name in found[0]:
        add(name, [each[name] for each in found], "")
    table.add_section()
    for better, worse in PAIRS:
        add(f"{better} - {worse}", [each[better] - each[worse] for each in found], "+")
    return table


def main(_: list[str]) -> None:
    """Trains what is not trained yet, and prints the table after each seed."""
    console = rich.console.Console()
    found = []
    for seed in range(_SEEDS.value):
        found.append(measure(seed, pathlib.Path(_WORKDIR.value, f"seed{seed}")))
        console.print(table_of(found))
    console.print(
        f"{_DATASET.value}, {_EXAMPLES.value or 'all'} training examples, {_BUDGET.value} epochs, {_INT4.value} in 4 "
        f"bits, {_MEMBERS.value} members, {describe_environment()['cpu']}"
    )


if __name__ == "__main__":
    app.run(main)
