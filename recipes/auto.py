"""Brings a trained model within limits: finds channels, zeros, bits and trainings by itself.

    python -m recipes.auto --model=mlperf_resnet8_cifar10.keras --dataset=cifar10 --value_high=255 --max_drop=0.01
    python -m recipes.auto --model=m.keras --dataset=images/ --max_drop=0.02 --max_bytes=20000

--dataset is a TFDS set by name, a folder or archive of images by class, or an .npz file. Kill it whenever you like and
start it again. Workdir: report.html with all files that were tried, and model.tflite. Exit code: 0 where the target was
reached, 3 where it was not, 1 after an error, 2 for flags that cannot be read.
"""

import pathlib
import sys
from typing import Any

import keras
from absl import flags

import tfopt
from tfopt.config import require

_FLAGS = flags.FlagValues()
_OWN: dict[str, Any] = {"flag_values": _FLAGS}
_MODEL = flags.DEFINE_string("model", None, "A trained model: .keras, .h5 or SavedModel.", **_OWN)
_DATASET = flags.DEFINE_string("dataset", None, "A TFDS set, a folder or archive of images, an .npz file.", **_OWN)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the prepared TFDS sets.", **_OWN)
_VALUE_LOW = flags.DEFINE_float("value_low", 0.0, "What pixel value 0 becomes in the model's input.", **_OWN)
_VALUE_HIGH = flags.DEFINE_float("value_high", 1.0, "The same of 255.", **_OWN)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a training step.", **_OWN)
_DROP = flags.DEFINE_float("max_drop", None, "How much accuracy may be lost: 0.01 is a point.", **_OWN)
_BYTES = flags.DEFINE_integer("max_bytes", None, "Of the file as it is.", **_OWN)
_GZIP_BYTES = flags.DEFINE_integer("max_gzip_bytes", None, "Of the file after gzip.", **_OWN)
_LATENCY = flags.DEFINE_float("max_latency_ms", None, "Of one invocation here, one thread.", **_OWN)
_MINUTES = flags.DEFINE_float("max_minutes", 60.0, "No training is begun after so long.", **_OWN)
_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Highest of the trainings.", **_OWN)
_AUGMENT = flags.DEFINE_bool("augment", True, "Mirror and shift images, where the model bears it.", **_OWN)
_WORKDIR = flags.DEFINE_string("workdir", "runs/auto", "Folder for results.", **_OWN)
_SEED = flags.DEFINE_integer("seed", 0, "All randomness follows from it.", **_OWN)


def main(arguments: list[str]) -> int:
    """Searches; returns the exit code."""
    if "--help" in arguments[1:]:
        print(f"{__doc__}\n{_FLAGS.main_module_help()}")
        return 0
    try:
        rest = _FLAGS(arguments)[1:]
        require(not rest, f"unexpected arguments: {' '.join(rest)}; flags are written --name=value")
        require(_MODEL.value is not None, "--model names no trained model to begin with")
        require(_DATASET.value is not None, "--dataset names no data to train and to measure with")
    except (flags.Error, ValueError) as error:
        print(f"{error}\n(--help lists the flags)", file=sys.stderr)
        return 2
    limits = {each.name: each.value for each in (_DROP, _BYTES, _GZIP_BYTES, _LATENCY)}
    try:
        # Before anything is loaded.
        tfopt.tune.Goal(**limits)
        model = tfopt.load_model(_MODEL.value)
        found = tfopt.tune.reach(
            model,
            _data(model),
            **limits,
            workdir=_WORKDIR.value,
            max_minutes=_MINUTES.value,
            learning_rate=_RATE.value,
            augment=_AUGMENT.value,
            seed=_SEED.value,
        )
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(found.summary)
    for sentence in found.limits:
        print(f"limit: {sentence}")
    for each in found.front:
        print(f"front: candidate {each.number} ({each.option}), {found.describe(each)}")
    print(f"tflite: {found.workdir / 'model.tflite'}\nreport: {found.workdir / 'report.html'}")
    return 0 if found.reached else 3


def _data(model: keras.Model) -> tfopt.Data:
    """The data, as the name of their place tells."""
    path, batch, values = pathlib.Path(_DATASET.value), _BATCH.value, (_VALUE_LOW.value, _VALUE_HIGH.value)
    if path.suffix == ".npz":
        stage: tfopt.Stage = tfopt.LoadData(tfopt.from_npz, {"path": str(path), "batch_size": batch})
    elif path.exists():
        height, width, channels = model.input_shape[1:]
        stage = tfopt.LoadFolder(str(path), (height, width), channels=channels, batch_size=batch, value_range=values)
    else:
        stage = tfopt.LoadTFDS(_DATASET.value, _DATA_DIR.value, batch_size=batch, value_range=values)
    return stage.validate(tfopt.Work(seed=_SEED.value)).need_data()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
