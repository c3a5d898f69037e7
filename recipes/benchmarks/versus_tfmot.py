"""tfopt beside TFMOT: the same models, data, seeds and budget through pruning, clustering, QAT, PQAT, CQAT and PCQAT.

    python -m recipes.benchmarks.versus_tfmot --data_dir=~/tensorflow_datasets --seeds=3
    python -m recipes.benchmarks.versus_tfmot --data_dir=~/tensorflow_datasets --seeds=3 --only_timing

Both start from one float model for each seed. Rows are finished one by one, and the same command goes on after the last
of them; those that failed are tried again. `--only_timing` measures latency, step time and memory again, for an idle
machine, and trains nothing. The int8 files of TensorFlow's converter and of ai-edge-quantizer, made after training
alone, stand beside them.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
from absl import flags

import tfopt
from recipes.benchmarks.engine_table import publish
from recipes.benchmarks.engines import FAILURES, TECHNIQUES, Budget, Contest, Rows, Timing, compete
from tfopt.config import did_you_mean, require
from tfopt.report import describe_environment

_FLAGS = flags.FlagValues()
_OWN: dict[str, Any] = {"flag_values": _FLAGS}


def mobilenet_v2(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """MobileNetV2 of width 0.35, with the momentum that short trainings need."""
    model = keras.applications.MobileNetV2(input_shape, alpha=0.35, weights=None, classes=classes)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    return model


# What each model learns, and what makes it.
MODELS: dict[str, tuple[str, Callable[..., keras.Model]]] = {
    "ds_cnn": ("fashion_mnist", tfopt.models.ds_cnn),
    "resnet8": ("cifar10", tfopt.models.resnet8),
    "mobilenet_v2": ("cifar10", mobilenet_v2),
}
_MODELS = flags.DEFINE_list("models", list(MODELS), "Which models.", **_OWN)
_TECHNIQUES = flags.DEFINE_list("techniques", list(TECHNIQUES), "Which techniques.", **_OWN)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the prepared TFDS sets.", **_OWN)
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples, the first ones; 0: all.", 0, **_OWN)
_TESTED = flags.DEFINE_integer("test_examples", 0, "Test examples, the first ones; 0: all.", 0, **_OWN)
_FLOAT = flags.DEFINE_integer("float_epochs", 10, "Of the float training.", 1, **_OWN)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Of each stage after it.", 1, **_OWN)
_SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds, from 0 on.", 1, **_OWN)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a training step.", 1, **_OWN)
_SPARSITY = flags.DEFINE_float("sparsity", 0.8, "Fraction of zeros that pruning asks for.", **_OWN)
_CLUSTERS = flags.DEFINE_integer("clusters", 16, "Different values that clustering asks for.", 2, **_OWN)
_WORKDIR = flags.DEFINE_string("workdir", "runs/versus_tfmot", "Where rows, models and files are kept.", **_OWN)
_TIMING = flags.DEFINE_bool("timing", True, "Measure latency, step time and memory.", **_OWN)
_ONLY = flags.DEFINE_bool("only_timing", False, "Measure these again, and train nothing.", **_OWN)
_MEMORY = flags.DEFINE_bool("memory", True, "Memory among them: a process for each technique and engine.", **_OWN)
_RUNS = flags.DEFINE_integer("runs", 200, "Timed runs of each file.", 1, **_OWN)
_STEPS = flags.DEFINE_integer("steps", 20, "Training steps in a turn.", 1, **_OWN)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "How often the variants take turns.", 1, **_OWN)


def contests(workdir: pathlib.Path) -> Iterator[Contest]:
    """A contest for each model and seed; the float models are trained where they are not yet."""
    budget = Budget(_SPARSITY.value, _CLUSTERS.value, _EPOCHS.value)
    for name in _MODELS.value:
        dataset, make = MODELS[name]
        data = tfopt.from_tfds(dataset, _DATA_DIR.value, batch_size=_BATCH.value)
        sizes = {"train": _EXAMPLES.value, "validation": _EXAMPLES.value // 10, "test": _TESTED.value}
        splits = {key: each.take(sizes[key]) if sizes[key] else each for key, each in data.splits.items()}
        data = dataclasses.replace(data, splits=splits)
        for seed in range(_SEEDS.value):
            folder = workdir / name / str(seed)
            fit = tfopt.Fit(tfopt.Cosine(2e-3))
            start = [tfopt.Build(make), tfopt.Train(_FLOAT.value, fit=fit)]
            work = tfopt.run(start, tfopt.Work(data=data, workdir=folder / "float", seed=seed))
            yield Contest(work, folder, name, budget)


def main(arguments: list[str]) -> int:
    """Runs the comparison; returns the exit code."""
    if "--help" in arguments[1:]:
        print(f"{__doc__}\n{_FLAGS.main_module_help()}")
        return 0
    try:
        rest = _FLAGS(arguments)[1:]
        require(not rest, f"unexpected arguments: {' '.join(rest)}; flags are written --name=value")
        for given, known in ((_MODELS.value, MODELS), (_TECHNIQUES.value, TECHNIQUES)):
            for each in given:
                require(each in known, f"there is no {each!r}; {did_you_mean(each, known)}")
    except (flags.Error, ValueError) as error:
        print(f"{error}\n(--help lists the flags)", file=sys.stderr)
        return 2
    workdir = pathlib.Path(_WORKDIR.value).expanduser().resolve()
    rows = Rows(workdir / "rows.jsonl")
    timing = Timing(_RUNS.value, _STEPS.value, _ROUNDS.value, _MEMORY.value) if _TIMING.value or _ONLY.value else None
    try:
        compete(contests(workdir), _TECHNIQUES.value, rows, timing, _ONLY.value)
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    environment = describe_environment()
    notes = [
        f"{_EXAMPLES.value or 'all'} training examples, {_FLOAT.value} epochs of float training, {_EPOCHS.value} of "
        f"each stage, {_SEEDS.value} seeds, {_SPARSITY.value:.0%} zeros, {_CLUSTERS.value} clusters, "
        f"{environment['cpu']}"
    ]
    publish(rows.read(), workdir, "tfopt and TFMOT", notes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
