"""Your own model on tfopt and on TFMOT: pruning, clustering, QAT, PQAT, CQAT and PCQAT, as int8 files side by side.

    python -m recipes.compare --model=m.keras --dataset=fashion_mnist --data_dir=~/tensorflow_datasets --epochs=3

The model is a trained one that `tfopt.load_model` reads, Keras 2 files included; the dataset is one of TFDS, or an .npz
file with x and y. The workdir gets report.html, report.md, report.json and table.md; stopped, it goes on there.
`--only_timing` measures latency, step time and memory again, for an idle machine, and trains nothing.
"""

import pathlib
import sys
from typing import Any

from absl import flags

import tfopt
from recipes.benchmarks.engine_table import publish
from recipes.benchmarks.engines import FAILURES, TECHNIQUES, Budget, Contest, Rows, Timing, compete
from tfopt.config import did_you_mean, require
from tfopt.report import describe_environment

_FLAGS = flags.FlagValues()
_OWN: dict[str, Any] = {"flag_values": _FLAGS}
_MODEL = flags.DEFINE_string("model", None, "A trained model: a .keras or .h5 file, or a SavedModel.", **_OWN)
_DATASET = flags.DEFINE_string("dataset", None, "A TFDS set, or the path of an .npz file.", **_OWN)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the prepared TFDS sets.", **_OWN)
_HIGH = flags.DEFINE_float("value_high", 1.0, "What pixel value 255 becomes in the model's input.", **_OWN)
_TECHNIQUES = flags.DEFINE_list("techniques", list(TECHNIQUES), "Which techniques.", **_OWN)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Of each stage.", 1, **_OWN)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a training step.", 1, **_OWN)
_SPARSITY = flags.DEFINE_float("sparsity", 0.8, "Fraction of zeros that pruning asks for.", **_OWN)
_CLUSTERS = flags.DEFINE_integer("clusters", 16, "Different values that clustering asks for.", 2, **_OWN)
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Highest one of pruning; half of it for what follows.", **_OWN)
_SEED = flags.DEFINE_integer("seed", 0, "All randomness follows from it.", **_OWN)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results; by default runs/compare_<model>.", **_OWN)
_TIMING = flags.DEFINE_bool("timing", True, "Measure latency, step time and memory.", **_OWN)
_ONLY = flags.DEFINE_bool("only_timing", False, "Measure these again, and train nothing.", **_OWN)


def read_data() -> tfopt.Data:
    """The data that the flags name."""
    name = _DATASET.value
    if name.endswith(".npz"):
        return tfopt.from_npz(name, batch_size=_BATCH.value)
    return tfopt.from_tfds(name, _DATA_DIR.value, batch_size=_BATCH.value, value_range=(0.0, _HIGH.value))


def main(arguments: list[str]) -> int:
    """Compares; returns the exit code."""
    if "--help" in arguments[1:]:
        print(f"{__doc__}\n{_FLAGS.main_module_help()}")
        return 0
    try:
        rest = _FLAGS(arguments)[1:]
        require(not rest, f"unexpected arguments: {' '.join(rest)}; flags are written --name=value")
        require(bool(_MODEL.value and _DATASET.value), "--model and --dataset are both needed")
        for each in _TECHNIQUES.value:
            require(each in TECHNIQUES, f"there is no {each!r}; {did_you_mean(each, TECHNIQUES)}")
    except (flags.Error, ValueError) as error:
        print(f"{error}\n(--help lists the flags)", file=sys.stderr)
        return 2
    name = pathlib.Path(_MODEL.value).stem
    workdir = pathlib.Path(_WORKDIR.value or f"runs/compare_{name}").expanduser().resolve()
    rows = Rows(workdir / "rows.jsonl")
    timing = Timing() if _TIMING.value or _ONLY.value else None
    budget = Budget(_SPARSITY.value, _CLUSTERS.value, _EPOCHS.value, _RATE.value, _RATE.value / 2)
    try:
        data, model = read_data(), tfopt.load_model(_MODEL.value)
        # Its losses are read, and it is refused, before anything is trained.
        tfopt.validate([tfopt.Train(1)], tfopt.Work(model, data))
        work = tfopt.run(
            [tfopt.LoadModel(_MODEL.value)], tfopt.Work(data=data, workdir=workdir / "float", seed=_SEED.value)
        )
        compete([Contest(work, workdir, name, budget)], _TECHNIQUES.value, rows, timing, _ONLY.value)
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    notes = [
        f"{_MODEL.value} on {data.name}, {data.sizes['train']:,} training and {data.sizes['test']:,} test examples, "
        f"{_EPOCHS.value} epochs of each stage, {_SPARSITY.value:.0%} zeros, {_CLUSTERS.value} clusters, "
        f"{describe_environment()['cpu']}"
    ]
    publish(rows.read(), workdir, name, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
