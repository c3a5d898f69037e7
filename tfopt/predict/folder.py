"""The output folder: what run it belongs to, which shards are done, and at the end the manifest.

_run.json            model, input and settings; another run is refused
_inputs.csv          the input files with their rows, sizes and times of change
part-00000.parquet   a shard, or the folder part-00000 of .npy
_shards/00000.json   says that the shard is done, with the checksum of its files; written after them
_skipped.csv         rows that could not be used, with the reason; written when all is done
_manifest.json       written last: where it stands, every row is there, or in _skipped.csv, exactly once
"""

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tfopt.files import atomic_path, remove, sha256, write_text
from tfopt.predict.outputs import Format, Predicted, write_npy, write_parquet
from tfopt.predict.source import InputFile

_RUN, _INPUTS, _SHARDS, _SKIPPED, _MANIFEST = "_run.json", "_inputs.csv", "_shards", "_skipped.csv", "_manifest.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard.

    Args:
      number: from 0.
      first: the number of its first row.
      rows: how many rows of the input it stands for.
      file: the file or folder, "" where no row could be used.
      checksums: SHA-256 by file.
      skipped: number, id and fault of each row that is not in it.
    """

    number: int
    first: int
    rows: int
    file: str
    checksums: Mapping[str, str]
    skipped: Sequence[tuple[int, str, str]]

    def to_json(self) -> str:
        """As text, for its note and between processes."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """What `to_json` gave.

        >>> shard = Shard(2, 256, 128, "part-00002.parquet", {}, ((300, "a.png", "it is empty"),))
        >>> Shard.from_json(shard.to_json()) == shard
        True
        """
        values = json.loads(text)
        return cls(**{**values, "skipped": tuple(map(tuple, values["skipped"]))})


def claim(folder: pathlib.Path, run: Mapping[str, Any], files: Sequence[InputFile]) -> None:
    """Marks an output folder as that of a run; refuses one of another run, or of a changed input.

    A run that was to stop at bad rows has none so far: it may go on with another policy.

    Raises:
      ValueError: names what differs.
    """
    path, listing = folder / _RUN, _listing(files)
    if not path.exists():
        # `_inputs.csv` alone is what a kill between the two left.
        strangers = sorted(each.name for each in folder.iterdir() if each.name not in (".lock", _INPUTS))
        if strangers:
            raise ValueError(f"{folder} holds {', '.join(strangers[:5])} and is no output of this: give another folder")
        write_text(folder / _INPUTS, listing)
        write_text(path, json.dumps(run, indent=1))
        return
    theirs = _read(path, folder, json.loads)
    differences = [
        f"{key} was {theirs.get(key)}, now {value}"
        for key, value in json.loads(json.dumps(run)).items()
        if theirs.get(key) != value and not (key == "on_bad" and theirs.get(key) == "raise")
    ]
    if differences:
        raise ValueError(
            f"the output folder {folder} belongs to another run: {'; '.join(differences)}. Give another folder, or "
            "delete this one to start anew"
        )
    changed = _changes(folder / _INPUTS, listing)
    if changed:
        raise ValueError(
            f"the input has changed since {folder} was begun: {changed}. Give another folder, or delete this one to "
            "start anew"
        )
    if theirs.get("on_bad") != run["on_bad"]:
        write_text(path, json.dumps(run, indent=1))


def _listing(files: Sequence[InputFile]) -> str:
    return _csv(("file", "rows", "stamp"), ((each.name, each.rows, each.stamp) for each in files))


def _changes(path: pathlib.Path, listing: str) -> str:
    """The first difference between the files listed then and now."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before == listing:
        return ""
    then, now = ({row[0]: row[1:] for row in list(csv.reader(io.StringIO(each)))[1:]} for each in (before, listing))
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            return f"{name} was {_state(then.get(name))}, now {_state(now.get(name))}"
    return "its files have another order"


def _state(columns: Sequence[str] | None) -> str:
    return "not there" if columns is None else f"{columns[1]}, {columns[0]} rows"


def write_shard(
    folder: pathlib.Path,
    number: int,
    span: range,
    found: Predicted | None,
    skipped: Sequence[tuple[int, str, str]],
    kind: Format,
) -> Shard:
    """Writes a shard, then the note that says that it is done."""
    name = "" if found is None else f"part-{number:05d}{'.parquet' if kind == 'parquet' else ''}"
    if found is not None:
        with atomic_path(folder / name) as temporary:
            (write_parquet if kind == "parquet" else write_npy)(temporary, found)
    shard = Shard(number, span.start, len(span), name, _checksums(folder, name), tuple(skipped))
    write_text(_note(folder, number), shard.to_json())
    return shard


def finished(folder: pathlib.Path, shards: Sequence[range]) -> dict[int, Shard]:
    """The shards that are done, by number.

    Raises:
      ValueError: a file of one is missing, damaged or was altered; names it.
    """
    found = {}
    for number, span in enumerate(shards):
        path = _note(folder, number)
        if not path.exists():
            continue
        shard = _read(path, path, Shard.from_json)
        now = _checksums(folder, shard.file)
        if (shard.first, shard.rows) != (span.start, len(span)) or now != dict(shard.checksums):
            raise ValueError(
                f"{folder / shard.file} is missing, damaged or was changed after it was written: delete it and {path}, "
                "and start again; the shard is then made anew"
            )
        found[number] = shard
    return found


def reopen(folder: pathlib.Path) -> None:
    """Takes the manifest away: the folder is not complete."""
    remove(folder / _MANIFEST)


def finish(folder: pathlib.Path, run: Mapping[str, Any], shards: Mapping[int, Shard]) -> pathlib.Path:
    """Writes the list of skipped rows and the manifest; returns the manifest's path. No process writes any more."""
    # Of workers that were killed.
    for leftover in folder.rglob(".*.tmp*"):
        remove(leftover)
    ordered = [shards[number] for number in sorted(shards)]
    skipped = [row for shard in ordered for row in shard.skipped]
    if skipped:
        write_text(folder / _SKIPPED, _csv(("row", "id", "reason"), skipped))
    else:
        remove(folder / _SKIPPED)
    manifest = {
        **run,
        "rows": sum(shard.rows for shard in ordered),
        "skipped": len(skipped),
        "shards": [
            {
                "file": shard.file,
                "first_row": shard.first,
                "rows": shard.rows,
                "skipped": len(shard.skipped),
                "sha256": dict(shard.checksums),
            }
            for shard in ordered
        ],
    }
    return write_text(folder / _MANIFEST, json.dumps(manifest, indent=1))


def fingerprint(path: pathlib.Path) -> str:
    """The SHA-256 of a file, or of all files below a folder and their names."""
    if path.is_file():
        return sha256(path)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    lines = [f"{each.relative_to(path).as_posix()} {sha256(each)}\n" for each in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _note(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / _SHARDS / f"{number:05d}.json"


def _checksums(folder: pathlib.Path, name: str) -> dict[str, str]:
    if not name or not (folder / name).exists():
        return {}
    files = [folder / name] if (folder / name).is_file() else sorted((folder / name).iterdir())
    return {each.relative_to(folder).as_posix(): sha256(each) for each in files}


def _read(path: pathlib.Path, to_delete: pathlib.Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {to_delete} and start again") from error


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
