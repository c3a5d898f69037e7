"""The stage `PruneChannels`."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar, Literal

import keras

from tfopt.analyze.allocate import allocate, levels_for
from tfopt.analyze.sensitivity import sensitivity
from tfopt.channels.measured import MEASURED, plan_pruning
from tfopt.channels.plan import ChannelPlan, plan_channels
from tfopt.channels.propagate import follow_channels
from tfopt.channels.rebuild import apply_plan
from tfopt.channels.selection import Layers
from tfopt.config import require
from tfopt.data import Data
from tfopt.distill.accuracy import teacher_notes
from tfopt.order import require_order
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.rates import Cosine
from tfopt.train.stage import validate_training
from tfopt.train.task import task_of

# What `layers` may be beside what `prune_channels` takes.
BY_SENSITIVITY = "sensitivity"


@dataclasses.dataclass(frozen=True, repr=False)
class PruneChannels(Stage):
    """Takes whole channels out of the model, at once or bit by bit, and trains what remains.

    Args:
      ratio: the share of the channels that goes from every group, in [0, 1).
      target: instead, the shares that may remain, in (0, 1], by "channels", "parameters", "macs", "bytes" (of the int8
        file) or "latency" (of the int8 file, on this machine): {"macs": 0.5}.
      epochs: passes over the training split after each of the iterations, at least 1.
      iterations: in how many parts the channels go, each followed by its training; 1: at once.
      criterion: what makes a channel matter: "l1", "l2", "bn_gamma" or "taylor" (on the validation split).
      layers: names, a predicate, or a ratio by name; see `prune_channels`. "sensitivity": what each layer gives up for
        the target is chosen from what it alone costs, measured before each iteration; not for bytes or latency.
      fit: how to train.
      multiple: what is kept of a group is rounded up to a multiple of it, at least 1.

    Raises:
      ValueError: for values out of range; before training, for a target that cannot be reached.

    Source: Li et al., 2017, arXiv:1608.08710; Molchanov et al., 2017, arXiv:1611.06440 (in iterations).

    >>> PruneChannels(target={"macs": 0.5}, epochs=3)
    PruneChannels(target={'macs': 0.5}, epochs=3)
    """

    ratio: float | None = None
    target: Mapping[str, float] | None = None
    epochs: int = 2
    iterations: int = 1
    criterion: str = "l1"
    layers: Layers | Literal["sensitivity"] = None
    fit: Fit = Fit(Cosine(1e-3))
    multiple: int = 8
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole = isinstance(self.iterations, int) and self.iterations >= 1
        require(whole, f"iterations must be a whole number from 1, received {self.iterations!r}")
        require(
            self.layers != BY_SENSITIVITY or self.target is not None,
            'layers="sensitivity" shares a target out: give one, such as target={"macs": 0.5}',
        )
        require(
            self.layers != BY_SENSITIVITY or not self._measured,
            f'layers="sensitivity" shares out what can be counted, received a target of {self._measured}: give it '
            "in macs or parameters, or leave layers out",
        )

    def validate(self, work: Work) -> Work:
        """Checks that channels can go, and as many as asked."""
        validate_training(work, self.epochs, self.fit)
        require_order(work, "channels")
        require(
            not self._measured or work.peers.count == 1,
            f"each of {work.peers.count} workers would measure {self._measured} and find other channels: give a "
            "target such as macs, or prune channels in a run of one process",
        )
        model = work.need_model()
        plan = self._expected(model)
        smaller, kept = apply_plan(model, plan)
        promises = tuple(each.follow({old: new for old, (new, _) in kept.items()}) for each in work.invariants)
        return work.replace(model=smaller, invariants=promises, trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Prunes and trains, as often as asked."""
        data, first = work.need_data(), work.need_model()
        task, model, promises = task_of(first, data), first, work.invariants
        history: dict[str, list[float]] = {}
        plans: list[ChannelPlan] = []
        for number in range(1, self.iterations + 1):
            part = self._part(number, model, first, data)
            smaller, kept = apply_plan(model, part)
            promises = tuple(each.follow({old: new for old, (new, _) in kept.items()}) for each in promises)
            task.compile(smaller, jit_compile=False)
            model, curves = train_in(self, work, self.epochs, self.fit, model=smaller, keep=promises, part=str(number))
            for key, values in curves.items():
                history.setdefault(key, []).extend(values)
            plans.append(part)
        before, after = plans[0].before, plans[-1].after
        notes = [
            f"{before.channels:,} channels became {after.channels:,}, {before.parameters:,} parameters "
            f"{after.parameters:,}"
        ]
        if before.macs and after.macs:
            notes.append(
                f"{before.macs:,} multiplications of one example became {after.macs:,} ({after.macs / before.macs:.3f})"
            )
        notes += teacher_notes(work, self.fit, model)
        changed = list(dict.fromkeys(name for plan in plans for name in plan.kept))
        skipped = [{"layer": name, "reason": why} for name, why in plans[-1].skipped.items() if name not in changed]
        result = work.replace(model=model, invariants=promises, trained=True)
        return Outcome(result, changed=changed, skipped=skipped, history=history, notes=notes)

    @property
    def _measured(self) -> str:
        """The targets that are measured, for messages; empty where there are none."""
        return ", ".join(sorted(set(self.target or ()) & set(MEASURED)))

    def _expected(self, model: keras.Model) -> ChannelPlan:
        """A plan with the counts to expect, found without measuring: what decides the order does not decide them."""
        criterion = "bn_gamma" if self.criterion == "bn_gamma" else "l1"
        layers = None if self.layers == BY_SENSITIVITY else self.layers
        if self._measured:
            return plan_channels(model, ratio=0.5, criterion=criterion, layers=layers, multiple=self.multiple)
        return plan_channels(model, self.ratio, self.target, criterion=criterion, layers=layers, multiple=self.multiple)

    def _part(self, number: int, model: keras.Model, first: keras.Model, data: Data) -> ChannelPlan:
        """What goes from the model as it is now, so that after the last iteration all has gone that was asked for."""
        share = number / self.iterations
        target = self.target and {key: left**share for key, left in self.target.items()}
        seen = data.batches("validation") if self.criterion == "taylor" else None
        if self.layers == BY_SENSITIVITY:
            assert target is not None
            left = _left(model, first, target)
            found = sensitivity(model, data, "ratio", levels_for(left))
            ratios = allocate(model, found, left, self.multiple)
            return plan_channels(model, layers=ratios, data=seen, criterion=self.criterion, multiple=self.multiple)
        ratio = None if self.ratio is None else 1.0 - (1.0 - self.ratio) ** share
        layers = self.layers
        if isinstance(layers, Mapping):
            layers = {name: 1.0 - (1.0 - each) ** share for name, each in layers.items()}
        options = {"data": seen, "criterion": self.criterion, "multiple": self.multiple}
        goal = plan_pruning(first, ratio, target, layers, **options)
        if number == 1:
            return goal
        # The counts of the goal, but of the channels that matter least by now.
        now = {producer.name: len(producer.ids) for producer in follow_channels(model).producers.values()}
        ratios = {}
        for group in goal.groups:
            name = group[0]
            if name in goal.kept and len(goal.kept[name]) < now[name]:
                ratios[name] = 1.0 - len(goal.kept[name]) / now[name]
        return plan_channels(model, layers=ratios, data=seen, criterion=self.criterion, multiple=1)


def _left(model: keras.Model, first: keras.Model, target: Mapping[str, float]) -> dict[str, float]:
    """The target as shares of the model as it is now."""
    whole, now = (plan_channels(each, ratio=0.0).before for each in (first, model))
    return {key: min(1.0, left * getattr(whole, key) / getattr(now, key)) for key, left in target.items()}
