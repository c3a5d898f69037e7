"""What limits a pipeline: the time of each of its parts, and what to change."""

import dataclasses
import io
import itertools
import statistics
import time
from collections.abc import Mapping

import rich.console
import rich.table
import tensorflow as tf

from tfopt.config import require
from tfopt.data.dataset import Data
from tfopt.data.pipeline import Pipeline

_ADVICE = {
    "source": "keep the examples in memory with .cache() on the splits, or store them in fewer, larger files",
    "read": 'decode once: Pipeline(cache="memory"), or Pipeline(snapshot=folder) for more than fits; or let other '
    "processes do it: Pipeline(service=...)",
    "batch": "use a larger batch_size, or smaller types such as uint8, scaled in `transform`",
    "augment": "take cheaper augmentations (recipes/benchmarks/augmentation.py has their costs), and uint8 images; or "
    "let other processes do it: Pipeline(service=...)",
    "transform": "do in the splits, before a .cache(), what is the same in every epoch, or leave it to the model",
    "transfer": "pass smaller types, uint8 for instance, and scale them in the model; to an accelerator prefetch "
    "(Pipeline(device=...))",
}


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a training pipeline goes.

    Args:
      milliseconds: by part, what it adds to the time of a batch; parallel as in training. "source": reading the
        elements of the split; "read", "batch", "augment", "transform": as in `Data`; "transfer": handing batches over.
      batch_size: examples a batch.
    """

    milliseconds: Mapping[str, float]
    batch_size: int

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        return max(self.milliseconds, key=self.milliseconds.__getitem__)

    @property
    def advice(self) -> str:
        """What to change first."""
        return _ADVICE[self.limit]

    def __str__(self) -> str:
        whole = sum(self.milliseconds.values())
        table = rich.table.Table("part", "ms a batch", "share", title=f"batches of {self.batch_size}")
        for part, each in self.milliseconds.items():
            table.add_row(part, f"{each:.2f}", f"{each / whole:.0%}" if whole else "")
        table.add_row("all", f"{whole:.2f}", f"{1000 * self.batch_size / whole:,.0f} examples/s" if whole else "")
        text = io.StringIO()
        console = rich.console.Console(file=text, width=80)
        console.print(table)
        console.print(f"{self.limit} limits it: {self.advice}")
        return text.getvalue()


def profile(data: Data, batches: int = 20, rounds: int = 3) -> Profile:
    """Measures the parts of a training pipeline, without the shuffle.

    Each part is timed with those before it, on `batches` batches, in turns; what it adds is the difference of medians.
    Parts run in parallel as they do in training, with the threads of `Data.pipeline`, so one that keeps up with those
    before it adds nothing. What a cache or a snapshot holds is not made again. What workers of a service would
    do is done and measured here.

    Args:
      data: of which the training split is read, once in full before anything is timed, which fills the caches.
      batches: in a turn, at least 1; fewer where the split has fewer.
      rounds: turns, at least 1.

    Raises:
      ValueError: an argument below 1.

    >>> import numpy as np
    >>> from tfopt.data.dataset import from_arrays
    >>> found = profile(from_arrays((np.zeros((200, 4)), np.arange(200) % 2)), batches=2, rounds=1)
    >>> list(found.milliseconds)
    ['source', 'batch', 'transfer']
    """
    require(batches >= 1 and rounds >= 1, f"batches and rounds must be at least 1, received {batches}, {rounds}")
    count = min(batches, data.steps_per_epoch)
    pipeline, (splits, read) = data.pipeline, data._kept
    _seconds_inside(splits["train"])
    elements = splits["train"].take(count * data.batch_size)
    kept = dataclasses.replace(data, splits=splits, read=read, pipeline=Pipeline())
    bare = dataclasses.replace(kept, transform=None, augment=())
    seeds = tf.data.Dataset.counter()
    parts = {"source": elements}
    if read is not None:
        parts["read"] = bare._read(elements)
    parts["batch"] = bare._batched(elements)
    if data.augment:
        parts["augment"] = dataclasses.replace(kept, transform=None)._batched(elements, seeds=seeds)
    if data.transform is not None:
        parts["transform"] = kept._batched(elements, seeds=seeds if data.augment else None)
    parts = {part: pipeline.finish(each) for part, each in parts.items()}
    batches_made = pipeline.hand_over(list(parts.values())[-1])
    turns = []
    for _ in range(rounds + 1):
        times = [_seconds_inside(part) for part in parts.values()]
        turns.append([*times, _seconds_outside(batches_made)])
    # The first turn starts threads.
    medians = [statistics.median(times) * 1000 / count for times in zip(*turns[1:], strict=True)]
    added = [max(0.0, now - before) for before, now in itertools.pairwise([0.0, *medians])]
    return Profile(dict(zip([*parts, "transfer"], added, strict=True)), data.batch_size)


def _seconds_inside(part: tf.data.Dataset) -> float:
    """A pass without handing anything to Python."""
    started = time.perf_counter()
    part.reduce(tf.constant(0, tf.int64), lambda seen, *_: seen + 1).numpy()
    return time.perf_counter() - started


def _seconds_outside(batches: tf.data.Dataset) -> float:
    """A pass as `fit` makes it."""
    started = time.perf_counter()
    for each in batches:
        del each
    return time.perf_counter() - started
