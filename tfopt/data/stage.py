"""The stages `LoadTFDS`, `LoadFolder`, `LoadData`, `Clean`, `Prepare` and `Augment`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tfopt.augment import Augmentation
from tfopt.config import require
from tfopt.data import Data, Preparation, from_folder, from_tfds, prepare
from tfopt.data.clean import Cleaned, look_and_clean
from tfopt.data.policy import Policy, check_policy
from tfopt.data.prepare import save_prepared
from tfopt.stage import Outcome, Stage, Work


@dataclasses.dataclass(frozen=True, repr=False)
class LoadTFDS(Stage):
    """Loads a TFDS image classification set by name; see `tfopt.data.from_tfds`.

    Args:
      dataset: its name as in `tfds.load`; "digits" ships with tfopt's dependencies.
      data_dir: folder of the prepared sets; None: TFDS_DATA_DIR, or ~/tensorflow_datasets.
      batch_size: examples a training step.
      validation_fraction: share of the training split to hold out, in (0, 1).
      value_range: what pixel values 0 and 255 become.
      download: fetch the set where it is not on disk.

    >>> LoadTFDS("cifar10", batch_size=128)
    LoadTFDS(dataset='cifar10', batch_size=128)
    """

    dataset: str = "digits"
    data_dir: str | os.PathLike[str] | None = None
    batch_size: int = 64
    validation_fraction: float = 0.1
    value_range: tuple[float, float] = (0.0, 1.0)
    download: bool = False

    def validate(self, work: Work) -> Work:
        """Finds the set and looks at its features."""
        return work.replace(data=self._load(work.seed))

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Loads the set."""
        return _loaded(work, self._load(work.seed), "examples", "examples")

    def _load(self, seed: int) -> Data:
        return _once(
            self,
            seed,
            lambda: from_tfds(
                self.dataset,
                self.data_dir,
                batch_size=self.batch_size,
                validation_fraction=self.validation_fraction,
                value_range=self.value_range,
                seed=seed,
                download=self.download,
            ),
        )


@dataclasses.dataclass(frozen=True, repr=False)
class LoadFolder(Stage):
    """Loads a folder of images, a folder for each class; see `tfopt.data.from_folder`.

    Args:
      path: of the folder.
      image_size: (height, width) of what the model receives.
      channels: 1, 3 or 4.
      on_bad: "raise", "skip" or "repair"; what is skipped is in the report.
      batch_size: examples a training step.
      validation_fraction: share of each class to hold out, in (0, 1), where there is no folder for it; the same for
        the test split.
      value_range: what pixel values 0 and 255 become.

    >>> LoadFolder("flowers", (96, 96), on_bad="skip")
    LoadFolder(path='flowers', image_size=(96, 96), on_bad='skip')
    """

    path: str | os.PathLike[str]
    image_size: tuple[int, int]
    channels: int = 3
    on_bad: Policy = "raise"
    batch_size: int = 64
    validation_fraction: float = 0.1
    value_range: tuple[float, float] = (0.0, 1.0)

    def validate(self, work: Work) -> Work:
        """Looks at every file."""
        return work.replace(data=self._load(work.seed))

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Loads the images."""
        return _loaded(work, self._load(work.seed), "images", "files")

    def _load(self, seed: int) -> Data:
        return _once(
            self,
            seed,
            lambda: from_folder(
                self.path,
                self.image_size,
                channels=self.channels,
                on_bad=self.on_bad,
                batch_size=self.batch_size,
                validation_fraction=self.validation_fraction,
                test_fraction=self.validation_fraction,
                value_range=self.value_range,
                seed=seed,
            ),
        )


@dataclasses.dataclass(frozen=True, repr=False)
class LoadData(Stage):
    """Loads data from any source: `source(**options)`, with the chain's seed where the options name none.

    Args:
      source: a function that returns `Data`, such as `tfopt.from_npz` or `tfopt.data.from_table`.
      options: its arguments by name.

    >>> from tfopt.data.npy import from_npz
    >>> LoadData(from_npz, {"path": "set.npz", "groups": "who"})
    LoadData(source=tfopt.data.npy.from_npz, options={'path': 'set.npz', 'groups': 'who'})
    """

    source: Callable[..., Data]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def validate(self, work: Work) -> Work:
        """Loads the data."""
        return work.replace(data=self._load(work.seed))

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Loads the data."""
        return _loaded(work, self._load(work.seed), "examples", "examples")

    def _load(self, seed: int) -> Data:
        data = _once(self, seed, lambda: self.source(**{"seed": seed, **self.options}))
        if not isinstance(data, Data):
            raise TypeError(f"the source must return tfopt.Data, it returned {type(data).__name__}")
        return data


@dataclasses.dataclass(frozen=True, repr=False)
class Clean(Stage):
    """Leaves out, or repairs, what spoils training or what is measured after it; see `tfopt.data.clean`.

    Args:
      on_bad: "raise", "skip" or "repair"; what is skipped is in the report.
      max_imbalance: how many times as many examples as the smallest class the largest may have in training.
      keep_nan: NaN in inputs stands for a missing value, which a later stage imputes.
    """

    on_bad: Policy = "raise"
    max_imbalance: float = 100.0
    keep_nan: bool = False

    def __post_init__(self) -> None:
        check_policy(self.on_bad)

    def validate(self, work: Work) -> Work:
        """Looks at every example."""
        return work.replace(data=_clean(work.need_data(), self).data)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Cleans the data."""
        before = work.need_data()
        found = _clean(before, self)
        left_out = sum(before.sizes.values()) - sum(found.data.sizes.values())
        notes = [f"{left_out:,} examples left out, {len(found.repaired):,} repaired", *found.warnings]
        skipped = [
            {"layer": name, "reason": reason}
            for name, reason in found.data.skipped.items()
            if name not in before.skipped
        ]
        return Outcome(work.replace(data=found.data), changed=found.repaired, skipped=skipped, notes=notes)


# The same data are looked at once: a chain is validated before it runs.
@functools.lru_cache(maxsize=1)
def _clean(data: Data, stage: Clean) -> Cleaned:
    return look_and_clean(data, stage.on_bad, stage.max_imbalance, stage.keep_nan)


@dataclasses.dataclass(frozen=True, repr=False)
class Prepare(Stage):
    """Prepares the inputs of all splits by what the training split alone shows; see `tfopt.data.prepare`.

    Args:
      steps: one after the other.
      cache: keep the prepared examples in memory.

    What the steps learned is written to the stage's folder, for use with the trained model.
    """

    steps: tuple[Preparation, ...]
    cache: bool = True

    def validate(self, work: Work) -> Work:
        """Prepares the data."""
        return work.replace(data=_prepare(work.need_data(), self.steps, self.cache))

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Prepares the data."""
        before = work.need_data().input_shape
        work = self.validate(work)
        notes = [f"{', '.join(map(repr, self.steps))}: inputs of shape {before} to {work.need_data().input_shape}"]
        if names := save_prepared(work.need_data().prepared, folder):
            notes.append(f"what they learned: {', '.join(names)}")
        return Outcome(work, notes=notes)


@dataclasses.dataclass(frozen=True, repr=False)
class Augment(Stage):
    """Augments the training images from here on; see `tfopt.augment`.

    Args:
      augmentations: one after the other; they replace those that the data have.

    >>> from tfopt.augment import Flip, PadCrop
    >>> Augment((Flip(), PadCrop(4)))
    Augment(augmentations=(Flip(), PadCrop()))
    """

    augmentations: tuple[Augmentation, ...]

    def __post_init__(self) -> None:
        require(
            isinstance(self.augmentations, tuple)
            and all(isinstance(each, Augmentation) for each in self.augmentations),
            f"augmentations must be a tuple of those in tfopt.augment, received {self.augmentations!r}",
        )

    def validate(self, work: Work) -> Work:
        """Tries the augmentations on the shape and type of the images."""
        return work.replace(data=dataclasses.replace(work.need_data(), augment=self.augmentations))

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Sets the augmentations."""
        names = ", ".join(map(repr, self.augmentations)) or "none"
        return Outcome(self.validate(work), notes=[f"augmentations of training images: {names}"])


def _loaded(work: Work, data: Data, what: str, unread: str) -> Outcome:
    sizes = ", ".join(f"{size:,} {split}" for split, size in data.sizes.items())
    left_out = f"; {len(data.skipped):,} {unread} left out" if data.skipped else ""
    notes = [f"{data.name}: {sizes} {what} of shape {data.input_shape}{left_out}"]
    skipped = [{"layer": name, "reason": reason} for name, reason in data.skipped.items()]
    return Outcome(work.replace(data=data), notes=notes, skipped=skipped)


# The same for what was learned of the data.
@functools.lru_cache(maxsize=1)
def _prepare(data: Data, steps: tuple[Preparation, ...], cache: bool) -> Data:
    return prepare(data, steps, cache=cache)


# What a stage of each type loaded last: the validation of a chain and the run after it share the data and their caches.
_kept: dict[type[Stage], tuple[Stage, int, Data]] = {}


def _once(stage: Stage, seed: int, load: Callable[[], Data]) -> Data:
    before, its_seed, data = _kept.get(type(stage), (None, None, None))
    if data is None or seed != its_seed or not _same(stage, before):
        # One set at a time is in memory.
        _kept.pop(type(stage), None)
        data = load()
        _kept[type(stage)] = stage, seed, data
    return data


def _same(stage: Stage, other: Stage | None) -> bool:
    if stage is other:
        return True
    try:
        return hash(stage) == hash(other) and stage == other
    except TypeError:
        # Options in a mapping, where arrays may be: these are equal only if they are the same.
        return False
