"""Fewer channels against training a narrower network: accuracy, multiplications, bytes and latency, int8 included.

    python -m recipes.benchmarks.channels_accuracy --dataset=cifar10 --data_dir=~/tensorflow_datasets \\
        --model=mlperf_resnet8_cifar10.keras --value_high=255 --macs=0.5 --shift=4

Four int8 files of one task: of the whole model; of the model without the channels that matter least, all layers giving
up the same share; of one whose layers give up what each alone bears; and of a network as narrow as the second, trained
from scratch for as many epochs. Latencies are medians of runs in turns.
"""

import dataclasses
import pathlib
import tempfile

import keras
import numpy as np
import rich.console
import rich.table
from absl import app, flags

import tfopt
from recipes.benchmarks.qat_accuracy import BATCH, DATA_DIR, DATASET, MODEL, MORE, RATE, VALUE_HIGH
from tfopt.channels.plan import plan_channels
from tfopt.measure.latency import measure_latencies
from tfopt.report import describe_environment

_MACS = flags.DEFINE_float("macs", 0.5, "The share of the multiplications that remains.")
_EPOCHS = flags.DEFINE_integer("train_epochs", 16, "Of the training after the channels went.", lower_bound=1)
_SHIFT = flags.DEFINE_integer("shift", 0, "Mirrors training images and moves them by up to so many pixels; 0: not.")
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Highest learning rate of that training.")


def from_scratch(model: keras.Model) -> keras.Model:
    """The same layers with new weights."""
    return keras.models.clone_model(model)


def main(_: list[str]) -> None:
    """Prints the table."""
    if MODEL.value is None:
        raise app.UsageError("--model names no trained model to take channels from")
    keras.utils.set_random_seed(0)
    value_range = (0.0, VALUE_HIGH.value)
    data = tfopt.from_tfds(DATASET.value, DATA_DIR.value, batch_size=BATCH.value, value_range=value_range)
    if _SHIFT.value:
        data = dataclasses.replace(data, augment=(tfopt.augment.Flip(), tfopt.augment.PadCrop(_SHIFT.value)))
    whole = tfopt.load_model(MODEL.value)
    target, fit = {"macs": _MACS.value}, tfopt.Fit(tfopt.Cosine(_RATE.value))
    narrow = from_scratch(tfopt.prune_channels(whole, target=target))
    quantize = [tfopt.QuantizeAware(MORE.value, fit=tfopt.Fit(tfopt.Cosine(RATE.value))), tfopt.ExportTFLite()]
    ways: dict[str, tuple[keras.Model, list[tfopt.Stage]]] = {
        "whole": (whole, []),
        "channels, uniform": (whole, [tfopt.PruneChannels(target=target, epochs=_EPOCHS.value, fit=fit)]),
        "channels, by sensitivity": (
            whole,
            [tfopt.PruneChannels(target=target, epochs=_EPOCHS.value, layers="sensitivity", fit=fit)],
        ),
        "as narrow, from scratch": (narrow, [tfopt.Train(_EPOCHS.value, fit)]),
    }
    rows, paths = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, stages) in ways.items():
            start = tfopt.Work(model, data, pathlib.Path(folder, name.replace(" ", "_")))
            work = tfopt.run([*stages, *quantize], start)
            # What came into the quantization: the model as it was trained in float.
            trained = work.report.stages[-2].metrics["before"]["accuracy"]
            float_model = keras.saving.load_model(work.snapshots[-2][1]) if stages else model
            file = work.report.artefacts["tflite"]
            macs = plan_channels(float_model, ratio=0.0).before.macs
            assert macs is not None, "the model leaves the size of its input open"
            rows.append((name, macs, trained, file))
            paths.append(file["path"])
        latencies = measure_latencies(paths)
        table = rich.table.Table(
            "model", "MACs", "float", "int8", "bytes", "latency, ms", "against whole", title=f"{DATASET.value}, int8"
        )
        for (name, macs, accuracy, file), latency in zip(rows, latencies, strict=True):
            table.add_row(
                name,
                f"{macs:,}",
                f"{accuracy:.4f}",
                f"{file['accuracy']:.4f}",
                f"{file['bytes']:,}",
                f"{latency.median_ms:.3f}",
                f"{macs / rows[0][1]:.3f} MACs, {latency.median_ms / np.float64(latencies[0].median_ms):.3f} time",
            )
        console = rich.console.Console()
        console.print(table)
        console.print(f"{_EPOCHS.value} + {MORE.value} epochs, 1 thread, {describe_environment()['cpu']}")


if __name__ == "__main__":
    app.run(main)
