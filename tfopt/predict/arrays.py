"""Rows of `.npy` files, mapped into memory."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from tfopt.config import require
from tfopt.data.npy import open_arrays
from tfopt.predict.source import InputFile, Rows, Source, stamp
from tfopt.tflite.examples import InputSpec


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """The rows of arrays; for several inputs of arrays that go side by side.

    Args:
      paths: for each input its files, those of the first being `files`.
    """

    kind: ClassVar[str] = "npy"
    paths: Mapping[str, tuple[pathlib.Path, ...]]

    def piece(self, index: int, first: int, last: int) -> Rows:
        """Rows of an array, or of several."""
        # Copies: nothing of the mapping stays, whose pages would count as memory of this process.
        inputs = {name: np.array(_mapped(paths[index])[first:last]) for name, paths in self.paths.items()}
        name = self.files[index].name
        return Rows([f"{name}[{row}]" for row in range(first, last)], inputs, {})

    def stamp(self, name: str) -> str:
        """Of the files that go side by side."""
        index = [each.name for each in self.files].index(name)
        return _stamps([paths[index] for paths in self.paths.values()])


def open_npy(
    root: pathlib.Path, paths: Mapping[str, Sequence[pathlib.Path]], specs: Sequence[InputSpec]
) -> ArraySource:
    """Looks at the shapes of the arrays.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: an array of another shape than the model's input, or arrays of unequal lengths.
    """
    counts = {name: len(each) for name, each in paths.items()}
    require(len(set(counts.values())) == 1, f"the inputs have different numbers of files: {counts}")
    files = []
    for together in zip(*paths.values(), strict=True):
        lengths = {}
        for spec, path in zip(specs, together, strict=True):
            array = _mapped(path)
            fits = array.ndim == len(spec.shape) + 1 and all(
                wanted in (None, size) for wanted, size in zip(spec.shape, array.shape[1:], strict=True)
            )
            expected = ", ".join("any" if size is None else str(size) for size in ("rows", *spec.shape))
            require(fits, f"{path} has shape {array.shape}, expected ({expected}) for the input {spec.name!r}")
            require(array.dtype.kind in "biuf", f"{path} holds {array.dtype}, expected numbers ({spec.dtype})")
            lengths[str(path)] = len(array)
        require(len(set(lengths.values())) == 1, f"arrays that go side by side have different lengths: {lengths}")
        name = together[0].relative_to(root).as_posix()
        files.append(InputFile(name, next(iter(lengths.values())), _stamps(together)))
    return ArraySource(root, tuple(files), tuple(specs), {name: tuple(each) for name, each in paths.items()})


def _mapped(path: pathlib.Path) -> np.ndarray:
    return open_arrays(path, mapped=True)


def _stamps(paths: Sequence[pathlib.Path]) -> str:
    return "; ".join(map(stamp, paths))
