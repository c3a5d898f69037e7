"""Which models of `keras.applications` train quantization-aware and become an int8 file without a float tensor.

    python -m recipes.benchmarks.qat_coverage
    python -m recipes.benchmarks.qat_coverage --models=MobileNetV2,ConvNeXtTiny

Each has random weights and the smallest images that it takes. Its BatchNormalization gets the statistics of a batch;
then come `quantize_aware`, `calibrate`, one training step, `export_tflite`, and the file's decisions beside the
model's. Each runs in a process of its own, the largest last: ConvNeXtXLarge needs some 20 GB.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import rich.console
import rich.table
from absl import app, flags

import tfopt
from tfopt.report import describe_environment

CLASSES = 10
# In order of size: the side of the smallest images, and the range of their values.
MODELS: dict[str, tuple[int, tuple[float, float]]] = {
    "MobileNet": (32, (-1.0, 1.0)),
    "MobileNetV2": (32, (-1.0, 1.0)),
    "MobileNetV3Small": (32, (0.0, 255.0)),
    "MobileNetV3Large": (32, (0.0, 255.0)),
    "NASNetMobile": (32, (-1.0, 1.0)),
    "EfficientNetB0": (32, (0.0, 255.0)),
    "EfficientNetV2B0": (32, (0.0, 255.0)),
    "EfficientNetB1": (32, (0.0, 255.0)),
    "EfficientNetV2B1": (32, (0.0, 255.0)),
    "DenseNet121": (32, (-2.0, 2.0)),
    "EfficientNetB2": (32, (0.0, 255.0)),
    "EfficientNetV2B2": (32, (0.0, 255.0)),
    "EfficientNetB3": (32, (0.0, 255.0)),
    "DenseNet169": (32, (-2.0, 2.0)),
    "EfficientNetV2B3": (32, (0.0, 255.0)),
    "DenseNet201": (32, (-2.0, 2.0)),
    "EfficientNetB4": (32, (0.0, 255.0)),
    "EfficientNetV2S": (32, (0.0, 255.0)),
    "Xception": (71, (-1.0, 1.0)),
    "InceptionV3": (75, (-1.0, 1.0)),
    "ResNet50": (32, (-128.0, 128.0)),
    "ResNet50V2": (32, (-1.0, 1.0)),
    "ConvNeXtTiny": (32, (0.0, 255.0)),
    "EfficientNetB5": (32, (0.0, 255.0)),
    "EfficientNetB6": (32, (0.0, 255.0)),
    "ResNet101": (32, (-128.0, 128.0)),
    "ResNet101V2": (32, (-1.0, 1.0)),
    "ConvNeXtSmall": (32, (0.0, 255.0)),
    "EfficientNetV2M": (32, (0.0, 255.0)),
    "InceptionResNetV2": (75, (-1.0, 1.0)),
    "ResNet152": (32, (-128.0, 128.0)),
    "ResNet152V2": (32, (-1.0, 1.0)),
    "EfficientNetB7": (32, (0.0, 255.0)),
    "NASNetLarge": (32, (-1.0, 1.0)),
    "ConvNeXtBase": (32, (0.0, 255.0)),
    "EfficientNetV2L": (32, (0.0, 255.0)),
    "VGG16": (32, (-128.0, 128.0)),
    "VGG19": (32, (-128.0, 128.0)),
    "ConvNeXtLarge": (32, (0.0, 255.0)),
    "ConvNeXtXLarge": (32, (0.0, 255.0)),
}

_MODELS = flags.DEFINE_list("models", list(MODELS), "Which models.")


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What became of a model.

    Args:
      name: of the model.
      reason: why there is no file, or "ok".
      parameters: how many.
      file_bytes: size of the file.
      operators: how many the file has.
      agreement: the part of the decisions in which file and quantized model agree, in [0, 1].
      noise: the part in which LiteRT's own kernels agree on the file. Networks of random weights are chaotic: what
        differs in one layer grows from there.
      layer_lsb: the largest error that a layer adds of its own, in steps of its output.
      seconds: from the float model to the compared file.
    """

    name: str
    reason: str
    parameters: int = 0
    file_bytes: int = 0
    operators: int = 0
    agreement: float | None = None
    noise: float | None = None
    layer_lsb: float | None = None
    seconds: float = float("nan")


def application(name: str, **options: Any) -> keras.Model:
    """A model with random weights, at the smallest input that it takes."""
    side = MODELS[name][0]
    return getattr(keras.applications, name)(input_shape=(side, side, 3), weights=None, classes=CLASSES, **options)


def images(name: str, count: int) -> np.ndarray:
    """Random images of few colours and large patches, in the range that a model takes."""
    side, (low, high) = MODELS[name]
    rng = np.random.default_rng(0)
    patches = rng.uniform(low, high, (count, 4, 4, 3)).astype("float32")
    large = keras.ops.convert_to_numpy(keras.ops.image.resize(patches, (side, side), "bicubic"))
    return np.clip(large + rng.normal(0, 0.1 * (high - low), large.shape).astype("float32"), low, high)


def settle(model: keras.Model, batch: np.ndarray) -> None:
    """Gives BatchNormalization the statistics of a batch: with random weights activations have no sane range."""
    norms = [each for each in model._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
    momenta = [each.momentum for each in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(batch, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def cover(name: str, path: pathlib.Path, options: Mapping[str, Any] | None = None) -> Coverage:
    """Takes a model all the way to a file.

    Raises:
      ValueError: an operation has no rule, or the file would hold float tensors.
    """
    started = time.perf_counter()
    keras.utils.set_random_seed(0)
    model, batch = application(name, **(options or {})), images(name, 32)
    settle(model, batch)
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, batch)
    # Gradients of deep networks with random weights can be too large for float32: scaled on the way, then cut.
    optimizer = keras.optimizers.SGD(1e-5, clipvalue=1.0, loss_scale_factor=1e-20)
    aware.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    loss = aware.train_on_batch(batch[:8], np.arange(8) % CLASSES)
    if not np.isfinite(loss):
        raise ValueError(f"the training step of {name} gave a loss of {loss}")
    measured = tfopt.export_tflite(aware, path)
    found = tfopt.verify_tflite(aware, path, batch, layer_examples=2, use_xnnpack=False)
    return Coverage(
        name,
        "ok",
        model.count_params(),
        measured.bytes,
        sum(measured.ops.values()),
        found.argmax_agreement,
        found.noise.argmax_agreement,
        max(layer.lsb for layer in found.layers if layer.lsb is not None),
        time.perf_counter() - started,
    )


def cover_or_reason(name: str) -> Coverage:
    """`cover`, with the reason where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return cover(name, pathlib.Path(folder) / "model.tflite")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the table shows
            return Coverage(name, f"{type(error).__name__}: {str(error)[:300]}")


def apart(name: str) -> Coverage:
    """`cover_or_reason` in a process of its own, which may run out of memory."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(cover_or_reason, name).result()
        except concurrent.futures.process.BrokenProcessPool:
            return Coverage(name, "the process was killed: too little memory")


def main(_: list[str]) -> None:
    """Prints a line for each model as it is done, then the table."""
    console = rich.console.Console()
    columns = ["model", "parameters", "result", "bytes", "operators", "argmax equal", "by kernels", "layer's LSB"]
    table = rich.table.Table(*columns, "seconds", title="quantize_aware on keras.applications, int8")
    rows = []
    for name in _MODELS.value:
        row = apart(name)
        console.print(dataclasses.asdict(row))
        rows.append(row)
        table.add_row(
            name,
            f"{row.parameters:,}",
            row.reason,
            f"{row.file_bytes:,}",
            str(row.operators),
            *("" if each is None else f"{each:.2f}" for each in (row.agreement, row.noise, row.layer_lsb)),
            f"{row.seconds:.0f}",
        )
    console.print(table)
    done = sum(row.reason == "ok" for row in rows)
    console.print(f"{done} of {len(rows)} models are int8 throughout; {describe_environment()['cpu']}")


if __name__ == "__main__":
    app.run(main)
