"""Folders of images by class, as `Data`; every file is looked at before any is trained on."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfopt.config import require, require_fraction
from tfopt.data.dataset import SPLITS, Data
from tfopt.data.image import Images, look_at
from tfopt.data.policy import Policy, check_policy
from tfopt.data.split import draw
from tfopt.data.tree import Tree, open_tree

_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclasses.dataclass(frozen=True)
class _File:
    """An image file: its class, what it holds as a digest, and why it cannot be used, "" where it can."""

    name: str
    label: int
    digest: str = ""
    fault: str = ""


def from_folder(
    path: str | os.PathLike[str],
    image_size: tuple[int, int],
    *,
    channels: int = 3,
    on_bad: Policy = "raise",
    batch_size: int = 64,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    cache: bool = True,
) -> Data:
    """Loads a folder or a ZIP archive of images, a folder for each class, as `Data`.

    `path/cat/1.jpg`; or, with the splits given, `path/train/cat/1.jpg`, `path/validation/…` (or val) and `path/test/…`.
    JPEG, PNG, BMP and GIF (the first picture). All are resized to one size. Splits are drawn class by class, and never
    part equal files. An archive is read where it lies; it may hold one folder with all this in it.

    Args:
      path: of the folder, or of the `.zip`.
      image_size: (height, width) of what the model receives.
      channels: 1, 3 or 4.
      on_bad: what to do with files that are empty, damaged, no image, too large or of another number of channels:
        "raise"; "skip" them; or "repair" the channels and skip the others. Where the splits are given, a file of
        training that is in validation or test too is bad as well, and one of validation that is in test. `Data.skipped`
        names each with the reason.
      batch_size: examples a training step.
      validation_fraction: share of each class to hold out, in (0, 1), where there is no folder for it.
      test_fraction: the same.
      value_range: what pixel values 0 and 255 become.
      seed: fixes the splits and the order of every epoch.
      cache: keep the resized images in memory, as uint8.

    Raises:
      FileNotFoundError: no such folder or archive.
      ValueError: a bad file under "raise", no images, a damaged archive, a class without enough of them, or classes
        that differ between the splits.

    Source of the layout: `keras.utils.image_dataset_from_directory`.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for number in range(20):
    ...     _ = (folder / "ab"[number % 2]).mkdir(exist_ok=True)
    ...     image = tf.io.encode_png(tf.fill((4, 4, 3), tf.cast(number, tf.uint8)))
    ...     _ = (folder / "ab"[number % 2] / f"{number}.png").write_bytes(image.numpy())
    >>> data = from_folder(folder, (8, 8))
    >>> data.sizes, data.class_names, data.input_shape
    ({'train': 16, 'validation': 2, 'test': 2}, ('a', 'b'), (8, 8, 3))
    """
    check_policy(on_bad)
    images = Images(image_size, channels, value_range, cache)
    fractions = {"validation": validation_fraction, "test": test_fraction}
    for name, fraction in fractions.items():
        require_fraction(f"{name}_fraction", fraction)
    root = pathlib.Path(path).expanduser()
    tree = open_tree(root)
    given = _given_splits(tree)
    class_names = _class_names(tree, given)
    parts = {split: _scan(tree, below, class_names, images, on_bad) for split, below in given.items()}
    parts, skipped = _apart(tree, parts, on_bad)
    known = {each.label for each in parts["train"]}
    empty = [str(root / given["train"] / name) for label, name in enumerate(class_names) if label not in known]
    require(not empty, f"{', '.join(empty)} has no images that can be used in training: add some, or remove the folder")
    missing = {split: fractions[split] for split in ("validation", "test") if split not in parts}
    if missing:
        parts |= _draw_by_class(parts["train"], missing, class_names, seed)
    data = Data(
        {split: _named(parts[split]) for split in SPLITS},
        name=root.resolve().stem if tree.archive else root.resolve().name,
        class_names=class_names,
        batch_size=batch_size,
        seed=seed,
        skipped=skipped,
    )
    return images.of(data, lambda name, label: (tree.load(name), label))


def _given_splits(tree: Tree) -> dict[str, str]:
    """The folders of the splits, with "/" at their end; that of all images, as "train", where there are none."""
    found = {split: f"{name}/" for split, names in _SPLIT_FOLDERS.items() for name in names if name in tree.folders}
    return found if "train" in found else {"train": ""}


def _class_names(tree: Tree, given: Mapping[str, str]) -> tuple[str, ...]:
    """The folders with images, the same in all splits."""
    names: tuple[str, ...] | None = None
    for below in given.values():
        inner = [each.removeprefix(below) for each in tree.folders if each.startswith(below)]
        own, where = tuple(each for each in inner if "/" not in each), tree.root / below
        require(bool(own), f"{where} has no folders: put the images of each class into a folder of its own")
        require(
            names in (None, own), f"{where} has the classes {', '.join(own)}, other splits {', '.join(names or ())}"
        )
        names = own
    return names or ()


def _scan(tree: Tree, below: str, class_names: Sequence[str], images: Images, on_bad: Policy) -> list[_File]:
    """The files of a split in the order of their names, the bad ones with their fault."""
    labels = {name: label for label, name in enumerate(class_names)}
    inner = [name.removeprefix(below) for name in tree.files if name.startswith(below)]
    files = [_File(below + name, labels[name.partition("/")[0]]) for name in inner if "/" in name]
    require(bool(files), f"there are no files in the folders of {tree.root / below}")
    found = look_at(
        files,
        functools.partial(_look, tree, images, on_bad),
        lambda each: on_bad == "raise" and bool(each.fault),
    )
    if on_bad == "raise" and found[-1].fault:
        way_out = 'Mend it, or pass on_bad="skip" or "repair"'
        raise ValueError(f"{tree.root / found[-1].name} cannot be used: {found[-1].fault}. {way_out}")
    require(
        not all(each.fault for each in found),
        f"none of the {len(files)} files in {tree.root / below} can be used; the first: {found[0].fault}",
    )
    return found


def _look(tree: Tree, images: Images, on_bad: Policy, file: _File) -> _File:
    """Reads a file and decodes it once; the fault is told, not raised."""
    try:
        content = tree.content(file.name)
    except OSError as error:
        return dataclasses.replace(file, fault=f"it cannot be read ({error.strerror})")
    fault = images.fault(content, on_bad)
    return dataclasses.replace(file, digest=hashlib.sha256(content).hexdigest(), fault=fault)


def _apart(
    tree: Tree, parts: Mapping[str, Sequence[_File]], on_bad: Policy
) -> tuple[dict[str, list[_File]], dict[str, str]]:
    """The good files by split, none of which is in two of them, and why the others are left out."""
    kept, skipped, seen = dict[str, list[_File]](), {}, dict[str, str]()
    # What measures is kept as it is: a copy goes from what trains.
    for split in reversed([each for each in SPLITS if each in parts]):
        reasons = {each.name: each.fault for each in parts[split] if each.fault}
        for each in parts[split]:
            if each.name in reasons or each.digest not in seen:
                continue
            reasons[each.name] = f"it is equal to {seen[each.digest]}"
            if on_bad == "raise":
                raise ValueError(
                    f"{tree.root / each.name} is equal to {seen[each.digest]}: what is measured would have been "
                    'trained on. Remove one, or pass on_bad="skip"'
                )
        kept[split] = [each for each in parts[split] if each.name not in reasons]
        seen.update({each.digest: each.name for each in kept[split]})
        skipped.update(reasons)
        require(bool(kept[split]), f"all files of the {split} split of {tree.root} are in another split too")
    return kept, skipped


def _draw_by_class(
    files: Sequence[_File], fractions: Mapping[str, float], class_names: Sequence[str], seed: int
) -> dict[str, list[_File]]:
    """Splits drawn from each class alike; files of equal content are in one split."""
    classes: dict[str, str] = {}
    for each in files:
        classes.setdefault(each.digest, class_names[each.label])
    drawn = draw(len(classes), fractions, seed, labels=np.array(list(classes.values()), object))
    digests = list(classes)
    split_of = {digests[row]: split for split, rows in drawn.items() for row in rows}
    parts: dict[str, list[_File]] = {split: [] for split in drawn}
    for each in files:
        parts[split_of[each.digest]].append(each)
    return parts


def _named(files: Sequence[_File]) -> tf.data.Dataset:
    labels = np.array([each.label for each in files])
    return tf.data.Dataset.from_tensor_slices(([each.name for each in files], labels))
