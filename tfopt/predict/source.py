"""`Source`: rows of input files, numbered through, of which any range can be read by any process."""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from tfopt.config import require
from tfopt.tflite.examples import InputSpec


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file, or a member of an archive.

    Args:
      name: relative to the source's root, with "/" between the parts.
      rows: how many it holds.
      stamp: its size and time of change, in words; another one means another file.
    """

    name: str
    rows: int
    stamp: str


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows, the good ones with what they hold and the others with what is wrong.

    Args:
      ids: of all rows, such as the path of an image.
      inputs: of the good ones in order, by the model's inputs.
      faults: why others cannot be used, by their places in `ids`.
    """

    ids: Sequence[str]
    inputs: Mapping[str, np.ndarray]
    faults: Mapping[int, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Source(abc.ABC):
    """Rows of files, one file after the other. It travels to other processes, and reads files only when asked.

    Args:
      root: the folder that the names are relative to.
      files: the files.
      specs: the model's inputs.

    `kind` is what `predict_files` calls the input.
    """

    kind: ClassVar[str]
    root: pathlib.Path
    files: tuple[InputFile, ...]
    specs: tuple[InputSpec, ...]

    @property
    def settings(self) -> dict[str, object]:
        """What else decides what the rows are, for the identity of a run."""
        return {}

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The number of each file's first row, and at the end that of all rows."""
        return np.concatenate([[0], np.cumsum([each.rows for each in self.files])]).astype(np.int64)

    @property
    def rows(self) -> int:
        """Of all files."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> Rows:
        """The rows from `start` up to `stop`."""
        ids, parts, faults = list[str](), list[Mapping[str, np.ndarray]](), dict[int, str]()
        for index, first, last in self._pieces(start, stop):
            piece = self.piece(index, first, last)
            faults |= {len(ids) + place: fault for place, fault in piece.faults.items()}
            ids.extend(piece.ids)
            if len(piece.faults) < len(piece.ids):
                parts.append(piece.inputs)
        names = [spec.name for spec in self.specs] if parts else []
        inputs = {name: np.concatenate([part[name] for part in parts]) for name in names}
        good = np.setdiff1d(np.arange(len(ids)), list(faults))
        return checked(Rows(ids, inputs, faults), good, self.specs)

    @abc.abstractmethod
    def piece(self, index: int, first: int, last: int) -> Rows:
        """The rows from `first` up to `last` of the file with that index."""

    def check_unchanged(self, start: int, stop: int) -> None:
        """Raises a RuntimeError where a file with these rows is no longer what it was when the run began."""
        for index, _, _ in self._pieces(start, stop):
            file = self.files[index]
            now = self.stamp(file.name)
            if now != file.stamp:
                raise RuntimeError(
                    f"{self.root / file.name} was changed while it was read: it was {file.stamp}, now {now}. Start "
                    "into another folder when the input is at rest"
                )

    def stamp(self, name: str) -> str:
        """The stamp that a file has now."""
        return stamp(self.root / name)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[index + 1]))
            if end > start:
                yield index, start - int(self._starts[index]), end - int(self._starts[index])
            start, index = max(start, end), index + 1


def stamp(path: pathlib.Path) -> str:
    """Size and time of change of a file, in words.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a")
    >>> _ = path.write_bytes(b"abc")
    >>> stamp(path).partition(" modified")[0], stamp(path.with_name("b"))
    ('3 bytes,', 'missing')
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return "missing"
    return f"{found.st_size} bytes, modified {found.st_mtime_ns}"


def checked(rows: Rows, good: np.ndarray, specs: Sequence[InputSpec]) -> Rows:
    """The rows in the types of the model's inputs; those with values that are none, or do not fit, are faulty too."""
    faults, inputs = dict(rows.faults), dict(rows.inputs)
    fits = np.ones(len(good), bool)
    for spec in specs if inputs else ():
        values = inputs[spec.name]
        own = tuple(range(1, values.ndim))
        if values.dtype.kind == "f":
            _mark(faults, good, ~np.isfinite(values).all(own), f"it holds NaN or infinity for the input {spec.name!r}")
        if spec.dtype != "string":
            with np.errstate(over="ignore", invalid="ignore"):
                cast = values.astype(spec.dtype, copy=False)
            kept = np.isfinite(cast) if cast.dtype.kind == "f" else cast == values
            _mark(faults, good, ~kept.all(own), f"a value for the input {spec.name!r} does not fit {spec.dtype}")
            inputs[spec.name] = cast
        fits &= ~np.isin(good, list(faults))
    return Rows(rows.ids, {name: values[fits] for name, values in inputs.items()}, dict(sorted(faults.items())))


def _mark(faults: dict[int, str], good: np.ndarray, is_bad: np.ndarray, fault: str) -> None:
    for place in good[is_bad]:
        faults.setdefault(int(place), fault)


def full_shape(spec: InputSpec, what: str) -> tuple[int, ...]:
    """The shape of an input without the batch.

    Raises:
      ValueError: one of its axes is open.
    """
    sizes = tuple(size for size in spec.shape if size is not None)
    require(
        len(sizes) == len(spec.shape),
        f"the input {spec.name!r} has the open shape {spec.shape}, and {what} do not tell how their values are "
        "arranged: use .npy files",
    )
    return sizes
