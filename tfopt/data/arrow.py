"""CSV and Parquet files as columns of NumPy, by pyarrow."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.config import require


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of one file.

    Args:
      columns: by name, of equal lengths: numbers (NaN: missing), truth values, or objects (str or bytes; None:
        missing).
      rows: where each stands in the file, from 0.
      bad: why other rows are left out.
    """

    columns: Mapping[str, np.ndarray]
    rows: np.ndarray
    bad: Mapping[int, str]


def read_table(path: pathlib.Path, missing: Sequence[str], skip: bool) -> Table:
    """Reads `.csv` and `.tsv`, also with `.gz`, and `.parquet`.

    Args:
      path: of the file.
      missing: what stands for a missing number in CSV.
      skip: leave rows of CSV out that have too many or few values; else they are an error.

    Raises:
      ImportError: pyarrow is not installed.
      FileNotFoundError: no such file.
      ValueError: a file of another kind, damaged or without rows, or a column that is there twice.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError('tables are read by pyarrow: install it with pip install "tfopt[table]"') from error
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    require(kind in ("csv", "tsv", "parquet"), f"{path} must end in .csv or .tsv (also with .gz), or in .parquet")
    bad: dict[int, str] = {}
    try:
        table = parquet.read_table(path) if kind == "parquet" else _read_csv(path, kind, skip, bad)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    require(not twice, f"{path} has several columns of the name {', '.join(map(repr, twice))}: rename them")
    require(table.num_rows > 0, f"{path} has no rows")
    parse = None if kind == "parquet" else missing
    columns = {name: as_column(name, table[name], parse) for name in table.column_names}
    return Table(columns, np.setdiff1d(np.arange(table.num_rows + len(bad)), list(bad)), bad)


def _read_csv(path: pathlib.Path, kind: str, skip: bool, bad: dict[int, str]) -> Any:
    """The table, all of it text: so the type of a column does not depend on how its beginning looks."""
    import pyarrow as pa
    from pyarrow import csv

    def invalid(row: Any) -> str:
        if not skip:
            return "error"
        # pyarrow counts from 1, and the line with the names.
        bad[row.number - 2] = f"it has {row.actual_columns} values, and there are {row.expected_columns} columns"
        return "skip"

    delimiter = "\t" if kind == "tsv" else ","
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip")
    # Several threads do not number the rows.
    reading = csv.ReadOptions(use_threads=False)
    with csv.open_csv(path, reading, parsing) as reader:
        names = reader.schema.names
    parsing.invalid_row_handler = invalid
    types = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return csv.read_csv(path, reading, parsing, types)


def as_column(name: str, column: Any, missing: Sequence[str] | None) -> np.ndarray:
    """A column of pyarrow in NumPy; text is tried as numbers where `missing` says which stand for none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_column(name, column.cast(kind.value_type), missing)
    # As Hugging Face writes images.
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        return as_column(name, pc.struct_field(column, "bytes"), missing)
    if missing is not None:
        try:
            bare = pc.utf8_trim_whitespace(column)
            empty = pc.is_in(bare, value_set=pa.array(list(missing), pa.string()))
            column = pc.cast(pc.if_else(empty, None, bare), pa.float64())
        except pa.ArrowInvalid:
            return column.to_numpy()
        return column.to_numpy()
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if numbers or (pa.types.is_boolean(kind) and not column.null_count):
        return column.to_numpy()
    objects = ("boolean", "string", "large_string", "binary", "large_binary", "fixed_size_binary")
    readable = any(getattr(pa.types, f"is_{each}")(kind) for each in objects)
    require(readable, f"the column {name!r} is of the type {kind}, which is not read")
    return np.array([*column.to_pylist(), None], object)[:-1]
