"""Tables in CSV and Parquet files: numbers, text or encoded images."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.config import did_you_mean, require
from tfopt.data.arrow import Table, read_table
from tfopt.data.dataset import SPLITS, Data, from_arrays
from tfopt.data.image import Images, look_at
from tfopt.data.labels import Task, as_targets
from tfopt.data.policy import Policy, check_policy

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
# As pyarrow and pandas take them.
_MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null")


def from_table(
    path: str | os.PathLike[str],
    target: str,
    *,
    features: Sequence[str] | None = None,
    split: str | None = None,
    where: Mapping[str, Any] | None = None,
    groups: str | None = None,
    task: Task | None = None,
    class_names: Sequence[str] = (),
    missing: Sequence[str] = _MISSING,
    on_bad: Policy = "raise",
    image_size: tuple[int, int] | None = None,
    channels: int = 3,
    value_range: tuple[float, float] = (0.0, 1.0),
    cache: bool = True,
    **options: Any,
) -> Data:
    """Makes `Data` of a table with a row for each example, which is read into memory.

    The inputs are one of
      - columns of numbers: float32, shape (columns,), NaN where one is missing;
      - a column of text: strings, shape ();
      - a column of encoded images (JPEG, PNG, BMP or GIF; as bytes, or as "bytes" in a struct): resized.

    Text, truth values and whole numbers in the target are labels of classes in rising order; other numbers are float32
    targets of a regression.

    Args:
      path: `.csv` or `.tsv`, also with `.gz`, whose first line names the columns; or `.parquet`.
      target: the column of labels or targets.
      features: the columns of inputs; None: all that have no other part.
      split: the column that says train, validation (val, valid, dev) or test; None: splits are drawn. Rows that stand
        in two splits are found by `tfopt.data.clean`.
      where: the rows to take, by column the value that they have.
      groups: the column of what must stay in one split, such as subjects.
      task: "classification" or "regression", where the target alone does not tell.
      class_names: of the classes; then whole numbers in the target are their places. Else as they are found.
      missing: in CSV, what stands for a missing number or label.
      on_bad: what to do with rows without a target, text or image, with too many or few values, with an infinite target
        or an image that cannot be used: "raise"; "skip" them; or "repair" the channels of images, take missing text for
        "", and skip the others. `Data.skipped` names each, the first row being 0.
      image_size: (height, width) of images.
      channels: of images: 1, 3 or 4.
      value_range: of images: what pixel values 0 and 255 become.
      cache: keep the resized images in memory, as uint8.
      **options: those of `from_arrays`, such as `test_fraction`, `stratify`, `seed` and `batch_size`.

    Raises:
      ImportError: pyarrow is not installed.
      FileNotFoundError: no such file.
      ValueError: a file that cannot be read, an unknown or repeated column, no rows, inputs of several kinds, or a bad
        row under "raise".

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "spam.csv")
    >>> _ = path.write_text("kind,text\\n" + "ham,see you at six\\nspam,win a prize\\n" * 10)
    >>> data = from_table(path, "kind", batch_size=8)
    >>> data.sizes, data.class_names, data.input_shape
    ({'train': 16, 'validation': 2, 'test': 2}, ('ham', 'spam'), ())
    """
    check_policy(on_bad)
    path, where = pathlib.Path(path).expanduser(), where or {}
    images = None if image_size is None else Images(image_size, channels, value_range, cache)
    table = read_table(path, missing, skip=on_bad != "raise")
    parts = [each for each in (target, split, groups, *where) if each is not None]
    names = [each for each in table.columns if each not in parts] if features is None else list(features)
    for name in (*parts, *names):
        require(name in table.columns, f"{path} has no column {name!r}: {did_you_mean(name, table.columns)}")
    require(bool(names), f"{path} has no columns of inputs beside {', '.join(parts)}")
    require(target not in names, f"the target {target!r} is among the features: the model would read it off")
    chosen = _chosen(path, table, where)
    columns, rows = {name: table.columns[name][chosen] for name in {*names, *parts}}, table.rows[chosen]
    x, faults = _inputs({name: columns[name] for name in names}, images, on_bad)
    # In Parquet what is missing is marked as such.
    empty = () if path.suffix.lower() == ".parquet" else missing
    for name in (each for each in (target, split, groups) if each is not None):
        faults = np.where(_is_missing(columns[name], empty), f"there is nothing in the column {name!r}", faults)
    if columns[target].dtype.kind == "f":
        faults = np.where(np.isinf(columns[target]), "the target is infinite", faults)
    skipped = {f"row {row}": fault for row, fault in table.bad.items()}
    for row in np.flatnonzero(faults != ""):
        require(on_bad != "raise", f'row {rows[row]} of {path}: {faults[row]}. Mend it, or pass on_bad="skip"')
        skipped[f"row {rows[row]}"] = faults[row]
    good = np.flatnonzero(faults == "")
    require(good.size > 0, f"none of the {len(rows)} rows of {path} can be used; the first: {faults[0]}")
    y, class_names = as_targets(columns[target][good], class_names, task)
    given = {"train": np.arange(len(good))} if split is None else _given_splits(columns[split][good], split)
    arrays: dict[str, Any] = {name: (x[good[part]], y[part]) for name, part in given.items()}
    data = from_arrays(
        **arrays,
        groups=None if groups is None else columns[groups][good[given["train"]]],
        **{"name": path.name.partition(".")[0], **options},
        class_names=class_names,
        skipped=skipped,
    )
    return data if images is None else images.of(data, lambda content, label: (content, label))


def _chosen(path: pathlib.Path, table: Table, where: Mapping[str, Any]) -> np.ndarray:
    """The places of the rows that have these values."""
    chosen = np.ones(len(table.rows), bool)
    for name, value in where.items():
        chosen &= table.columns[name] == value
        if not chosen.any():
            found = sorted({str(each) for each in table.columns[name]})
            raise ValueError(f"no row of {path} has {where}: the column {name!r} holds {', '.join(found[:20])}")
    return np.flatnonzero(chosen)


def _is_missing(values: np.ndarray, empty: Sequence[str]) -> np.ndarray:
    """Which are None, NaN, or text that stands for nothing."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind != "O":
        return np.zeros(len(values), bool)
    return np.array([each is None or (isinstance(each, str) and each.strip() in empty) for each in values], bool)


def _are_flags(values: np.ndarray) -> bool:
    return values.dtype.kind == "O" and {type(each) for each in values} == {bool, type(None)}


def _inputs(columns: Mapping[str, np.ndarray], images: Images | None, on_bad: Policy) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of all rows, and why each cannot be used, "" where it can."""
    # Truth values, of which some are missing.
    columns = {name: values.astype("float64") if _are_flags(values) else values for name, values in columns.items()}
    first = {name: next((each for each in values if each is not None), "") for name, values in columns.items()}
    texts = [name for name, values in columns.items() if values.dtype.kind == "O"]
    x = next(iter(columns.values()))
    faults = np.full(len(x), "", object)
    if not texts:
        require(images is None, f"image_size is for a column of images, and {', '.join(columns)} hold numbers")
        wide = np.stack([values.astype("float64") for values in columns.values()], axis=-1)
        with np.errstate(over="ignore"):
            x = wide.astype("float32")
        faults[(np.isfinite(wide) & ~np.isfinite(x)).any(-1)] = "a number is too large for float32"
        return x, faults
    require(
        len(columns) == 1,
        f"the inputs must be columns of numbers, or one of text or images; {texts[0]!r} holds "
        f"{str(first[texts[0]])[:40]!r} beside others: choose with features=, say with missing= what stands for none, "
        "or make numbers of the text",
    )
    is_bytes = isinstance(first[texts[0]], bytes)
    require(
        is_bytes == (images is not None),
        f"the column {texts[0]!r} holds {'images: pass image_size=(height, width)' if is_bytes else 'no images'}",
    )
    none = np.array([each is None for each in x])
    if images is None:
        if on_bad == "repair":
            return np.where(none, "", x), faults
        faults[none] = f"there is no text in the column {texts[0]!r}"
        return x, faults

    found = look_at(
        list(x), lambda content: images.fault(content or b"", on_bad), lambda fault: on_bad == "raise" and bool(fault)
    )
    faults[: len(found)] = [each and f"the image: {each}" for each in found]
    return x, faults


def _given_splits(names: np.ndarray, column: str) -> dict[str, np.ndarray]:
    """The rows of each split, by what the column says."""
    known = {name: split for split, spelled in _SPLIT_NAMES.items() for name in spelled}
    found = np.array([known.get(str(each).strip().lower(), "") for each in names], object)
    require(
        not (found == "").any(),
        f"the column {column!r} holds {', '.join(sorted({str(each) for each in names[found == '']})[:10])}, and splits "
        f"are named {', '.join(known)}: choose rows with where=, or leave split out to draw splits",
    )
    require("train" in found, f"the column {column!r} names no rows of training, only {', '.join(sorted(set(found)))}")
    return {split: np.flatnonzero(found == split) for split in SPLITS if split in found}
