"""The stage `Ensemble`: several members trained, and put together as one model."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tfopt.config import require
from tfopt.data import Data
from tfopt.data.check import check_data
from tfopt.ensemble.boosting import boosted, parts_of
from tfopt.ensemble.combine import Method, check_method
from tfopt.ensemble.costs import cost_note, gain_note, scores_of, steps_note
from tfopt.ensemble.kinds import Architectures, Bagging, Boosting, Files, Members, Seeds, Trained, reordered
from tfopt.ensemble.members import fresh, same
from tfopt.ensemble.one_model import as_one_model
from tfopt.ensemble.stacking import Stacking, out_of_fold, probabilities, stacking_weights, targets_of
from tfopt.invariants import Invariant
from tfopt.quantize.frozen import is_quantized
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.stage import validate_training
from tfopt.train.task import task_of
from tfopt.variables import all_layers

History = dict[str, list[float]]


@dataclasses.dataclass(frozen=True, repr=False)
class Ensemble(Stage):
    """Trains several members, and makes one model of them, which the stages that follow take as any other.

    Interrupted, it goes on with the member that it was at. `DistillInto` makes a small model of the result.

    Args:
      members: where they come from: `Seeds`, `Bagging`, `Snapshots`, `Architectures`, `Boosting`, or `Files`.
      combine: "mean", "geometric" or "vote", see `as_one_model`; or `Stacking()`, a mean by learnt weights. Boosting
        adds its members, whatever this is.
      epochs: passes over the training split for each member, at least 1; none for `Files`.
      fit: how each is trained.

    Raises:
      TypeError: members of another kind.
      ValueError: an unknown method, or one that does not go with the members.

    >>> Ensemble(Seeds(5), "geometric", epochs=10)
    Ensemble(members=Seeds(count=5), combine='geometric', epochs=10)
    """

    members: Members = Seeds()
    combine: Method | Stacking = "mean"
    epochs: int = 5
    fit: Fit = Fit()
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.members, Members):
            raise TypeError(
                f"members must be Seeds, Bagging, Snapshots, Architectures, Boosting or Files, received "
                f"{self.members!r}"
            )
        if not isinstance(self.combine, Stacking):
            check_method(self.combine)
            return
        require(
            not isinstance(self.members, Files),
            "Stacking needs predictions for examples that a member was not trained on, and what models in files were "
            "trained on is not known: use a mean, or have the members trained here",
        )
        require(
            isinstance(self.members, Seeds | Bagging | Architectures) and self.members.fresh,
            f"Stacking trains each member by itself, once without each fold, and {self.members!r} begin with what was "
            "trained on all folds: use Seeds, Bagging or Architectures",
        )

    def validate(self, work: Work) -> Work:
        """Checks the members, how they go together, and what was promised before."""
        if isinstance(self.members, Files):
            return self._expect(work, self._loaded(work))
        if not isinstance(self.members, Architectures):
            require(
                not is_quantized(work.need_model()),
                "the model is quantization-aware, and the mean of its members would not be: put Ensemble before "
                "QuantizeAware, which then quantizes all of it",
            )
        if not isinstance(self.members, Boosting):
            begun = [self.members.begin(number, work, work.model)[0] for number in self._numbers()]
        else:
            begun = [fresh(work.need_model()) for _ in self._numbers()]
        for each in begun:
            self._task(work).compile(each, jit_compile=False)
        # Copies of one model are alike.
        for each in begun if isinstance(self.members, Architectures) else begun[:1]:
            validate_training(work.replace(model=each), self.epochs, self.fit)
        return self._expect(work, begun)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Trains the members and puts them together."""
        notes, history = [], History()
        if isinstance(self.members, Boosting):
            model, sums = self._boost(self.members, work, history)
            name, scores = scores_of([*sums, model], work.need_data())
            notes += [steps_note(name, scores), cost_note(sums[:1], model)]
        else:
            members = self._train(work, history)
            weights = self._weights(work, members, notes)
            method = "mean" if isinstance(self.combine, Stacking) else self.combine
            model = as_one_model(members, method, weights)
            name, [*scores, score] = scores_of([*members, model], work.need_data())
            notes += [gain_note(type(self.members).__name__, name, scores, score), cost_note(members, model)]
        result = work.replace(model=model, invariants=self._followed(work, model), trained=True)
        changed = [layer.name for layer in model.layers if layer.weights]
        return Outcome(result, changed=changed, history=history, notes=notes)

    def _numbers(self) -> range:
        return range(1, self.members.count + 1)

    def _task(self, work: Work) -> Any:
        """What members are trained for: what the model is; of new architectures, what the data are."""
        if isinstance(self.members, Architectures):
            return task_of(self.members.builds[0].validate(work).need_model(), work.need_data())
        return task_of(work.need_model(), work.need_data())

    def _loaded(self, work: Work) -> list[keras.Model]:
        assert isinstance(self.members, Files)
        loaded = self.members.load()
        for each in loaded:
            check_data(work.need_data(), each)
            task_of(each, work.need_data()).compile(each, jit_compile=False)
        return loaded

    def _expect(self, work: Work, members: Sequence[keras.Model]) -> Work:
        """The work as it will be, with members of these shapes."""
        if isinstance(self.members, Boosting):
            model = boosted([], members[0])
            for each in members[1:]:
                model = boosted(parts_of(model), each, self.members.shrinkage)
        else:
            method = "mean" if isinstance(self.combine, Stacking) else self.combine
            weights = list(self._numbers()) if isinstance(self.combine, Stacking) else None
            model = as_one_model(members, method, weights)
        return work.replace(model=model, invariants=self._followed(work, model), trained=True)

    def _followed(self, work: Work, model: keras.Model) -> tuple[Invariant, ...]:
        """The promises, for the same variables in each member."""
        if not work.invariants:
            return ()
        require(
            not isinstance(self.members, Files) and not self.members.fresh,
            f"earlier stages promised {', '.join(each.kind for each in work.invariants)}, which the members of "
            f"{self.members!r} would not have, as they do not begin with this model's weights: put Prune and Cluster "
            "after Ensemble, or use Snapshots or fresh=False",
        )
        before = [variable.path for variable in work.need_model().variables]
        return tuple(
            promise.follow(dict(zip(before, [variable.path for variable in part.variables], strict=True)))
            for promise in work.invariants
            for part in parts_of(model)
        )

    def _train(self, work: Work, history: History) -> list[keras.Model]:
        """The members, each trained; those that were finished before an interruption come from their checkpoints."""
        if isinstance(self.members, Files):
            return self._loaded(work)
        assert not isinstance(self.members, Boosting)
        members: list[keras.Model] = []
        for number in self._numbers():
            members.append(self._train_one(self.members, number, work, history, members[-1:]))
        return members

    def _train_one(
        self,
        members: Trained,
        number: int,
        work: Work,
        history: History | None,
        previous: Sequence[keras.Model] = (),
        fold: int | None = None,
        data: Any = None,
    ) -> keras.Model:
        _seed(work, number, fold)
        own = work if data is None else work.replace(data=data)
        model, data = members.begin(number, own, *(previous or [work.model]))
        self._task(work).compile(model, jit_compile=False)
        part = f"member{number}" + ("" if fold is None else f"-without{fold + 1}")
        trained, curves = self._fit(model, data, work, part)
        for key, values in (curves if history is not None else {}).items():
            history.setdefault(key, []).extend(values)  # type: ignore[union-attr]
        return trained

    def _train_without(self, members: Trained, number: int, work: Work, data: Data, fold: int) -> keras.Model:
        """A member that has not seen a fold."""
        return self._train_one(members, number, work, None, (), fold, data)

    def _fit(self, model: keras.Model, data: Any, work: Work, part: str) -> tuple[keras.Model, Mapping[str, Any]]:
        return train_in(self, work, self.epochs, self.fit, model=model, data=data, part=part)

    def _weights(self, work: Work, members: Sequence[keras.Model], notes: list[str]) -> list[float] | None:
        """What stacking finds each member to be worth."""
        if not isinstance(self.combine, Stacking):
            return None
        kinds = self.members
        assert not isinstance(kinds, Files | Boosting)
        predictions = []
        for number in self._numbers():
            outputs = out_of_fold(
                functools.partial(self._train_without, kinds, number, work),
                work.need_data(),
                self.combine.folds,
                work.seed,
            )
            predictions.append(probabilities(members[number - 1], outputs))
        weights = stacking_weights(np.stack(predictions), *targets_of(work.need_data())).tolist()
        words = ", ".join(f"{weight:.3f}" for weight in weights)
        notes.append(f"stacking weights from {self.combine.folds} folds: {words}")
        return weights

    def _boost(self, boosting: Boosting, work: Work, history: History) -> tuple[keras.Model, list[keras.Model]]:
        """The boosted model, and a copy of it after each member but the last."""
        parts: list[keras.Model] = []
        sums: list[keras.Model] = []
        learns: list[list[bool]] = []
        for number in self._numbers():
            _seed(work, number)
            new = fresh(work.need_model())
            self._task(work).compile(new, jit_compile=False)
            model = boosted(parts, new, 1.0 if number == 1 else boosting.shrinkage)
            model, curves = self._fit(model, reordered(work.need_data(), number), work, f"member{number}")
            for key, values in curves.items():
                history.setdefault(key, []).extend(values)
            parts = parts_of(model)
            learns.append([layer.trainable for layer in all_layers(parts[-1])])
            sums.append(same(model))
            self._task(work).compile(sums[-1], jit_compile=False)
        for part, values in zip(parts, learns, strict=True):
            part.trainable = True
            for layer, value in zip(all_layers(part), values, strict=True):
                layer.trainable = value
        self._task(work).compile(model, jit_compile=False)
        return model, sums[:-1]


def _seed(work: Work, number: int, fold: int | None = None) -> None:
    """Makes what a member begins with the same after an interruption, whatever was trained before it."""
    parts = (work.seed, work.finished, number, 0 if fold is None else fold + 1)
    keras.utils.set_random_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))
