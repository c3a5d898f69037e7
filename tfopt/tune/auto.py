"""`reach`: finds a chain that brings a model within limits."""

import contextlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras

from tfopt.config import require
from tfopt.data import Data, as_data
from tfopt.data.check import check_data
from tfopt.quantize.aware import quantize_aware
from tfopt.quantize.frozen import is_quantized
from tfopt.stage import Work
from tfopt.tune.better import trained_on
from tfopt.tune.candidate import (
    Bench,
    Candidate,
    Plan,
    least_epochs,
    plain_candidate,
    teacher_of,
    try_candidate,
    unfit_to_teach,
)
from tfopt.tune.clock import Clock
from tfopt.tune.goal import Goal
from tfopt.tune.options import Option, Options, find_options, require_conceivable
from tfopt.tune.reached import Reached, write_reports
from tfopt.tune.reference import measure_reference, value_of
from tfopt.workdir import adopt, claim, identity, locked

# What an epoch costs beside one of the float model: for any width, for the work that is left, and for the teacher,
# which is the whole model and runs forward only. ResNet-8 with .62 of its work and a teacher took .78 on two cores.
_FIXED, _SCALED, _TAUGHT = 0.2, 0.6, 0.2
# Evaluations that a candidate's stages make, and seconds to write, compare and time a file.
_EVALUATIONS, _FILE_SECONDS = 10, 15.0
# Of the usable time, what a first look at an option takes; what the most promising one gets of the rest.
_LOOK, _LONG = 0.15, 0.8
# The most that glances at several shapes may take together, whose strains do not tell which of them learns best.
_GLANCES = 0.3
# Epochs of a look, and of a long training, that are enough whatever the time.
_MOST_LOOK, _MOST_LONG = 20, 100
# How much beyond max_drop an option may be after a look, to be worth a long training, which has some five times the
# epochs.
_PROMISING = 0.08
# Shares of latency, and their squares of the compressed size, that are tried where no cost is limited; the first one.
_STEPS, _FIRST = (0.95, 0.85, 0.775, 0.7, 0.6, 0.5, 0.4, 0.3), 3
# What is expected stays below a limit by this: compressed sizes turn out a little larger, times differ a little.
_MARGINS = {"bytes": 1.0, "gzip_bytes": 0.99, "median_ms": 0.98}


def reach(
    model: keras.Model,
    data: Any,
    *,
    workdir: str | os.PathLike[str],
    max_drop: float | None = None,
    max_bytes: int | None = None,
    max_gzip_bytes: int | None = None,
    max_latency_ms: float | None = None,
    max_minutes: float = 60.0,
    learning_rate: float = 2e-3,
    augment: bool = True,
    seed: int = 0,
) -> Reached:
    """Finds a chain that brings a trained model within limits; goes on where an earlier call was killed.

    With limits on what the file costs it looks for the most accurate file within them; with `max_drop` alone for the
    file that is smallest and fastest. Costs of all options are measured before anything is trained; few of them are
    then trained for a short time, and the most promising one for long. The float model teaches what becomes of it.

    Args:
      model: trained, functional or Sequential; it stays as it is.
      data: what it was trained for: `Data`, or whatever `as_data` takes. The validation split decides, the test split
        judges. Where the model knows the validation split, half of the test split decides, and the other half judges.
      workdir: folder of the search; report.html, report.md, report.json and model.tflite in it at the end.
      max_drop: how much worse than the float model the file may be, see `Goal`; None: anything.
      max_bytes: of the file as it is.
      max_gzip_bytes: of the file after gzip at level 9.
      max_latency_ms: median time of one invocation on this machine, one thread.
      max_minutes: for the whole search, above 0: no further training is begun after it.
      learning_rate: highest of the trainings; it falls along cosines.
      augment: mirror and shift training images where the model decides alike on such images, and the data have no
        augmentations of their own.
      seed: all randomness follows from it.

    Returns:
      All files that were tried, the best or the nearest one, and what limits it.

    Raises:
      TypeError: it is no Keras model.
      ValueError: limits that contradict themselves or that no file of this model can meet; a model that cannot be
        quantized, with the layers that have no rule; a workdir of another search. All before anything is trained.
      RuntimeError: another process uses the workdir.

    Source: Yang et al., NetAdapt, 2018, arXiv:1804.03230 (costs measured, not estimated); Jamieson and Talwalkar,
    2016, arXiv:1502.07943 (short trainings decide who gets a long one).

    Example::

        found = tfopt.tune.reach(model, data, max_drop=0.01, max_bytes=20_000, workdir="runs/small")
        print(found.reached, found.best.path, found.limits)
    """
    goal = Goal(max_drop, max_bytes, max_gzip_bytes, max_latency_ms)
    require(max_minutes > 0, f"max_minutes must be above 0, received {max_minutes!r}")
    require(learning_rate > 0, f"learning_rate must be above 0, received {learning_rate!r}")
    work = Work(model, as_data(data), pathlib.Path(workdir), seed=seed)
    folder, known = work.with_workdir().workdir, work.need_data()
    assert folder is not None
    notes = _check(work.need_model(), known)
    teaches = not notes
    mine = {
        "goal": repr(goal),
        "minutes": max_minutes,
        "learning_rate": learning_rate,
        "augment": augment,
        **identity("reach", [], work),
    }
    with locked(folder):
        claim(folder, mine)
        with Clock(folder, max_minutes * 60) as clock:
            keras.utils.set_random_seed(seed)
            model = adopt(work).need_model()
            reference, data = measure_reference(model, known, augment, folder)
            model, said = trained_on(model, data, reference, learning_rate, clock.limit, folder, seed)
            notes += said
            options = find_options(model, data, goal, reference, folder)
            require_conceivable(goal, options)
            clock.prepared()
            teacher = teacher_of(model) if teaches else None
            bench = Bench(model, data, reference, options.sparsity, learning_rate, teacher, folder, seed)
            search = _Search(bench, goal, options, clock)
            search.run()
        found = Reached(
            goal=goal,
            reference=reference,
            candidates=tuple(search.done),
            notes=(*notes, *options.notes, *search.notes),
            workdir=folder,
        )
        write_reports(found)
    return found


def _check(model: keras.Model, data: Data) -> list[str]:
    """Raises where the model cannot be searched; says why it cannot teach, where it cannot."""
    require(
        not is_quantized(model),
        f"{model.name!r} is quantization-aware already: give the float model that it was made from",
    )
    check_data(data, model)
    quantize_aware(model)
    _require_trained(model, data)
    reason = unfit_to_teach(model, data)
    return [f"without distillation: {reason}"] if reason else []


def _require_trained(model: keras.Model, data: Data) -> None:
    name, value = value_of(model, data, "validation")
    classes = max(2, len(data.class_names))
    # Two standard deviations above what guessing gives.
    chance = 1 / classes + 2 * math.sqrt((classes - 1) / data.sizes["validation"]) / classes
    require(
        name != "accuracy" or value > chance,
        f"the model {model.name!r} is right in {value:.1%} of the validation examples, no better than chance with "
        f"{classes} classes: train it first, see that pixel values are what it was trained on, and that labels are "
        "numbered as its outputs",
    )


class _Search:
    """Which candidates are tried, one after the other: from what was measured alone, so that a kill changes nothing."""

    def __init__(self, bench: Bench, goal: Goal, options: Options, clock: Clock) -> None:
        self.bench, self.goal, self.options, self.clock = bench, goal, options.options, clock
        self.done: list[Candidate] = [plain_candidate(bench.reference)]
        self.notes: list[str] = []
        self._plans: dict[int, Plan] = {}
        self._spent = 0.0

    def run(self) -> None:
        """Tries candidates until the goal is reached, nothing is left to try, or the time is over."""
        with contextlib.suppress(_Over):
            if self.goal.costs:
                self._within_costs()
            else:
                self._smallest()

    def _within_costs(self) -> None:
        """Looks at the mildest options within the costs, trains the best for long, then milder ones for the nearest."""
        options = _by_shape(self._affordable(self.goal.costs))
        if not options:
            self.notes.append(f"no option keeps to {self.goal}: {_why(self.goal, self.options, self.bench)}")
            options = [min(self.options, key=lambda each: self.goal.distance(self._expected(each)))]
        looks = [(each, self._look(each)) for each in options[:3]]
        whole = [(option, found) for option, found in looks if found.value is not None]
        if not whole or self._is_reached(max_drop_needed=True):
            return
        option, found = max(whole, key=lambda pair: -pair[1].worst["drop"])
        self._train_long(option, found)
        if self._is_reached():
            return
        # What is nearest on the other side: within the drop, beyond the costs.
        for share in (1.25, 1.6, 2.5):
            wider = {cost: limit * share for cost, limit in self.goal.costs.items()}
            for milder in _mildest(self._affordable(wider))[:1]:
                if milder not in options:
                    options.append(milder)
                    found = self._look(milder)
                    if found.value is not None and self._keeps(found):
                        return

    def _smallest(self) -> None:
        """Goes to stronger options as long as the drop allows it, and to milder ones where it does not."""
        assert self.goal.max_drop is not None
        good, bad, index = -1, len(_STEPS), _FIRST
        seen: dict[tuple[int, ...], bool] = {}
        while good < index < bad:
            options = self._at(_STEPS[index])
            places = tuple(self.options.index(each) for each in options)
            if not options:
                self.notes.append(
                    f"no option has {_STEPS[index]:.0%} of the plain int8 file's latency and compressed size"
                )
                keeps = False
            elif places in seen:
                keeps = seen[places]
            else:
                option = self._glance(options)
                found = self._look(option)
                if not self._keeps(found) and self._is_promising(found):
                    found = self._train_long(option, found)
                keeps = seen[places] = self._keeps(found)
            good, bad = (index, bad) if keeps else (good, index)
            index = good + 1 if bad == len(_STEPS) else (good + bad + 1) // 2

    def _at(self, share: float) -> list[Option]:
        """Of each shape the mildest option with a share of the latency, and its square of the compressed size."""
        reference = self.bench.reference
        latencies = [each.latency for each in self.options if each.latency and each.width >= share**3]
        # In small models most of the time is no work, and no option brings it down.
        latency = max(share, min(latencies, default=1.0) / _MARGINS["median_ms"])
        costs = {"gzip_bytes": share**2 * reference.gzip_bytes, "median_ms": latency * reference.median_ms}
        shapes = _by_shape(self._affordable(costs))
        return shapes[: len({each.blocks for each in shapes})]

    def _glance(self, options: Sequence[Option]) -> Option:
        """Of several shapes the one that is best after a very short training."""
        epochs = max(map(least_epochs, options))
        seconds = [epochs * self._epoch(each) + self._overhead for each in options]
        if len(options) == 1 or sum(seconds) > _GLANCES * self.clock.usable:
            return options[0]
        tried = [
            self._try(each, time + 1.0, epochs, self._parent(each)) for each, time in zip(options, seconds, strict=True)
        ]
        whole = [(found.worst["drop"], index) for index, found in enumerate(tried) if found.value is not None]
        return options[min(whole)[1] if whole else 0]

    def _affordable(self, costs: dict[str, float]) -> list[Option]:
        return [
            option
            for option in self.options
            if all(
                (cost := self._expected(option)[name]) is not None and cost <= _MARGINS[name] * limit + 1e-12
                for name, limit in costs.items()
            )
        ]

    def _expected(self, option: Option) -> dict[str, Any]:
        latency = None if option.latency is None else option.latency * self.bench.reference.median_ms
        return {"bytes": option.bytes, "gzip_bytes": option.gzip_bytes, "median_ms": latency, "drop": 0.0}

    def _keeps(self, found: Candidate) -> bool:
        """Whether a candidate keeps within the drop."""
        limit = self.goal.max_drop
        return found.value is not None and (limit is None or found.worst["drop"] <= limit + 1e-9)

    def _is_promising(self, found: Candidate) -> bool:
        assert self.goal.max_drop is not None
        return found.value is not None and found.worst["drop"] <= self.goal.max_drop + _PROMISING

    def _is_reached(self, max_drop_needed: bool = False) -> bool:
        if max_drop_needed and self.goal.max_drop is None:
            return False
        return any(each.value is not None and not self.goal.excess(each.worst) for each in self.done)

    def _look(self, option: Option) -> Candidate:
        """A short training."""
        return self._try(option, _LOOK * self.clock.usable, _MOST_LOOK, self._parent(option))

    def _train_long(self, option: Option, found: Candidate) -> Candidate:
        """A long training, from where the short one ended; the better of both."""
        longer = self._try(option, _LONG * (self.clock.usable - self._spent), _MOST_LONG, found.number)
        if longer.value is None:
            return found
        return min(longer, found, key=lambda each: each.worst["drop"])

    def _parent(self, option: Option) -> int:
        """The narrowest candidate that was trained and has all the blocks and channels that the option keeps."""
        fitting = [
            plan
            for plan in self._plans.values()
            if (plan.option.channels or plan.option.blocks)
            and set(plan.option.blocks) <= set(option.blocks)
            and all(option.channels.get(name, count + 1) <= count for name, count in plan.option.channels.items())
        ]
        return min(fitting, key=lambda plan: (plan.option.width, -plan.number)).number if fitting else 0

    def _try(self, option: Option, seconds: float, most: int, parent: int) -> Candidate:
        epochs = min(most, self._epochs(option, seconds))
        number = len(self.done)
        was_begun = self.bench.folder(number).exists()
        if not was_begun and (epochs < 2 or self.clock.seconds >= self.clock.limit) and number > 1:
            self.notes.append(f"the time was over after {number - 1} candidates: more max_minutes would try more")
            raise _Over
        plan = Plan(number, option, max(least_epochs(option), epochs), parent)
        found = try_candidate(self.bench, plan)
        self._spent += plan.epochs * self._epoch(option) + self._overhead
        self.clock.save()
        self.done.append(found)
        if found.value is not None:
            self._plans[number] = plan
        return found

    def _epochs(self, option: Option, seconds: float) -> int:
        """How many of a candidate fit into a time."""
        return int((seconds - self._overhead) / self._epoch(option))

    @property
    def _overhead(self) -> float:
        return _EVALUATIONS * self.bench.reference.evaluation_seconds + _FILE_SECONDS

    def _epoch(self, option: Option) -> float:
        """What one of a candidate's epochs takes."""
        taught = _TAUGHT if self.bench.teacher is not None else 0.0
        return self.bench.reference.epoch_seconds * (_FIXED + _SCALED * option.width + taught)


class _Over(Exception):
    """The time is over."""


def _mildest(options: Sequence[Option]) -> list[Option]:
    """Of options within the same costs, those from which no other takes less in every way; the least strain first."""

    def takes(option: Option) -> tuple[float, float, int]:
        return option.strain, option.zeros, len(option.bits)

    def is_milder(one: Option, other: Option) -> bool:
        pairs = list(zip(takes(one), takes(other), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return sorted((each for each in options if not any(is_milder(other, each) for other in options)), key=takes)


def _by_shape(options: Sequence[Option]) -> list[Option]:
    """The mildest: first the best of each choice of blocks, whose strains do not compare, then all others."""
    chosen = [_mildest([each for each in options if each.blocks == blocks]) for blocks in _shapes(options)]
    firsts = sorted((each[0] for each in chosen), key=lambda option: option.strain)
    others = [each for each in _mildest(options) if each not in firsts]
    return [*firsts, *others]


def _shapes(options: Sequence[Option]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(each.blocks for each in options))


def _why(goal: Goal, options: Sequence[Option], bench: Bench) -> str:
    """Which limit no option keeps to."""
    parts = []
    for cost, limit in goal.costs.items():
        known = {
            "bytes": [each.bytes for each in options],
            "gzip_bytes": [each.gzip_bytes for each in options],
            "median_ms": [each.latency * bench.reference.median_ms for each in options if each.latency is not None],
        }[cost]
        if min(known) > limit:
            parts.append(f"the least {cost.replace('_', ' ')} of any is about {min(known):.4g}")
    return "; ".join(parts) or "each limit alone could be kept, all of them together not"
