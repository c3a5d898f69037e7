"""The process that TFMOT works in, seen from here."""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tfopt.data import Data
from tfopt.files import atomic_path, remove
from tfopt.progress import Bar, current_bar
from tfopt.tfmot.installed import INSTALL

CHILD = pathlib.Path(__file__).with_name("child.py")


def run_task(
    task: str, job: Mapping[str, Any], batches: Callable[[int], pathlib.Path] | None = None, bar: Bar | None = None
) -> dict[str, Any]:
    """Has a task done in a process of its own.

    Args:
      task: a name in the child's TASKS.
      job: what it needs, as JSON values.
      batches: gives the file with the batches of an epoch; None: the task does not train.
      bar: moved on with the steps.

    Returns:
      What the task found.

    Raises:
      RuntimeError: it failed; tells in which part, and TFMOT's own words.
      ModuleNotFoundError: the process has no TFMOT or tf_keras.
    """
    doing = "the start"
    with _process() as (process, said):
        assert process.stdin is not None
        assert process.stdout is not None
        _send(process, {**job, "task": task})
        for line in process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise _error(answer["doing"], answer["error"])
            if "result" in answer:
                return answer["result"]
            doing = answer.get("doing", doing)
            if "epoch" in answer:
                assert batches is not None
                _send(process, {"batches": str(batches(answer["epoch"]))})
            if "step" in answer and bar is not None:
                logs = answer.get("logs") or {}
                shown = [f"{key} {logs[key]:.3f}" for key in ("loss", "val_accuracy") if key in logs]
                bar.update(answer["step"], " ".join(shown) or None)
        code = process.wait()
        said.seek(0)
        written = said.read()[-2000:].decode(errors="replace").strip()
    raise RuntimeError(
        f"the process of TFMOT ended with code {code} in {doing}; it wrote: {written or 'nothing'}. Start again: "
        "finished stages are kept"
    )


def _error(doing: str, words: str) -> Exception:
    if words.startswith(("ModuleNotFoundError", "ImportError")):
        return ModuleNotFoundError(f"TFMOT cannot be imported ({words}): {INSTALL}")
    kind = FloatingPointError if words.startswith("FloatingPointError") else RuntimeError
    return kind(f"TFMOT failed in {doing}: {words}")


@contextlib.contextmanager
def _process() -> Iterator[tuple[subprocess.Popen[str], Any]]:
    # A file, since nobody reads along, and a pipe would be full one day.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            # Without the folder of the script on the path of imports.
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _send(process: subprocess.Popen[str], values: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    # A process that has died is reported where its answers end.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(values) + "\n")
        process.stdin.flush()


class Epochs:
    """The batches of each epoch as files, in the order that tfopt's own training has."""

    def __init__(self, data: Data, epochs: int, folder: pathlib.Path) -> None:
        self.data, self.epochs, self.folder = data, epochs, folder
        self.validation = self._write("validation", data.batches("validation"))
        self._write_epoch(0)

    def __call__(self, epoch: int) -> pathlib.Path:
        """The file of an epoch; the one before it is removed."""
        if epoch:
            self._write_epoch(epoch)
            remove(self._path(epoch - 1))
        return self._path(epoch)

    def _path(self, epoch: int) -> pathlib.Path:
        return self.folder / f"epoch-{epoch}"

    def _write_epoch(self, epoch: int) -> None:
        self._write(self._path(epoch).name, self.data.training_batches(epoch))

    def _write(self, name: str, batches: Any) -> pathlib.Path:
        path = self.folder / name
        with atomic_path(path) as temporary:
            batches.save(str(temporary))
        return path


def train_task(task: str, job: Mapping[str, Any], data: Data, epochs: int, folder: pathlib.Path) -> dict[str, Any]:
    """`run_task` for a task that trains on so many epochs of data, which cross in files in a folder."""
    feed = Epochs(data, epochs, folder)
    steps = data.steps_per_epoch
    job = {**job, "epochs": epochs, "steps_per_epoch": steps, "validation": str(feed.validation)}
    return run_task(task, job, feed, current_bar(epochs * steps))
