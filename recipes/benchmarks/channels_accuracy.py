"""Fewer channels against training a narrower network: accuracy, multiplications, bytes and latency, int8 included.

    python -m recipes.benchmarks.channels_accuracy --dataset=cifar10 --data_dir=~/tensorflow_datasets \\
        --model=mlperf_resnet8_cifar10.keras --value_high=255 --macs=0.5 --shift=4
    python -m recipes.benchmarks.channels_accuracy --dataset=fashion_mnist --resnet_filters=24 --epochs=4 \\
        --latency=0.25 --train_epochs=12 --learning_rate=2e-3 --qat_epochs=1 --distill

Four int8 files of one task: of the whole model, given or a ResNet-20 that is trained first; of the model without the
channels that matter least, all layers giving up the same share; of a network as narrow, trained from scratch for as
many epochs; and of the model whose layers give up what each alone bears. Latencies are medians of runs in turns.
Kill it whenever you like and start it again with the same flags: what is finished is kept.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import keras
import rich.console
import rich.table
from absl import app, flags

import tfopt
from recipes._start import float_model
from recipes.benchmarks.qat_accuracy import BATCH, DATA_DIR, DATASET, EPOCHS, MODEL, MORE, RATE, VALUE_HIGH
from tfopt.channels.plan import plan_channels
from tfopt.distill import Teaching
from tfopt.measure.latency import measure_latencies
from tfopt.report import describe_environment

_MACS = flags.DEFINE_float("macs", 0.5, "The share of the multiplications that remains.")
_LATENCY = flags.DEFINE_float("latency", None, "In place of --macs: the share of the int8 latency that remains.")
_FILTERS = flags.DEFINE_integer(
    "resnet_filters", 24, "Of the first stack of the ResNet-20, without --model.", lower_bound=8
)
_WORKDIR = flags.DEFINE_string("channels_workdir", "runs/channels_accuracy", "Where models and reports are kept.")
_EPOCHS = flags.DEFINE_integer("train_epochs", 16, "Of the training after the channels went.", lower_bound=1)
_SHIFT = flags.DEFINE_integer("shift", 0, "Mirrors training images and moves them by up to so many pixels; 0: not.")
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Highest learning rate of that training.")
_DISTILL = flags.DEFINE_bool("distill", False, "Whether all smaller networks learn from the whole one, too.")


def main(_: list[str]) -> None:
    """Prints the table."""
    value_range, folder = (0.0, VALUE_HIGH.value), pathlib.Path(_WORKDIR.value)
    data = tfopt.from_tfds(DATASET.value, DATA_DIR.value, batch_size=BATCH.value, value_range=value_range)
    if _SHIFT.value:
        data = dataclasses.replace(data, augment=(tfopt.augment.Flip(), tfopt.augment.PadCrop(_SHIFT.value)))
    target = {"macs": _MACS.value} if _LATENCY.value is None else {"latency": _LATENCY.value}
    epochs, start = _EPOCHS.value, tfopt.Work(data=data, workdir=folder / "float")
    begin = float_model(MODEL.value, _FILTERS.value, EPOCHS.value, 2e-3, factory=tfopt.models.resnet20)
    whole = tfopt.run(begin, start).need_model()
    # Without augmentation the teacher is asked once, for all three.
    kept = None if data.augment else folder / "teacher"
    teaching = Teaching(whole, temperature=4.0, alpha=0.7, cache=kept) if _DISTILL.value else None
    fit = tfopt.Fit(tfopt.Cosine(_RATE.value), distill=teaching)
    console, rows, paths = rich.console.Console(), [], []

    def run(name: str, model: keras.Model, stages: Sequence[tfopt.Stage] = ()) -> keras.Model:
        start = tfopt.Work(model, data, folder / name.replace(", ", "_").replace(" ", "_"))
        fine = tfopt.Fit(tfopt.Cosine(RATE.value), distill=teaching if stages else None)
        work = tfopt.run([*stages, tfopt.QuantizeAware(MORE.value, fit=fine), tfopt.ExportTFLite()], start, name)
        # What came into the quantization: the model as it was trained in float.
        trained = work.report.stages[-2].metrics["before"]["accuracy"]
        smaller = keras.saving.load_model(work.snapshots[-2][1]) if stages else model
        file = work.report.artefacts["tflite"]
        macs = plan_channels(smaller, ratio=0.0).before.macs
        assert macs is not None, "the model leaves the size of its input open"
        rows.append((name, macs, trained, file))
        paths.append(file["path"])
        return smaller

    run("whole", whole)
    narrow = run("channels, uniform", whole, [tfopt.PruneChannels(target=target, epochs=epochs, fit=fit)])
    # The same layers with new weights.
    keras.utils.set_random_seed(0)
    run("as narrow, from scratch", keras.models.clone_model(narrow), [tfopt.Train(epochs, fit)])
    # As many multiplications as the others have left: what is shared out by sensitivity is counted, not timed.
    share = {"macs": rows[1][1] / rows[0][1]}
    by_sensitivity = tfopt.PruneChannels(target=share, epochs=epochs, layers="sensitivity", fit=fit)
    run("channels, by sensitivity", whole, [by_sensitivity])
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
            f"{macs / rows[0][1]:.3f} MACs, {latency.median_ms / latencies[0].median_ms:.3f} time",
        )
    console.print(table)
    console.print(f"{epochs} + {MORE.value} epochs, 1 thread, {describe_environment()['cpu']}")


if __name__ == "__main__":
    app.run(main)
