"""Runs a model over files of examples; start it again where it was killed, and it goes on.

python -m tfopt.predict m.tflite --input=photos --output=predicted
python -m tfopt.predict m.tflite --input='set-*.tfrecord' --output=predicted --on_bad=skip --workers=4
python -m tfopt.predict m.keras --input=rows.parquet --features=length,width --id=name --output=predicted
python -m tfopt.predict two.tflite --input=left=a.npy --input=right=b.npy --output=predicted --format=npy
python -m tfopt.predict m.tflite --input=/shared/x.npy --output=/shared/y --engine=ray --ray_address=head:6379
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tfopt.config import require
from tfopt.data.policy import POLICIES
from tfopt.predict.inputs import KINDS, Input
from tfopt.predict.outputs import FORMATS
from tfopt.predict.run import predict_files


def parser() -> argparse.ArgumentParser:
    """The flags; each is an argument of `predict_files`."""
    found = argparse.ArgumentParser(
        prog="python -m tfopt.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("model", help=".tflite, .keras or .h5 file, or folder of a SavedModel")
    found.add_argument(
        "--input",
        action="append",
        required=True,
        help="folder, file or pattern; NAME=FILE.npy for each input of several",
    )
    found.add_argument("--output", required=True, help="folder for the shards: new, or of the same run")
    found.add_argument("--engine", choices=("local", "ray"), default="local", help="processes here, or Ray Data")
    found.add_argument("--workers", type=int, help="processes, each with the model; else one for each core")
    found.add_argument("--threads", type=int, default=1, help="of each process")
    found.add_argument("--kind", choices=KINDS, help="what the input holds, where its names do not tell")
    found.add_argument(
        "--features", action="append", default=[], help="COLUMN,COLUMN or a feature; NAME=… for each of several inputs"
    )
    found.add_argument("--id", help="column of Parquet that names a row")
    found.add_argument("--on_bad", choices=POLICIES, default="raise", help="rows that cannot be used")
    found.add_argument("--image_size", type=_pair(int), help="HEIGHT,WIDTH, where the model leaves it open")
    found.add_argument("--value_range", type=_pair(float), help="LOW,HIGH: what pixels 0 and 255 become")
    found.add_argument("--class_names", help="names with commas between them, or a file with one a line")
    found.add_argument("--format", choices=FORMATS, default="parquet", help="of the shards")
    found.add_argument("--shard_rows", type=int, help="rows of a shard; else chosen")
    found.add_argument("--ray_address", help="of a Ray cluster; else Ray is started here")
    found.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Predicts what the arguments say; returns the exit code."""
    chosen = parser().parse_args(arguments)
    try:
        done = predict_files(
            chosen.model,
            _input(chosen.input),
            chosen.output,
            engine=chosen.engine,
            workers=chosen.workers,
            threads=chosen.threads,
            kind=chosen.kind,
            features=_features(chosen.features),
            id=chosen.id,
            on_bad=chosen.on_bad,
            image_size=chosen.image_size,
            value_range=chosen.value_range,
            class_names=None if chosen.class_names is None else _names(chosen.class_names),
            format=chosen.format,
            shard_rows=chosen.shard_rows,
            address=chosen.ray_address,
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if chosen.traceback:
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"error: {error}{notes}\n(--traceback shows where)", file=sys.stderr)  # noqa: T201
        return 1
    before = f", {done.found:,} of them before" if done.found else ""
    print(  # noqa: T201
        f"{done.rows - done.skipped:,} rows predicted, {done.skipped:,} skipped, in {done.shards:,} shards{before}: "
        f"{done.manifest}"
    )
    return 0


def _input(given: Sequence[str]) -> Input:
    """One path, or paths by name."""
    if len(given) == 1 and (pathlib.Path(given[0]).exists() or not _is_named(given[0])):
        return given[0]
    named = dict(each.split("=", 1) for each in given if _is_named(each))
    require(
        len(named) == len(given),
        f"several --input are NAME=FILE.npy for each input, received {', '.join(given)}",
    )
    return named


def _features(given: Sequence[str]) -> str | dict[str, str] | None:
    if len(given) == 1 and not _is_named(given[0]):
        return given[0]
    require(all(map(_is_named, given)), f"several --features are NAME=… for each input, received {', '.join(given)}")
    return dict(each.split("=", 1) for each in given) or None


def _is_named(text: str) -> bool:
    return "=" in text and text.partition("=")[0].isidentifier()


def _names(given: str) -> list[str]:
    path = pathlib.Path(given).expanduser()
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")


def _pair(kind: type) -> Callable[[str], tuple[Any, Any]]:
    def parse(text: str) -> tuple[Any, Any]:
        first, second = text.split(",")
        return kind(first), kind(second)

    parse.__name__ = f"two numbers with a comma between them ({kind.__name__})"
    return parse


if __name__ == "__main__":
    sys.exit(main())
