"""A short recipe for workers that are killed; each one leaves its process number in the folder --pids."""

import os
import pathlib
import time
from collections.abc import Sequence

import tfopt
from tfopt.workers.addresses import find_workers


def stages(pids: str = "", data_dir: str | None = None) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      pids: where to leave the process number.
      data_dir: folder of the prepared TFDS sets.
    """
    workers = find_workers()
    if pids and workers is not None:
        pathlib.Path(pids, f"{time.time_ns()}-{workers.index}").write_text(str(os.getpid()))
    fit = tfopt.Fit(1e-3, steps_per_execution=2)
    return [
        tfopt.LoadTFDS("digits", data_dir, batch_size=64),
        tfopt.Build(tfopt.models.cnn),
        tfopt.Train(4, fit=fit),
        tfopt.Prune(0.5, epochs=3, fit=fit),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
