"""A recipe of stages that cost nothing, for the mechanics of a search; run as a script it searches."""

import dataclasses
import os
import pathlib
import signal
import sys
import time
from collections.abc import Mapping

import tfopt
from tfopt import tune


@dataclasses.dataclass(frozen=True, repr=False)
class Score(tfopt.Stage):
    """Says what it is told to have measured.

    Args:
      accuracy: in the report.
      size: bytes in the report.
      pause: seconds that it takes.
      fault: "" for none, "raise", or "die".
      options: nothing looks at them.
    """

    accuracy: float = 0.5
    size: int = 100
    pause: float = 0.0
    fault: str = ""
    options: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def validate(self, work):
        return work

    def apply(self, work, folder):
        if self.fault == "raise":
            raise ValueError(f"no accuracy of {self.accuracy}")
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        with open(work.workdir.parent / "done.txt", "a") as file:
            file.write(f"{folder.parent.name} {self.name} {self.accuracy}\n")
        artefact = {"accuracy": self.accuracy, "bytes": self.size}
        return tfopt.Outcome(work.replace(report=dataclasses.replace(work.report, artefacts={"tflite": artefact})))


class Last(Score):
    """The same under another name."""


def stages(x: float = 0.5, y: int = 3, pause: float = 0.0, fault_above: float = 2.0, fault: str = "raise"):
    """The first stage has half of the accuracy of the last one."""
    accuracy = x * (1 - 0.1 * (y - 3) ** 2)
    return [Score(accuracy / 2), Last(accuracy, 100 * y, pause, fault if x > fault_above else "")]


SPACES = {"x": tune.Range(0.0, 1.0), "y": tune.Range(1, 5)}


if __name__ == "__main__":
    workdir, trials, jobs, pause = sys.argv[1:]
    spaces = {**SPACES, "pause": tune.Choice(float(pause), float(pause) / 2)}
    found = tune.search(
        stages, spaces, ("accuracy", "bytes"), int(trials), workdir=pathlib.Path(workdir), jobs=int(jobs)
    )
    for trial in found.trials:
        print(trial.number, trial.state, dict(trial.parameters), dict(trial.values))  # noqa: T201
