"""Throughput of augmentations against Keras' layers and hand-written tf.image, and against decoding a JPEG.

    python -m recipes.benchmarks.augmentation --side=64 --rounds=9

All in one process, on the same images and the same threads, in turns: medians of times, and of the ratios of each turn.
Times are the processor's, of all threads of the process together: those of other processes on the machine do not count,
though they share its caches. On one thread that is what a batch costs; how well several share the work is not told.
Ours give images of the type that they take; of uint8 most of Keras' make float32: the last column is with a cast back.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
from absl import app, flags

from recipes.benchmarks.rounds import ROUNDS
from tfopt import augment
from tfopt.config import require
from tfopt.report import describe_environment

_SIDE = flags.DEFINE_integer("side", 64, "Height and width of the images.", lower_bound=8)
_BATCH = flags.DEFINE_integer("batch", 128, "Images a batch.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 8, "Batches in a turn.", lower_bound=1)
_FLOAT = flags.DEFINE_bool("float", False, "Images as float32 in [0, 1] in place of uint8.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the pipeline.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Names of operations in the table, if not all.")

Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def by_hand(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Four operations on each image, as tutorials write them with stateless tf.image."""

    def one(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, seed = tf.image.convert_image_dtype(pair[0], tf.float32), tf.stack([tf.cast(pair[1], tf.int32), 0])
        image = tf.image.stateless_random_flip_left_right(image, seed)
        image = tf.image.stateless_random_brightness(image, 0.2, seed)
        image = tf.image.stateless_random_contrast(image, 0.8, 1.2, seed)
        return tf.clip_by_value(tf.image.stateless_random_saturation(image, 0.8, 1.2, seed), 0.0, 1.0)

    return tf.map_fn(one, (images, seeds), fn_output_signature=tf.float32)


def of_keras(layer: keras.layers.Layer) -> Change:
    """A layer of Keras in training."""
    return lambda images, seeds: layer(images, training=True)


def in_type(change: Change) -> Change:
    """A change whose result is brought to the type of the images, as ours are."""
    return lambda images, seeds: tf.cast(change(images, seeds), images.dtype)


def variants(side: int) -> dict[str, tuple[Change, Change | None]]:
    """By operation, ours and the one to compare with."""
    layers, high = keras.layers, {"value_range": (0, 1) if _FLOAT.value else (0, 255)}
    four = (augment.Flip(), augment.Brightness(), augment.Contrast(), augment.Saturation())
    kept = side * 7 // 8
    every: dict[str, tuple[Change, Change | None]] = {
        "flip": (augment.Flip(), of_keras(layers.RandomFlip("horizontal"))),
        "crop": (augment.Crop(kept, kept), of_keras(layers.RandomCrop(kept, kept))),
        "pad and crop": (augment.PadCrop(4), None),
        "resize": (augment.Resize(kept, kept), of_keras(layers.Resizing(kept, kept))),
        "rotation": (augment.Affine(degrees=20.0), of_keras(layers.RandomRotation(20 / 360, fill_mode="constant"))),
        "shift": (augment.Affine(shift=0.1), of_keras(layers.RandomTranslation(0.1, 0.1, fill_mode="constant"))),
        "zoom": (augment.Affine(zoom=(0.9, 1.1)), of_keras(layers.RandomZoom(0.1, fill_mode="constant"))),
        "shear": (augment.Affine(shear=10.0), of_keras(layers.RandomShear(0.1, 0.1, fill_mode="constant"))),
        "erase": (augment.Erase(1.0), of_keras(layers.RandomErasing(1.0, **high))),
        "brightness": (augment.Brightness(), of_keras(layers.RandomBrightness(0.2, **high))),
        "contrast": (augment.Contrast(), of_keras(layers.RandomContrast(0.2, **high))),
        "saturation": (augment.Saturation(), of_keras(layers.RandomSaturation(0.2, **high))),
        "hue": (augment.Hue(), of_keras(layers.RandomHue(0.05, **high))),
        "RandAugment": (augment.RandAugment(), of_keras(layers.RandAugment(**high))),
        "AugMix": (augment.AugMix(), of_keras(layers.AugMix(**high))),
        "TrivialAugment": (augment.TrivialAugment(), None),
        "4 operations": (lambda images, seeds: augment.chain(four, images, seeds), by_hand),
    }
    unknown = set(_ONLY.value) - set(every)
    require(not unknown, f"--only takes names out of {sorted(every)}, received {sorted(unknown)}")
    return {name: pair for name, pair in every.items() if name in _ONLY.value or not _ONLY.value}


def pipeline(images: np.ndarray, change: Change, threads: int) -> tf.data.Dataset:
    """Batches through a change, on so many threads."""
    seeds = np.arange(len(images), dtype="int64")
    batches = tf.data.Dataset.from_tensors((images, seeds)).repeat(_BATCHES.value + 1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return batches.map(change, num_parallel_calls=threads).with_options(options)


def seconds(batches: tf.data.Dataset) -> float:
    """Processor time of an element, without the first: an epoch has one start and many batches."""
    elements = iter(batches)
    next(elements)
    started, count = time.process_time(), 0
    for each in elements:
        count += 1
        del each
    return (time.process_time() - started) / count


def main(_: list[str]) -> None:
    """Prints the table."""
    side, count = _SIDE.value, _BATCH.value
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 8, side // 8, 3)).astype("uint8")
    images = tf.cast(tf.image.resize(coarse, (side, side), "bicubic"), tf.uint8).numpy()
    shown = (images / 255.0).astype("float32") if _FLOAT.value else images
    encoded = np.array([tf.io.encode_jpeg(each).numpy() for each in images])
    jpegs = tf.data.Dataset.from_tensor_slices(encoded).repeat(_BATCHES.value)
    options = tf.data.Options()
    options.threading.private_threadpool_size = _THREADS.value
    decoding = jpegs.map(tf.io.decode_jpeg, num_parallel_calls=_THREADS.value).with_options(options)
    pipelines: dict[str, tf.data.Dataset] = {"jpeg": decoding}
    for name, pair in variants(side).items():
        ours, theirs = pair
        pipelines[f"{name}/ours"] = pipeline(shown, ours, _THREADS.value)
        if theirs is not None:
            pipelines[f"{name}/theirs"] = pipeline(shown, theirs, _THREADS.value)
            pipelines[f"{name}/in type"] = pipeline(shown, in_type(theirs), _THREADS.value)
    measured: dict[str, list[float]] = {name: [] for name in pipelines}
    for batches in pipelines.values():
        seconds(batches)
    for _round in range(ROUNDS.value):
        for name, batches in pipelines.items():
            measured[name].append(seconds(batches))
    each = {name: statistics.median(times) / count * 1e6 for name, times in measured.items()}
    each["jpeg"] *= count
    table = rich.table.Table(
        "augmentation",
        "CPU µs an image",
        "of a JPEG's decoding",
        "Keras or tf.image, µs",
        "times as fast",
        f"its result as {shown.dtype}",
    )
    for name in variants(side):
        own, compared = f"{name}/ours", ["", "", ""]
        if f"{name}/theirs" in each:
            # Of neighbours in time: the machine is not as fast in every turn.
            ratios = [np.divide(measured[f"{name}/{other}"], measured[own]) for other in ("theirs", "in type")]
            compared = [f"{each[f'{name}/theirs']:.1f}", *(f"{statistics.median(ratio):.2f}" for ratio in ratios)]
        table.add_row(name, f"{each[own]:.1f}", f"{each[own] / each['jpeg']:.2f}", *compared)
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"{side} x {side} x 3 {shown.dtype}, decoding {each['jpeg']:.1f} µs; {_THREADS.value} thread(s), "
        f"{describe_environment()['cpu']}"
    )


if __name__ == "__main__":
    app.run(main)
