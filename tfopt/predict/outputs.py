"""What a shard's rows become in files: Parquet, or a folder of `.npy`."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt.config import require

Format = Literal["parquet", "npy"]
FORMATS: tuple[Format, ...] = ("parquet", "npy")
# Columns beside the model's outputs.
ROW, ID, CLASS = "row", "id", "class"


@dataclasses.dataclass(frozen=True, eq=False)
class Predicted:
    """The predicted rows of a shard.

    Args:
      rows: their numbers, int64.
      ids: as many.
      outputs: by name, each of shape (rows, …).
      classes: names of the predicted classes, where classes have names.
    """

    rows: np.ndarray
    ids: Sequence[str]
    outputs: Mapping[str, np.ndarray]
    classes: Sequence[str] | None


def classify(output: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """The class that each row decides for: of one value, whether it is above 0.5; else the largest.

    Args:
      output: shape (rows, classes), or (rows, 1) or (rows,) with probabilities of the second of two classes.
      class_names: of all classes.

    >>> classify(np.array([[0.1, 0.9], [0.8, 0.2]]), ("cat", "dog")), classify(np.array([[0.7]]), ("no", "yes"))
    (['dog', 'cat'], ['yes'])
    """
    places = output.argmax(-1) if output.ndim == 2 and output.shape[1] > 1 else output.reshape(-1) > 0.5
    return [class_names[int(place)] for place in places]


def check_classes(shape: Sequence[int], class_names: Sequence[str], name: str) -> None:
    """Raises a ValueError where an output of that shape, -1 for open axes, does not decide between the classes."""
    values = 1 if len(shape) == 1 else shape[1] if len(shape) == 2 else 0
    fits = values in (-1, len(class_names)) or (values == 1 and len(class_names) == 2)
    require(
        fits and len(class_names) > 1,
        f"there are {len(class_names)} class_names, and the output {name!r} has the shape {tuple(shape)}: give a name "
        "for each of its values, two for one probability, or none",
    )


def column_names(outputs: Sequence[str], has_classes: bool) -> dict[str, str]:
    """What the outputs are called in the files, where other columns are called so already.

    >>> column_names(["probabilities", "id"], has_classes=True)
    {'probabilities': 'probabilities', 'id': 'output_id'}
    """
    taken = {ROW, ID, *([CLASS] if has_classes else [])}
    return {name: f"output_{name}" if name in taken else name for name in outputs}


def write_parquet(path: pathlib.Path, found: Predicted) -> None:
    """A column for each output, of numbers or of lists of a fixed size; what has more axes is flattened in C order."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {ROW: pa.array(found.rows), ID: pa.array(found.ids, pa.string())}
    metadata: dict[str, dict[str, str]] = {}
    if found.classes is not None:
        columns[CLASS] = pa.array(found.classes, pa.string())
    for name, to in column_names(list(found.outputs), found.classes is not None).items():
        values = found.outputs[name]
        columns[to] = _arrow(values)
        if values.ndim > 2:
            metadata[to] = {"shape": ",".join(map(str, values.shape[1:]))}
    fields = [pa.field(name, each.type, metadata=metadata.get(name)) for name, each in columns.items()]
    parquet.write_table(pa.table(list(columns.values()), pa.schema(fields)), path)


def _arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    flat = values.reshape(-1)
    numbers = pa.array([bytes(each) for each in flat], pa.binary()) if values.dtype.kind in "OS" else pa.array(flat)
    return numbers if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(numbers, int(np.prod(values.shape[1:])))


def write_npy(folder: pathlib.Path, found: Predicted) -> None:
    """An array for each column, in a new folder."""
    folder.mkdir()
    arrays: dict[str, np.ndarray] = {ROW: found.rows, ID: np.array(found.ids, str)}
    if found.classes is not None:
        arrays[CLASS] = np.array(found.classes, str)
    for name, to in column_names(list(found.outputs), found.classes is not None).items():
        values = found.outputs[name]
        arrays[to] = values.astype("S") if values.dtype.kind == "O" else values
    for name, values in arrays.items():
        np.save(folder / f"{name.replace('/', '_')}.npy", values, allow_pickle=False)
