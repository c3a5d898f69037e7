"""What `reach` compares with: the float model, its plain int8 file, and what training and measuring take here."""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfopt.augment import Augmentation, Flip, PadCrop
from tfopt.data import Data
from tfopt.evaluation import evaluate
from tfopt.files import atomic_path, write_text
from tfopt.measure.latency import measure_latencies, measure_latency
from tfopt.measure.model_metrics import metrics
from tfopt.record import Record
from tfopt.tflite.export import export_tflite
from tfopt.train.task import task_of

FOLDER, FILE = "reference", "plain.tflite"
# Turns of a measurement of latency, of which the median counts: a process may be placed badly for its whole life.
_TURNS, _RUNS = 3, 60
# Steps for the time of an epoch, the median of which counts, and steps before them: the first ones wait for data, too.
_STEPS, _WARM_UP = 40, 10
# Standard errors by which a model that has not seen the validation split may be better there than on the test split.
_ERRORS = 4.0
# How much accuracy a model may lose on augmented images that it is trained on.
_BEARABLE = 0.03
# Height and width of images below which a shift by a tenth is a pixel at most.
_SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Reference(Record):
    """Where a search begins.

    Args:
      metric: "accuracy" or "mae".
      value: of the float model on the examples that decide.
      test_value: of the float model on those that do not.
      plain_value: of the int8 file quantized after training, on the examples that decide.
      plain_test_value: likewise.
      bytes: of that file.
      gzip_bytes: of that file.
      median_ms: of that file.
      has_seen: whether the model knows the validation split, so that half of the test split decides.
      augment: how training images are changed: "mirrored", "shifted"; empty: not, or as the data say.
      epoch_seconds: what an epoch of the float model takes here.
      evaluation_seconds: what an evaluation on the test split takes.
    """

    metric: str
    value: float
    test_value: float
    plain_value: float
    plain_test_value: float
    bytes: int
    gzip_bytes: int
    median_ms: float
    has_seen: bool
    augment: list[str]
    epoch_seconds: float
    evaluation_seconds: float

    def drop(self, value: float, of_test: bool = False) -> float:
        """How much worse than the float model a value is: of accuracy as a fraction, of an error as a share of it."""
        whole = self.test_value if of_test else self.value
        return whole - value if self.metric == "accuracy" else value / max(whole, 1e-12) - 1.0


def measure_reference(model: keras.Model, data: Data, augment: bool, workdir: pathlib.Path) -> tuple[Reference, Data]:
    """Measures the float model and its plain int8 file, once; the data are those to search with.

    Args:
      model: trained.
      data: as they came.
      augment: whether training images are augmented by what the model bears, where the data have no augmentations.
      workdir: where both are kept.
    """
    folder = workdir / FOLDER
    if not (folder / "reference.json").exists():
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            found = _measure(model, data, augment, temporary / FILE)
            write_text(temporary / "reference.json", json.dumps(found.to_dict(), indent=1))
    found = Reference(**json.loads((folder / "reference.json").read_text(encoding="utf-8")))
    return found, _prepared(data, found.has_seen, found.augment)


def _measure(model: keras.Model, data: Data, augment: bool, path: pathlib.Path) -> Reference:
    has_seen = _has_seen(model, data)
    if has_seen:
        logging.warning(
            "the model is so much better on the validation split than on the test split that it must have been trained "
            "on it: half of the test split decides, the other half judges, and the validation split is trained on"
        )
    chosen = _bearable(model, data) if augment and not data.augment else []
    data = _prepared(data, has_seen, chosen)
    started = time.perf_counter()
    evaluate(model, data)
    evaluation_seconds = time.perf_counter() - started
    measured = export_tflite(model, path, "int8", data)
    metric, value = value_of(model, data, "validation")
    return Reference(
        metric=metric,
        value=value,
        test_value=value_of(model, data, "test")[1],
        plain_value=value_of(path, data, "validation", metric)[1],
        plain_test_value=value_of(path, data, "test", metric)[1],
        bytes=measured.bytes,
        gzip_bytes=measured.gzip_bytes,
        median_ms=min(measure_latency(path, runs=_RUNS).median_ms for _ in range(_TURNS)),
        has_seen=has_seen,
        augment=chosen,
        epoch_seconds=_epoch_seconds(model, data),
        evaluation_seconds=evaluation_seconds,
    )


def value_of(model: keras.Model | pathlib.Path, data: Data, split: str, metric: str | None = None) -> tuple[str, float]:
    """The name of the metric that counts, and its value, of a model or a file."""
    task: Any = {"mae": "regression"}.get(metric or "")
    found = metrics(model, data, split, task=task, resamples=1).values
    name = "accuracy" if "accuracy" in found else "mae"
    value = found[name].value
    assert value is not None
    return name, value


def latency_ratio(path: pathlib.Path, plain: pathlib.Path) -> float:
    """The latency of a file as a share of another one's, from runs in turns."""
    ratios = []
    for turn in range(_TURNS):
        first, second = measure_latencies([plain, path], runs=_RUNS, seed=turn)
        ratios.append(second.median_ms / first.median_ms)
    return float(np.median(ratios))


def _has_seen(model: keras.Model, data: Data) -> bool:
    """Whether the model is better on the validation split than chance allows where it was not trained on it."""
    name, validation = value_of(model, data, "validation")
    if name != "accuracy":
        return False
    test = value_of(model, data, "test", name)[1]
    sizes = data.sizes
    variance = test * (1 - test) * (1 / sizes["validation"] + 1 / sizes["test"])
    return validation - test > _ERRORS * math.sqrt(variance)


def _prepared(data: Data, has_seen: bool, augment: Sequence[str]) -> Data:
    """The data to search with."""
    splits, name = dict(data.splits), data.name
    if has_seen:
        test = splits["test"].enumerate()

        def half(rest: int) -> tf.data.Dataset:
            count = len(range(rest, data.sizes["test"], 2))
            chosen = test.filter(lambda number, _: number % 2 == rest).map(lambda _, element: element)
            return chosen.apply(tf.data.experimental.assert_cardinality(count))

        train = splits["train"].concatenate(splits["validation"])
        splits = {"train": train, "validation": half(0), "test": half(1)}
        name = f"{name}, test halved"
    chosen = tuple(_augmentations(data)[each] for each in augment) or data.augment
    return dataclasses.replace(data, splits=splits, name=name, augment=chosen)


def _bearable(model: keras.Model, data: Data) -> list[str]:
    """Of mirroring and shifting, where the inputs are images, what leaves the model's accuracy as it is."""
    shape = data.input_shape
    is_image = isinstance(shape, tuple) and len(shape) == 3 and None not in shape and shape[-1] in (1, 3)
    if not is_image or min(shape[:2]) < _SMALLEST:
        return []
    name, plain = value_of(model, data, "validation")
    if name != "accuracy":
        return []
    found = []
    for name, augmentation in _augmentations(data).items():
        splits = {**data.splits, "train": data.splits["validation"]}
        shown = dataclasses.replace(data, augment=(augmentation,), splits=splits)
        task_of(model, data).compile(model, jit_compile=False)
        changed = model.evaluate(shown.training_batches(0), verbose=0, return_dict=True)["accuracy"]
        if plain - changed <= _BEARABLE:
            found.append(name)
    return found


def _augmentations(data: Data) -> dict[str, Augmentation]:
    return {"mirrored": Flip(), "shifted": PadCrop(min(data.input_shape[:2]) // 10)}


def _epoch_seconds(model: keras.Model, data: Data) -> float:
    """What a pass over the training split takes, from a few steps of a copy."""
    copy, ends = keras.models.clone_model(model), [0.0]
    task_of(model, data).compile(copy, optimizer="adam", jit_compile=False)
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
    steps = _WARM_UP + _STEPS
    batches = data.training_batches(0).repeat()
    copy.fit(batches, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[clock])
    return float(np.median(np.diff(ends)[_WARM_UP:])) * data.steps_per_epoch
