"""`predict_files`: a model over files of examples, shard by shard."""

import dataclasses
import importlib.metadata
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfopt.config import require
from tfopt.data.policy import Policy, check_policy
from tfopt.predict import folder as output_folder
from tfopt.predict.inputs import Input, Kind, open_input
from tfopt.predict.local import run_local
from tfopt.predict.outputs import FORMATS, Format, check_classes
from tfopt.predict.shards import CHUNK, Job
from tfopt.progress import stage_bar
from tfopt.record import Record
from tfopt.serve.description import Description
from tfopt.serve.model import load
from tfopt.workdir import locked
from tfopt.workers.preemption import preemptible

Engine = Literal["local", "ray"]
# Of a shard: outputs that a process holds in memory, rows, and shards to spread over processes.
_MOST_BYTES, _MOST_ROWS, _LEAST_SHARDS = 64 * 2**20, 4096, 64


@dataclasses.dataclass(frozen=True)
class Prediction(Record):
    """What `predict_files` did.

    Args:
      rows: of the input.
      skipped: how many of them could not be used.
      shards: files or folders of the output; and how many of them this run found done.
      found: shards that were done before.
      seconds: of this run.
      manifest: path of the manifest.
    """

    rows: int
    skipped: int
    shards: int
    found: int
    seconds: float
    manifest: pathlib.Path


def predict_files(
    model: str | os.PathLike[str],
    input: Input,
    output: str | os.PathLike[str],
    *,
    engine: Engine = "local",
    workers: int | None = None,
    threads: int = 1,
    kind: Kind | None = None,
    features: str | Mapping[str, str] | None = None,
    id: str | None = None,
    on_bad: Policy = "raise",
    image_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    format: Format = "parquet",
    shard_rows: int | None = None,
    address: str | None = None,
) -> Prediction:
    """Runs a model over all rows of files and writes what it predicts, shard by shard.

    A run that is killed goes on where it was when it is started again, with any engine and number of workers, and ends
    with every row exactly once; `_manifest.json` is there when all is done. The outputs are those of `predict_tflite`,
    bit for bit, for the same rows.

    Args:
      model: a `.tflite`, `.keras` or `.h5` file, or the folder of a SavedModel.
      input: a folder or `.zip` of images; TFRecord, Parquet or `.npy` files, a folder of them, or a pattern; for a
        model of several inputs, `.npy` files by the input's name. Images become inputs as `from_folder` makes them,
        numbers are what the model receives.
      output: folder for the shards, new or of the same run.
      engine: "local": processes on this machine; "ray": Ray Data, where all nodes see model, input and output.
      workers: processes, each with the model; None: a core for each `threads`.
      threads: of each process, at least 1.
      kind: "images", "tfrecord", "parquet" or "npy"; None: as the names tell.
      features: the feature of TFRecords that is the input, or the column of Parquet, or several with "," between them;
        a dict by name for several inputs. None: found by name and type.
      id: the column of Parquet that names a row; else it is the file with the row's number in it.
      on_bad: what to do with rows that cannot be used (images that are damaged or of other channels, records without
        the features, NaN, lists of another length): "raise"; "skip" them; or "repair" the channels of images and skip
        the others. `_skipped.csv` lists each with the reason.
      image_size: (height, width), where the model's input is open.
      value_range: what pixel values 0 and 255 become; None: as the model's file says, else (0, 1), or pixels as they
        are for an input of integers.
      class_names: of the first output; None: as the model's file says. The shards then name the predicted class.
      format: "parquet", or "npy": a folder of arrays for each shard.
      shard_rows: rows of a shard, at least 1; None: chosen by the number of rows and the size of the outputs.
      address: of a Ray cluster.

    Raises:
      FileNotFoundError: there is no such model or input.
      ImportError: pyarrow or Ray is needed and not installed.
      ValueError: model, input and settings do not fit each other; a bad row under "raise"; or the output folder is that
        of another run, or was changed.
      RuntimeError: another process works on the folder, a worker cannot do its shard, or model or input were changed
        meanwhile.

    >>> import keras, numpy as np, tempfile, tfopt
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> net = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])
    >>> _ = tfopt.export_tflite(net, folder / "m.tflite")
    >>> np.save(folder / "x.npy", np.ones((300, 4), "float32"))
    >>> done = predict_files(folder / "m.tflite", folder / "x.npy", folder / "out", workers=1, format="npy")
    predict... rows/s
    >>> done.rows, done.shards, np.load(folder / "out" / "part-00002" / "y.npy").shape
    (300, 3, (44, 3))
    """
    started = time.perf_counter()
    check_policy(on_bad)
    require(engine in ("local", "ray"), f"engine must be local or ray, received {engine!r}")
    require(format in FORMATS, f"format must be one of {', '.join(FORMATS)}, received {format!r}")
    require(threads >= 1, f"threads must be at least 1, received {threads!r}")
    workers = workers or max(1, (os.cpu_count() or 1) // threads) if workers != 0 else 0
    require(workers >= 1, f"workers must be at least 1, received {workers!r}")
    require(shard_rows is None or shard_rows >= 1, f"shard_rows must be at least 1, received {shard_rows!r}")
    require(address is None or engine == "ray", f"address={address!r} is that of a Ray cluster: pass engine='ray'")
    if format == "parquet":
        _need_pyarrow()
    path, folder = (pathlib.Path(each).expanduser().resolve() for each in (model, output))
    description = load(path).description
    names = tuple(description.class_names if class_names is None else class_names)
    first = description.outputs[0]
    if names:
        check_classes(first.shape, names, first.name)
    for info in description.outputs:
        require(
            format != "parquet" or not info.dtype.startswith("complex"),
            f"the output {info.name!r} is {info.dtype}, which Parquet does not hold: pass format='npy', on the command "
            "line --format=npy",
        )
    source = open_input(
        input,
        description,
        kind=kind,
        features={description.inputs[0].name: features} if isinstance(features, str) else features or {},
        id=id,
        on_bad=on_bad,
        image_size=image_size,
        value_range=value_range,
    )
    require(source.rows > 0, f"{input} has no rows")
    shard_rows = shard_rows or _shard_rows(source.rows, description)
    shards = tuple(range(start, min(start + shard_rows, source.rows)) for start in range(0, source.rows, shard_rows))
    run = {
        "model": path.name,
        "model_sha256": output_folder.fingerprint(path),
        "kind": source.kind,
        **source.settings,
        "on_bad": on_bad,
        "class_names": list(names),
        "format": format,
        "shard_rows": shard_rows,
        "versions": _versions(description),
    }
    with preemptible(), locked(folder), stage_bar("predict") as bar:
        output_folder.claim(folder, run, source.files)
        done = output_folder.finished(folder, shards)
        found, left = len(done), [number for number in range(len(shards)) if number not in done]
        job = Job(path, source, folder, shards, on_bad == "raise", format, names, threads)
        progress = _Progress(bar, source.rows, done)
        if left:
            output_folder.reopen(folder)
        if left and engine == "ray":
            from tfopt.predict.on_ray import run_on_ray

            run_on_ray(job, left, workers, address, progress.finished)
        elif left:
            run_local(job, left, workers, progress.predicted, progress.finished)
        if output_folder.fingerprint(path) != run["model_sha256"]:
            raise RuntimeError(f"{path} was changed while it ran: delete {folder}, and start again")
        manifest = output_folder.finish(folder, run, done)
    skipped = sum(len(shard.skipped) for shard in done.values())
    return Prediction(source.rows, skipped, len(shards), found, time.perf_counter() - started, manifest)


class _Progress:
    """What is done, and the bar that shows it."""

    def __init__(self, bar: Any, rows: int, done: dict[int, output_folder.Shard]) -> None:
        self._bar, self._done, self._started = bar, done, time.perf_counter()
        self._before = self._rows = sum(shard.rows for shard in done.values())
        bar.start(rows)
        bar.update(self._rows)

    def predicted(self, rows: int) -> None:
        """Some rows more, of shards that are not finished yet."""
        self._rows += rows
        self._show()

    def finished(self, shard: output_folder.Shard) -> None:
        """A shard is there."""
        self._done[shard.number] = shard
        self._rows = max(self._rows, sum(each.rows for each in self._done.values()))
        self._show()

    def _show(self) -> None:
        skipped = sum(len(shard.skipped) for shard in self._done.values())
        rate = (self._rows - self._before) / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._rows, f"{rate:,.0f} rows/s" + (f", {skipped:,} skipped" if skipped else ""))


def _shard_rows(rows: int, description: Description) -> int:
    """Such that outputs fit in memory and processes have something to share; whole chunks."""
    values = sum(math.prod(max(1, size) for size in info.shape[1:]) for info in description.outputs)
    most = min(_MOST_ROWS, _MOST_BYTES // (4 * values), -(-rows // _LEAST_SHARDS))
    return max(CHUNK, -(-most // CHUNK) * CHUNK)


def _versions(description: Description) -> dict[str, str]:
    """Of what computes."""
    packages = ("ai-edge-litert",) if description.kind == "litert" else ("tensorflow", "keras")
    return {package: importlib.metadata.version(package) for package in packages}


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Parquet is written by pyarrow: install it with pip install "tfopt[table]", or pass format="npy", on the '
            "command line --format=npy"
        ) from error
