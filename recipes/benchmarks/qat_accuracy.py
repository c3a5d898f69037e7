"""What quantization-aware training keeps of the accuracy: float against int8 and int4 files, over seeds.

    python -m recipes.benchmarks.qat_accuracy --dataset=fashion_mnist --data_dir=~/tensorflow_datasets
    python -m recipes.benchmarks.qat_accuracy --dataset=cifar10 --model=mlperf_resnet8_cifar10.keras --value_high=255

From one float model, three trainings of equal length: float, 8-bit weights, 4-bit weights. The files are measured on
the whole test split, on LiteRT's built-in kernels and on XNNPACK, as is how far these two are from each other.
"""

import pathlib
import tempfile

import numpy as np
import rich.console
import rich.table
from absl import app, flags

import tfopt
from recipes._start import float_model
from tfopt.report import describe_environment

DATASET = flags.DEFINE_string("dataset", "fashion_mnist", "A TFDS image classification set.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the prepared TFDS sets.")
MODEL = flags.DEFINE_string("model", None, "A trained model to start from; else a DS-CNN is trained.")
VALUE_HIGH = flags.DEFINE_float("value_high", 1.0, "What pixel value 255 becomes in the model's input.")
EPOCHS = flags.DEFINE_integer("epochs", 10, "Of the float training.", lower_bound=1)
MORE = flags.DEFINE_integer("qat_epochs", 3, "Of the three trainings that follow.", lower_bound=1)
RATE = flags.DEFINE_float("qat_learning_rate", 5e-4, "Their highest learning rate.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds.", lower_bound=1)
_BITS = flags.DEFINE_multi_integer("bits", [8, 4], "Of the weights.")
BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a training step.", lower_bound=1)


def float_work(data: tfopt.Data, folder: pathlib.Path, seed: int) -> tfopt.Work:
    """A trained float model."""
    start = float_model(MODEL.value, 64, EPOCHS.value, 2e-3)
    return tfopt.run(start, tfopt.Work(data=data, workdir=folder / "float", seed=seed))


def main(_: list[str]) -> None:
    """Prints a row for each seed and kind of training."""
    value_range = (0.0, VALUE_HIGH.value)
    data = tfopt.from_tfds(DATASET.value, DATA_DIR.value, batch_size=BATCH.value, value_range=value_range)
    fit = tfopt.Fit(tfopt.Cosine(RATE.value))
    columns = "seed", "training", "accuracy", "against float", "bytes", "kernels", "argmax equal", "mean LSB", "noise"
    table = rich.table.Table(*columns, title=f"{DATASET.value}, {data.sizes['test']:,} test images")
    with tempfile.TemporaryDirectory() as name:
        for seed in range(_SEEDS.value):
            folder = pathlib.Path(name, str(seed))
            base = float_work(data, folder, seed)
            start = tfopt.Work(base.model, data, folder / "more", seed=seed)
            more = tfopt.run([tfopt.Train(MORE.value, fit=fit)], start)
            reference = more.report.stages[-1].metrics["after"]["accuracy"]
            before = base.report.stages[-1].metrics["after"]["accuracy"]
            table.add_row(str(seed), "float", f"{before:.4f}", f"{100 * (before - reference):+.2f}", *[""] * 5)
            table.add_row("", "float, trained on", f"{reference:.4f}", "", *[""] * 5)
            for bits in _BITS.value:
                stages = [tfopt.QuantizeAware(MORE.value, weight_bits=bits, fit=fit), tfopt.ExportTFLite()]
                work = tfopt.run(stages, tfopt.Work(base.model, data, folder / f"int{bits}", seed=seed))
                file = work.report.artefacts["tflite"]
                for xnnpack in (True, False):
                    found = tfopt.verify_tflite(
                        work.model, file["path"], data, max_examples=data.sizes["test"], use_xnnpack=xnnpack
                    )
                    difference = 100 * (np.float64(found.tflite_metric) - reference)
                    table.add_row(
                        "",
                        f"int{bits}",
                        f"{found.tflite_metric:.4f}",
                        f"{difference:+.2f}",
                        f"{file['bytes']:,}",
                        "XNNPACK" if xnnpack else "built-in",
                        f"{found.argmax_agreement:.4f}",
                        f"{found.mean_lsb:.3f}",
                        f"{found.noise.mean_lsb:.3f}",
                    )
            table.add_section()
    console = rich.console.Console()
    console.print(table)
    console.print(f"{MORE.value} epochs after the float training, {describe_environment()['cpu']}")


if __name__ == "__main__":
    app.run(main)
