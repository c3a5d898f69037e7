"""`Job`: what all processes of a run have in common, and `Predictor`, which does shards of it."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.predict.folder import Shard, write_shard
from tfopt.predict.outputs import Format, Predicted, classify
from tfopt.predict.source import Source
from tfopt.serve.model import load

# Rows that are read and predicted together: a multiple of `predict_tflite`'s batch, so that its batches are ours.
CHUNK = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What a process must know to do shards.

    Args:
      model: path of the file or folder.
      source: the rows.
      folder: where the shards go.
      shards: the rows of each.
      raises: whether a bad row is an error.
      format: of the shards.
      class_names: of the first output; empty: it has none.
      threads: for each process.
    """

    model: pathlib.Path
    source: Source
    folder: pathlib.Path
    shards: tuple[range, ...]
    raises: bool
    format: Format
    class_names: tuple[str, ...]
    threads: int


class Predictor:
    """The model in this process."""

    def __init__(self, job: Job) -> None:
        # TensorFlow, which reads images, takes it before its first operation only.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(job.threads)
            tf.config.threading.set_inter_op_parallelism_threads(job.threads)
        self._job, self._model = job, load(job.model, job.threads)

    def shard(self, number: int, tell: Callable[[int], Any]) -> Shard:
        """Predicts the rows of a shard and writes them.

        Args:
          number: of the shard.
          tell: is given the number of rows after each few.

        Raises:
          ValueError: a row is bad, and that is to be an error.
          RuntimeError: the input was changed meanwhile, or the model cannot compute an example.
        """
        job, span = self._job, self._job.shards[number]
        rows, ids, skipped = list[int](), list[str](), list[tuple[int, str, str]]()
        outputs: dict[str, list[np.ndarray]] = {}
        for start in range(span.start, span.stop, CHUNK):
            stop = min(start + CHUNK, span.stop)
            found = job.source.read(start, stop)
            for place, fault in found.faults.items():
                if job.raises:
                    raise ValueError(
                        f"row {start + place}, {found.ids[place]}, cannot be used: {fault}. Mend it, or pass "
                        'on_bad="skip", on the command line --on_bad=skip'
                    )
                skipped.append((start + place, found.ids[place], fault))
            good = [place for place in range(len(found.ids)) if place not in found.faults]
            if good:
                for name, values in self._model.predict(found.inputs).items():
                    outputs.setdefault(name, []).append(values)
            rows += [start + place for place in good]
            ids += [found.ids[place] for place in good]
            tell(stop - start)
        job.source.check_unchanged(span.start, span.stop)
        return write_shard(job.folder, number, span, self._predicted(rows, ids, outputs), skipped, job.format)

    def _predicted(self, rows: list[int], ids: list[str], parts: dict[str, list[np.ndarray]]) -> Predicted | None:
        if not rows:
            return None
        outputs = {name: np.concatenate(each) for name, each in parts.items()}
        first = next(iter(outputs.values()))
        names = self._job.class_names
        return Predicted(np.array(rows, np.int64), ids, outputs, classify(first, names) if names else None)
