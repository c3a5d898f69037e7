"""The search's memory: Optuna's study in a journal file, written by one process only."""

import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.files import remove
from tfopt.tune.spaces import Space


class Journal:
    """The trials of a search, on disk as soon as they are drawn, reported or ended.

    Each trial is drawn from the ended ones, a seed and its own number: so a search that goes on after a kill draws what
    it would have drawn anyway. No trial is drawn twice.

    Args:
      path: the journal's file; nobody else may write it.
      spaces: what to draw from, by name.
      maximize: for each objective, whether more is better.
      seed: of the draws.
      pruner: an Optuna pruner.
    """

    def __init__(
        self, path: pathlib.Path, spaces: Mapping[str, Space], maximize: Sequence[bool], seed: int, pruner: Any
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self._optuna, self._seed, self._pruner, self._spaces = optuna, seed, pruner, spaces
        self._distributions = {name: space.distribution() for name, space in spaces.items()}
        self._directions: list[Any] = ["maximize" if each else "minimize" for each in maximize]
        _mend(path)
        self._storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        self._study = optuna.create_study(
            storage=self._storage, study_name="search", directions=self._directions, load_if_exists=True
        )

    @property
    def trials(self) -> list[Any]:
        """Optuna's records of all trials, by number."""
        return self._study.get_trials(deepcopy=False)

    @property
    def interrupted(self) -> list[int]:
        """The trials that were begun and have not ended."""
        return [each.number for each in self.trials if not each.state.is_finished()]

    def values(self, number: int) -> dict[str, Any]:
        """What a trial is done with."""
        drawn = self.trials[number].params
        return {name: space.value(drawn[name]) for name, space in self._spaces.items()}

    def draw(self) -> int:
        """Begins a trial that differs from all others; returns its number."""
        optuna, trials = self._optuna, self.trials
        known = [each.params for each in trials]
        draft = optuna.create_study(directions=self._directions)
        draft.add_trials(trials)
        for attempt in itertools.count():
            seed = int(np.random.SeedSequence([self._seed, len(trials), attempt]).generate_state(1)[0])
            # A second thought is left to chance: the sampler may insist on what it likes best.
            draft.sampler = optuna.samplers.RandomSampler(seed) if attempt else optuna.samplers.TPESampler(seed=seed)
            drawn = draft.ask(self._distributions).params
            if drawn not in known:
                break
        running = optuna.trial.TrialState.RUNNING
        # Whole in one line of the journal: a kill leaves it there or not.
        self._study.add_trial(optuna.trial.create_trial(state=running, params=drawn, distributions=self._distributions))
        return len(trials)

    def is_bad(self, number: int, step: int, value: float) -> bool:
        """Notes an intermediate value; whether the trial should end here."""
        trial = self.trials[number]
        self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
        return self._pruner.prune(self._study, self.trials[number])

    def complete(self, number: int, values: Sequence[float]) -> None:
        """Ends a trial with its objectives."""
        self._study.tell(number, list(values))

    def prune(self, number: int) -> None:
        """Ends a trial that was bad."""
        self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial that went wrong."""
        self._storage.set_trial_user_attr(self.trials[number]._trial_id, "reason", reason)
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)


def points(spaces: Mapping[str, Space]) -> float:
    """How many different trials there can be.

    >>> from tfopt.tune.spaces import Choice, Range
    >>> points({"a": Range(1, 3), "b": Choice(True, False)}), points({"a": Range(0.0, 1.0)})
    (6, inf)
    """
    counts = [math.inf if space.count is None else space.count for space in spaces.values()]
    return math.prod(counts)


def _mend(path: pathlib.Path) -> None:
    """Takes away what a killed process left: its lock, and a line that it had not written to its end."""
    remove(path.with_name(f"{path.name}.lock"))
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {path} is damaged ({error}): use another workdir") from error
        with open(path, "r+b") as file:
            file.truncate(whole)
