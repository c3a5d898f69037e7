"""Rows of Parquet files, a row group at a time."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfopt.config import did_you_mean, require
from tfopt.data.arrow import as_column
from tfopt.data.image import Images
from tfopt.data.policy import Policy
from tfopt.predict.images import decoded, image_settings
from tfopt.predict.source import InputFile, Rows, Source, full_shape, stamp
from tfopt.tflite.examples import InputSpec


@dataclasses.dataclass(frozen=True, eq=False)
class TableSource(Source):
    """The rows of Parquet files.

    Args:
      columns: of each input: numbers, one of lists of numbers, or one of encoded images.
      id: the column of ids; None: file and row.
      images: how encoded images become the input; None: the columns are numbers.
      on_bad: "repair" takes images of other channels.
    """

    kind: ClassVar[str] = "parquet"
    columns: Mapping[str, tuple[str, ...]]
    id: str | None
    images: Images | None
    on_bad: Policy

    @property
    def settings(self) -> dict[str, object]:
        """The columns, and what becomes of images."""
        columns = {name: list(each) for name, each in self.columns.items()}
        return {"columns": columns, "id": self.id, **image_settings(self.images)}

    def piece(self, index: int, first: int, last: int) -> Rows:
        """Some rows of a file."""
        name = self.files[index].name
        used = tuple(dict.fromkeys([*sum(self.columns.values(), ()), *([self.id] if self.id else [])]))
        table = _rows(self.root / name, used, first, last)
        ids = [f"{name}[{row}]" for row in range(first, last)]
        if self.id is not None:
            ids = [str(each) for each in as_column(self.id, table[self.id], None)]
        if self.images is not None:
            ((column,),) = self.columns.values()
            contents = as_column(column, table[column], None)
            return decoded(ids, list(contents), self.images, self.on_bad, self.specs[0])
        inputs, faults = dict[str, np.ndarray](), dict[int, str]()
        for spec in self.specs:
            inputs[spec.name], wrong = _numbers(spec, {each: table[each] for each in self.columns[spec.name]})
            faults = wrong | faults
        good = np.setdiff1d(np.arange(len(ids)), list(faults))
        return Rows(ids, {name: values[good] for name, values in inputs.items()}, faults)


def open_table(
    root: pathlib.Path,
    paths: Sequence[pathlib.Path],
    specs: Sequence[InputSpec],
    features: Mapping[str, str],
    id: str | None,
    images: Images | None,
    on_bad: Policy,
) -> TableSource:
    """Reads the footers of the files.

    Args:
      root: the folder that the names are relative to.
      paths: of the files.
      specs: the model's inputs.
      features: the column of each input, or several with "," between them; None: found by name and type.
      id: the column of ids.
      images: how encoded images become inputs, where the model takes any.
      on_bad: as in `predict_files`.

    Raises:
      ImportError: pyarrow is not installed.
      ValueError: a file that is no Parquet, files with different columns, or columns that do not make the inputs.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError('Parquet is read by pyarrow: install it with pip install "tfopt[table]"') from error
    files, schema = [], None
    for path in paths:
        name, before = path.relative_to(root).as_posix(), stamp(path)
        try:
            file = _open(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
        files.append(InputFile(name, file.metadata.num_rows, before))
        schema = schema or file.schema_arrow
        require(
            file.schema_arrow.equals(schema),
            f"{path} has the columns {file.schema_arrow.names}, {paths[0]} has {schema.names}, in types too: give "
            "files that are alike",
        )
    assert schema is not None
    _need(schema.names, [id] if id else [], paths[0])
    columns = {spec.name: _columns_of(spec, features, schema, id, len(specs) == 1, paths[0]) for spec in specs}
    first = schema.field(next(iter(columns.values()))[0]).type
    is_image = pa.types.is_binary(first) or pa.types.is_large_binary(first) or pa.types.is_struct(first)
    require(
        not is_image or (len(specs) == 1 and images is not None),
        f"the column {next(iter(columns.values()))[0]!r} holds bytes, and the model takes no image: give numbers",
    )
    return TableSource(root, tuple(files), tuple(specs), columns, id, images if is_image else None, on_bad)


def _need(known: Sequence[str], names: Sequence[str], path: pathlib.Path) -> None:
    for name in names:
        require(name in known, f"{path} has no column {name!r}: {did_you_mean(name, known)}")


def _columns_of(
    spec: InputSpec, features: Mapping[str, str], schema: Any, id: str | None, is_only: bool, path: pathlib.Path
) -> tuple[str, ...]:
    import pyarrow as pa

    if spec.name in features:
        names = tuple(each.strip() for each in features[spec.name].split(","))
        _need(schema.names, names, path)
        return names
    if spec.name in schema.names:
        return (spec.name,)
    numbers = [each.name for each in schema if each.name != id and _is_number(each.type)]
    wide = [
        each.name
        for each in schema
        if _is_list(each.type) or pa.types.is_struct(each.type) or pa.types.is_binary(each.type)
    ]
    size = math.prod(each or 0 for each in spec.shape)
    for found in ([wide] if len(wide) == 1 else []) + ([numbers] if len(numbers) == size and not wide else []):
        if is_only:
            return tuple(found)
    raise ValueError(
        f"which columns of {path} are the input {spec.name!r} of shape {spec.shape}? It has {', '.join(schema.names)}: "
        f"say so with features={{{spec.name!r}: ...}}, on the command line --features={spec.name}=COLUMN,COLUMN"
    )


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return any(getattr(pa.types, f"is_{each}")(kind) for each in ("integer", "floating", "decimal", "boolean"))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    names = ("list", "large_list", "fixed_size_list")
    return isinstance(kind, pa.BaseExtensionType) or any(getattr(pa.types, f"is_{each}")(kind) for each in names)


def _numbers(spec: InputSpec, columns: Mapping[str, Any]) -> tuple[np.ndarray, dict[int, str]]:
    """The columns as the input, and what is wrong with rows, which are zeros there."""
    shape = full_shape(spec, "Parquet files")
    name, column = next(iter(columns.items()))
    if len(columns) == 1 and _is_list(column.type):
        return _from_lists(name, column, shape)
    require(
        len(columns) == math.prod(shape),
        f"the input {spec.name!r} has shape {shape}, and {len(columns)} columns are to make it: {', '.join(columns)}",
    )
    parts = [as_column(name, _as_number(column), None) for name, column in columns.items()]
    for name, part in zip(columns, parts, strict=True):
        require(part.dtype.kind in "biuf", f"the column {name!r} holds {columns[name].type}, expected numbers")
    values = np.stack(parts, axis=-1)
    return values.reshape(len(values), *shape), {}


def _as_number(column: Any) -> Any:
    """Truth values where some are missing as 0 and 1, which can be missing."""
    import pyarrow as pa

    return column.cast(pa.int8()) if pa.types.is_boolean(column.type) and column.null_count else column


def _from_lists(name: str, column: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    size, missing = math.prod(shape), array.is_null().to_numpy(zero_copy_only=False)
    if _is_list(array.type.value_type):
        # Lists in lists, which may be ragged: one by one.
        found = [_flat(each) for each in array.to_pylist()]
        lengths = np.array([-1 if each is None else len(each) for each in found])
        flat = np.concatenate([each for each in found if each is not None and len(each) == size] or [np.zeros(0)])
    else:
        lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
        flat = pc.list_flatten(array.filter(pa.array(lengths == size))).to_numpy(zero_copy_only=False)
    require(flat.dtype.kind in "biuf", f"the column {name!r} holds {array.type}, expected lists of numbers")
    values = np.zeros((len(array), size), flat.dtype)
    values[lengths == size] = flat.reshape(-1, size)
    faults = {
        int(place): f"the column {name!r} {'is empty' if missing[place] else f'has {lengths[place]} numbers of {size}'}"
        for place in np.flatnonzero(lengths != size)
    }
    return values.reshape(-1, *shape), faults


def _flat(value: Any) -> np.ndarray | None:
    """The numbers in nested lists; None where there are none, or not as many in each."""
    try:
        return None if value is None else np.asarray(value, "float64").ravel()
    except (ValueError, TypeError):
        return np.zeros(0)


# A process reads the row groups of a shard one after the other.
@functools.lru_cache(maxsize=1)
def _group(path: pathlib.Path, number: int, columns: tuple[str, ...]) -> Any:
    try:
        return _open(path).read_row_group(number, columns=list(columns))
    except OSError as error:
        raise ValueError(f"the row group {number} of {path} is damaged: {error}") from error


# With its footer, which is read once.
@functools.lru_cache(maxsize=2)
def _open(path: pathlib.Path) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path)


def _rows(path: pathlib.Path, columns: tuple[str, ...], first: int, last: int) -> Any:
    import pyarrow as pa

    metadata = _open(path).metadata
    parts, start = [], 0
    for number in range(metadata.num_row_groups):
        count = metadata.row_group(number).num_rows
        begin, end = max(first, start), min(last, start + count)
        if begin < end:
            parts.append(_group(path, number, columns).slice(begin - start, end - begin))
        start += count
    return pa.concat_tables(parts)
