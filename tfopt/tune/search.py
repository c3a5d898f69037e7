"""`search`: a recipe tried with many settings."""

import functools
import inspect
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from tfopt.config import require
from tfopt.launch import recipe_name
from tfopt.stage import Work
from tfopt.tune.journal import Journal, points
from tfopt.tune.objectives import OBJECTIVES, check_objectives
from tfopt.tune.page import write_html, write_markdown
from tfopt.tune.processes import check_job, run_trials
from tfopt.tune.recipe import Recipe, check_spaces
from tfopt.tune.result import Search, Trial
from tfopt.tune.spaces import Space
from tfopt.tune.trial import Ended, Job
from tfopt.workdir import claim, identity, locked


def search(
    recipe: Recipe,
    spaces: Mapping[str, Space],
    objectives: Sequence[str] = ("accuracy",),
    trials: int = 20,
    *,
    workdir: str | os.PathLike[str],
    work: Work | None = None,
    jobs: int = 1,
    seed: int = 0,
    pruner: Any = None,
) -> Search:
    """Tries a recipe with many settings and tells the best; goes on where an earlier call was killed.

    Each trial is a chain in a folder of its own, `<workdir>/trials/0007`. Stages that an earlier trial did with the
    same settings, and the same ones before them, are taken over from it. The workdir has search.md
    after every trial, and search.html at the end.

    Args:
      recipe: a function that returns stages, such as `stages` of a recipe, or a list of stages.
      spaces: `Range` or `Choice` by the name of a parameter of the function, or by the path of a field of a stage,
        such as "Prune.final_sparsity" or "03-Train.fit.learning_rate".
      objectives: names from `tfopt.tune.objectives.OBJECTIVES`. With several the result is a Pareto front.
      trials: how many in all, at least 1; those of earlier calls count. A space of fewer points is tried whole.
      workdir: folder of the search.
      work: model, data and seed that each trial begins with; its workdir does not count.
      jobs: how many trials at once, in processes of their own; with 1 in this process, and the same seed gives the same
        trials.
      seed: what is tried follows from it.
      pruner: an Optuna pruner, which ends bad trials by the objective so far; None: the median pruner. Accuracy, loss
        and error are looked at after each epoch, on the validation split, the epochs of a chain being its steps; the
        others, and all in a chain that does not train, after each stage. Only with one objective.

    Returns:
      The trials, the Pareto front and the best one.

    Raises:
      ModuleNotFoundError: Optuna is missing: the extra `tune`.
      TypeError: a space is neither a `Range` nor a `Choice`.
      ValueError: the search cannot work, or the workdir belongs to another one.
      RuntimeError: every trial failed, or another process uses the workdir.

    Source: Akiba et al., Optuna, 2019, arXiv:1907.10902; Bergstra et al., Algorithms for Hyper-Parameter Optimization
    (TPE), 2011.

    Example::

        found = tfopt.tune.search(
            stages,
            {"sparsity": Range(0.5, 0.9, step=0.1), "Train.fit.optimizer": Choice("adam", "sgd")},
            objectives=("val_accuracy", "gzip_bytes"),
            workdir="runs/search",
        )
        print(found.best.folder)
    """
    for name, value in (("trials", trials), ("jobs", jobs)):
        require(isinstance(value, int) and value >= 1, f"{name} must be a whole number from 1, received {value!r}")
    objectives = check_objectives(objectives)
    require(
        pruner is None or len(objectives) == 1,
        f"a pruner compares trials by one objective, and there are {len(objectives)}: leave the pruner out",
    )
    times = [each for each in objectives if each.endswith("_ms")]
    require(jobs == 1 or not times, f"trials that run at once disturb each other's {', '.join(times)}: take jobs=1")
    stages = check_spaces(recipe, spaces)
    work = work or Work()
    folder = pathlib.Path(workdir).expanduser().resolve()
    function = recipe.func if isinstance(recipe, functools.partial) else recipe
    name = recipe_name(function) if inspect.isfunction(function) else ""
    job = Job(recipe, name, objectives, work.replace(workdir=folder), folder)
    if jobs > 1:
        check_job(job)
    optuna = _optuna()
    mine = {
        "spaces": {key: repr(space) for key, space in spaces.items()},
        "objectives": list(objectives),
        "search seed": seed,
        **identity(name, stages, work),
    }
    with locked(folder):
        claim(folder, mine)
        pruner = pruner or optuna.pruners.MedianPruner()
        journal = Journal(folder / "journal.log", spaces, [OBJECTIVES[each] for each in objectives], seed, pruner)
        if trials > points(spaces):
            logging.warning("the space has %g points only: it is tried whole", points(spaces))
        _run(job, journal, min(trials, points(spaces)), jobs)
        found = _found(job, journal)
        write_markdown(found)
        write_html(found)
    if not any(each.state == "complete" for each in found.trials):
        reasons = "; ".join(f"trial {each.number}: {each.reason}" for each in found.trials[:3])
        raise RuntimeError(f"all {len(found.trials)} trials failed: {reasons}. Mend it and take another workdir")
    return found


def _run(job: Job, journal: Journal, trials: float, jobs: int) -> None:
    interrupted = journal.interrupted

    def take() -> tuple[int, Mapping[str, Any]] | None:
        if interrupted:
            number = interrupted.pop(0)
        elif len(journal.trials) < trials:
            number = journal.draw()
        else:
            return None
        return number, journal.values(number)

    def record(number: int, ended: Ended) -> None:
        require(
            ended.state != "unmeasured",
            f"the report of trial {number} has no {ended.reason!r}: sizes need the stage ExportTFLite or Benchmark, "
            "times Benchmark, val_... a stage that trains; add it to the recipe, and take another workdir",
        )
        if ended.state == "complete":
            journal.complete(number, ended.values)
        elif ended.state == "pruned":
            journal.prune(number)
        else:
            journal.fail(number, ended.reason)
        logging.info("trial %d of %g: %s %s %s", number, trials, ended.state, ended.values, ended.reason)
        write_markdown(_found(job, journal))

    run_trials(job, jobs, take, journal.is_bad, record)


def _found(job: Job, journal: Journal) -> Search:
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    trials = [
        Trial(
            number=each.number,
            parameters=journal.values(each.number),
            state=states[each.state.name],
            values=dict(zip(job.objectives, each.values, strict=True)) if each.state.name == "COMPLETE" else {},
            reason=each.user_attrs.get("reason", ""),
            folder=job.folder(each.number),
        )
        for each in journal.trials
        if each.state.is_finished()
    ]
    return Search(job.objectives, tuple(trials), job.workdir)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a search needs the package optuna: pip install 'tfopt[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
