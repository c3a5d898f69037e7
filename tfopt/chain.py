"""`run`: a list of stages, validated whole, then done one by one, resuming where an earlier run stopped."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

from tfopt.progress import stage_bar
from tfopt.report import Report, describe_environment
from tfopt.stage import Stage, Work
from tfopt.train.strategies import describe
from tfopt.workdir import adopt, claim, identity, locked, read_stage, require_alike
from tfopt.workers.preemption import preemptible


def run(stages: Sequence[Stage], work: Work, recipe: str = "") -> Work:
    """Does the stages in order and returns the work after the last one.

    The whole list is validated first. Each finished stage is kept in the workdir; the same call with the same
    workdir goes on after the last of them, a training stage after its last checkpoint (each epoch's end, within an
    epoch each ten minutes), and ends with the same result. The report is written to the workdir after every stage.

    Args:
      stages: the stages in order, at least one.
      work: model, data and workdir to begin with.
      recipe: what the report calls this chain.

    Raises:
      TypeError: something in the list is no stage.
      ValueError: the list cannot work, the data are unfit, or the workdir belongs to another run or is damaged.
      RuntimeError: a promise was broken, or another process uses the workdir.
    """
    stages = list(stages)
    if not stages:
        raise ValueError("stages is empty: give at least one stage")
    for stage in stages:
        if not isinstance(stage, Stage):
            hint = f": write {stage.__name__}(...)" if isinstance(stage, type) else ""
            raise TypeError(f"a chain is a list of stages; received {stage!r} in it{hint}")
    work = work.with_workdir().replace(report=Report(recipe, {**describe_environment(), **describe(work.strategy)}))
    workdir = work.workdir
    assert workdir is not None
    peers = work.peers
    with preemptible(), locked(workdir) if peers.is_chief else contextlib.nullcontext():
        if work.model is not None:
            work.need_model()
        mine = identity(recipe, stages, work)
        require_alike(peers, mine)
        if peers.is_chief:
            claim(workdir, mine)
            work = adopt(work)
        peers.wait()
        work = adopt(work)
        validate(stages, work)
        for index, stage in enumerate(stages):
            folder = stage.folder(work)
            # The chief's view: a worker that is late may see what the chief has written since.
            if peers.chief_says(str(folder.exists())) == "True":
                with stage_bar(folder.name) as bar:
                    work = read_stage(folder, stage.validate(work))
                    bar.update(0, "was done before")
            else:
                with _named(index, stages):
                    work = stage(work)
            if peers.is_chief:
                work.report.write(workdir)
    return work


def validate(stages: Sequence[Stage], work: Work) -> Work:
    """Checks the whole list, and the data against the model, without training; returns the work to expect.

    Raises:
      Whatever is wrong, with the number of the stage and its repr added to the error.
    """
    for index, stage in enumerate(stages):
        with _named(index, stages):
            expected = stage.validate(work)
            if stage.trains or expected.model is not work.model:
                # Later stages may name it as their teacher; the file is yet to come.
                snapshot = (f"{index + 1:02d}-{stage.name}", pathlib.Path())
                expected = expected.replace(snapshots=(*expected.snapshots, snapshot))
            work = expected
    return work


@contextlib.contextmanager
def _named(index: int, stages: Sequence[Stage]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"in stage {index + 1} of {len(stages)}: {stages[index]!r}")
        raise
