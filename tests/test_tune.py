"""Search: what is tried, refused, pruned, shared and told, and that an interrupted search ends as another."""

import dataclasses
import json
import os
import re

import keras
import numpy as np
import pytest
from absl.testing import flagsaver

import tfopt
from recipes import tune as command
from tests.tune_recipe import SPACES, Last, Score, stages
from tfopt import tune
from tfopt.tune.recipe import build

X = {"x": tune.Range(0.0, 1.0)}


def outcome(found):
    return [(each.state, each.parameters, each.values) for each in found.trials]


def test_the_best_is_found_and_told(tmp_path):
    found = tune.search(stages, {**SPACES, "Last.pause": tune.Choice(0.0, 0)}, trials=25, workdir=tmp_path)
    assert len(found.trials) == 25
    complete = [each for each in found.trials if each.state == "complete"]
    assert found.best.values["accuracy"] == max(each.values["accuracy"] for each in complete) > 0.7
    # The sampler learns: later trials are better than those by chance.
    assert found.best.number >= 10
    assert found.best.folder == tmp_path / "trials" / f"{found.best.number:04d}"
    page, text = (tmp_path / "search.html").read_text(), (tmp_path / "search.md").read_text()
    assert f"Best: `trials/{found.best.number:04d}`" in text
    assert "test split" in text
    assert page.count("<tr>") == 26
    assert "<svg" in page
    assert (tmp_path / "trials" / "0000" / "report.html").exists()


def test_the_same_seed_gives_the_same_trials(tmp_path):
    one, same, other = (
        tune.search(stages, SPACES, trials=trials, workdir=tmp_path / name, seed=seed)
        for name, trials, seed in (("one", 12, 0), ("same", 12, 0), ("other", 1, 1))
    )
    assert outcome(one) == outcome(same)
    assert outcome(one)[0] != outcome(other)[0]


def test_no_trial_is_repeated_and_a_small_space_is_tried_whole(tmp_path, caplog):
    spaces = {"x": tune.Range(0.2, 0.8, 0.2), "y": tune.Choice(1, 3, 5)}
    found = tune.search(stages, spaces, ("accuracy", "bytes"), trials=50, workdir=tmp_path)
    assert "12 points only" in caplog.text
    tried = {(round(each.parameters["x"], 6), each.parameters["y"]) for each in found.trials}
    assert len(found.trials) == len(tried) == 12
    # x=0.8 beats the rest at each size; y=5 costs more than y=3 and brings less.
    assert [each.values for each in found.front] == [
        {"accuracy": pytest.approx(0.8), "bytes": 300.0},
        {"accuracy": pytest.approx(0.48), "bytes": 100.0},
    ]
    assert found.best == found.front[0]
    assert "Pareto front" in (tmp_path / "search.html").read_text()


def test_bad_trials_end_early(tmp_path):
    found = tune.search(stages, X, trials=20, workdir=tmp_path)
    pruned = [each for each in found.trials if each.state == "pruned"]
    complete = [each for each in found.trials if each.state == "complete"]
    assert pruned
    assert len(complete) >= 5
    for each in pruned:
        assert each.number >= 5
        assert (each.folder / "01-Score").exists()
        assert not (each.folder / "02-Last").exists()
        # Worse than the median of those before it that came to their end.
        before = [other.parameters["x"] for other in complete if other.number < each.number]
        assert each.parameters["x"] < np.median(before)
        assert each.values == {}


@pytest.fixture
def by_rate(data):
    """A chain whose learning rate decides how good it is, and what it begins with."""
    from tests.conftest import CLASSES

    x = keras.Input((8, 8, 2))
    y = keras.layers.Dense(CLASSES, activation="softmax", kernel_initializer="zeros")(keras.layers.Flatten()(x))
    chain = [tfopt.Train(3, tfopt.Fit(1e-2)), tfopt.Train(4, tfopt.Fit(1e-2))]
    return {
        "recipe": chain,
        "spaces": {"02-Train.fit.learning_rate": tune.Range(1e-6, 1e-2, log=True)},
        "objectives": ("val_loss",),
        "trials": 6,
        "work": tfopt.Work(keras.Model(x, y), data),
    }


def steps(folder):
    """What the journal knows of each trial: the intermediate values by step."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return [each.intermediate_values for each in optuna.load_study(study_name="search", storage=storage).trials]


@pytest.mark.slow
def test_bad_trials_end_within_a_training(by_rate, tmp_path):
    optuna = pytest.importorskip("optuna")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=3)
    found = tune.search(**by_rate, workdir=tmp_path, pruner=pruner)
    pruned = [each for each in found.trials if each.state == "pruned"]
    assert pruned
    told = steps(tmp_path)
    for each in found.trials:
        # The first stage has three epochs, taken over from the first trial; the second has four.
        last = max(told[each.number])
        assert sorted(told[each.number]) == list(range(1, last + 1))
        assert (each.folder / "01-Train").exists()
        if each.state == "pruned":
            assert 4 <= last < 7
            assert not list(each.folder.glob("02-*"))
        else:
            assert last == 7
            history = json.loads((each.folder / "report.json").read_text())["stages"][1]["history"]["val_loss"]
            assert [told[each.number][step] for step in (4, 5, 6, 7)] == pytest.approx(history)


@pytest.mark.slow
def test_a_search_broken_off_within_a_training_ends_as_another(by_rate, tmp_path):
    optuna = pytest.importorskip("optuna")

    def search(name):
        pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=3)
        return outcome(tune.search(**by_rate, workdir=tmp_path / name, pruner=pruner))

    whole = search("whole")
    original, looks = tune.journal.Journal.is_bad, 0

    def break_off(self, *arguments):
        nonlocal looks
        looks += 1
        bad = original(self, *arguments)
        # In the middle of the second training of some trials, and at the end of a first one.
        if looks in (3, 13, 25, 31):
            raise KeyboardInterrupt
        return bad

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune.journal.Journal, "is_bad", break_off)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                search("broken")
    assert search("broken") == whole
    assert steps(tmp_path / "broken") == steps(tmp_path / "whole")


def test_a_pruner_of_ones_own(tmp_path):
    import optuna

    found = tune.search(stages, X, trials=15, workdir=tmp_path, pruner=optuna.pruners.NopPruner())
    assert {each.state for each in found.trials} == {"complete"}


def test_trials_that_fail_are_listed_and_others_go_on(tmp_path):
    found = tune.search(lambda x: stages(x, fault_above=0.6), X, ("accuracy", "bytes"), 12, workdir=tmp_path)
    for each in found.trials:
        failed = each.parameters["x"] > 0.6
        assert each.state == ("failed" if failed else "complete")
        assert each.reason == (f"ValueError: no accuracy of {each.parameters['x']}" if failed else "")
    assert {each.state for each in found.trials} == {"failed", "complete"}
    assert found.best.parameters["x"] <= 0.6
    assert "no accuracy of" in (tmp_path / "search.md").read_text()


def test_it_is_an_error_if_all_fail(tmp_path):
    with pytest.raises(RuntimeError, match="all 3 trials failed: trial 0: ValueError: no accuracy"):
        tune.search(lambda x: stages(x, fault_above=-1.0), X, trials=3, workdir=tmp_path)


def test_an_objective_that_is_not_measured_ends_the_search_at_once(tmp_path):
    with pytest.raises(ValueError, match="trial 0 has no 'median_ms'.*Benchmark"):
        tune.search(stages, X, ("accuracy", "median_ms"), workdir=tmp_path)
    assert [each.name for each in (tmp_path / "trials").glob("0*")] == ["0000"]


@pytest.mark.parametrize("moment", ["in a stage", "between stages", "before a trial"])
def test_an_interrupted_search_ends_as_another(moment, tmp_path, monkeypatch):
    expected = tune.search(stages, SPACES, trials=9, workdir=tmp_path / "whole")
    owner, name = {
        "in a stage": (Last, "apply"),
        "between stages": (tfopt.tune.journal.Journal, "is_bad"),
        "before a trial": (tfopt.tune.search.__globals__["Journal"], "values"),
    }[moment]
    method, calls = getattr(owner, name), 0

    def break_off(*arguments):
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return method(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, break_off)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                tune.search(stages, SPACES, trials=9, workdir=tmp_path / "broken")
    # What a kill may leave: half a line, and Optuna's lock.
    with open(tmp_path / "broken" / "journal.log", "a") as file:
        file.write('{"op_code": 4, "worker_')
    os.symlink("journal.log", tmp_path / "broken" / "journal.log.lock")
    found = tune.search(stages, SPACES, trials=9, workdir=tmp_path / "broken")
    assert outcome(found) == outcome(expected)
    assert len({tuple(each.parameters.values()) for each in found.trials}) == 9


def test_a_search_is_continued_with_more_trials(tmp_path):
    few = tune.search(stages, SPACES, trials=4, workdir=tmp_path / "a")
    more = tune.search(stages, SPACES, trials=9, workdir=tmp_path / "a")
    assert outcome(more)[:4] == outcome(few)
    assert outcome(more) == outcome(tune.search(stages, SPACES, trials=9, workdir=tmp_path / "b"))
    assert outcome(tune.search(stages, SPACES, trials=2, workdir=tmp_path / "a")) == outcome(more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spaces": {"x": tune.Range(0.0, 0.9)}}, r"spaces was .*1\.0.*now .*0\.9"),
        ({"objectives": ("bytes",)}, "objectives was"),
        ({"seed": 5}, "search seed was 0, now 5"),
        ({"recipe": lambda x: stages(x, pause=0.01)}, "stage 2 was"),
    ],
)
def test_the_workdir_of_another_search_is_refused(change, message, tmp_path):
    given = {"recipe": stages, "spaces": X, "trials": 1, "workdir": tmp_path}
    tune.search(**given)
    with pytest.raises(ValueError, match=message):
        tune.search(**{**given, **change})


def test_a_journal_that_is_none_is_refused(tmp_path):
    (tmp_path / "journal.log").write_text("notes\n")
    with pytest.raises(ValueError, match=r"line 1 of .*journal\.log is damaged"):
        tune.search(stages, X, trials=1, workdir=tmp_path)


@dataclasses.dataclass(frozen=True, repr=False)
class First(Score):
    """A stage whose report names no file."""

    def apply(self, work, folder):
        super().apply(work, folder)
        return tfopt.Outcome(work)


def test_stages_that_are_the_same_are_done_once(tmp_path):
    spaces = {"a": tune.Choice(0.1, 0.2), "b": tune.Range(0.0, 1.0)}
    found = tune.search(lambda a, b: [First(a), Last(a + b)], spaces, ("accuracy", "bytes"), 8, workdir=tmp_path)
    done = (tmp_path / "trials" / "done.txt").read_text().split("\n")
    assert sum(" First " in line for line in done) == len({each.parameters["a"] for each in found.trials}) == 2
    assert sum(" Last " in line for line in done) == 8
    for each in found.trials:
        assert each.values["accuracy"] == pytest.approx(each.parameters["a"] + each.parameters["b"])


@pytest.mark.slow
def test_a_trial_is_the_chain_that_a_run_would_be(tmp_path, data, trained):
    spaces = {"Prune.final_sparsity": tune.Range(0.5, 0.7, 0.1), "Prune.fit.optimizer": tune.Choice("adam", "sgd")}
    chain = [tfopt.Train(1), tfopt.Prune(0.5, 1)]
    found = tune.search(
        chain, spaces, ("val_accuracy", "loss"), 2, workdir=tmp_path / "search", work=tfopt.Work(trained, data)
    )
    trial = found.trials[1]
    plain = tfopt.run(build(chain, trial.parameters), tfopt.Work(trained, data, tmp_path / "plain"))
    assert plain.report.stages[-1].history["val_accuracy"][-1] == trial.values["val_accuracy"]
    theirs = tfopt.load_model(trial.folder / "02-Prune" / "model.keras")
    for mine, other in zip(plain.model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    # It has the seconds that the stage took: it was done once.
    one, two = ((each.folder / "01-Train" / "stage.json").read_text() for each in found.trials)
    assert one == two


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls recipes.tune as a process of its own would be."""
    monkeypatch.chdir(tmp_path)
    before = flagsaver.save_flag_values(command._FLAGS)
    yield lambda *words: command.main(["tune", *words])
    flagsaver.restore_flag_values(before, command._FLAGS)


RECIPE = '''"""A recipe of my own."""
from tests.tune_recipe import SPACES, stages
'''


def test_the_command_line(tmp_path, capsys, call):
    (tmp_path / "my_search_recipe.py").write_text(RECIPE)
    words = [f"--recipe={tmp_path}/my_search_recipe.py", "--trials=3", "--set=y=2", f"--workdir={tmp_path}/run"]
    assert call(*words, "--objectives=accuracy,bytes") == 0
    out = capsys.readouterr().out
    assert out.count("trials/000") == len(re.findall(r"accuracy [\d.]+, bytes 200: x=", out)) == 1
    assert f"report: {tmp_path}/run/search.html" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--trails=3"], 2, "Did you mean: trials"),
        (["3"], 2, "unexpected arguments: 3"),
        (["--set=y"], 2, "--set=name=value"),
        (["--recipe=qat_int8"], 1, "declares no SPACES"),
        (["--recipe=qat_int9"], 1, "No module named"),
        (["--objectives=speed"], 1, "no objective 'speed'"),
    ],
)
def test_the_command_line_says_what_is_wrong(words, code, message, capsys, call):
    assert call(*words) == code
    assert message in capsys.readouterr().err
