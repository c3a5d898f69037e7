"""Search spaces, where they lead, and the Pareto front."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import tfopt
from tests.tune_recipe import Score, stages
from tfopt import tune
from tfopt.tune.recipe import build


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=30),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_front_is_what_brute_force_finds(points, maximize):
    def beats(a, b):
        gains = [x - y if up else y - x for x, y, up in zip(a, b, maximize, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    expected = [not any(beats(other, each) for other in points) for each in points]
    assert tune.pareto_front(np.array(points), maximize).tolist() == expected
    assert any(expected)


def test_front_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="finite"):
        tune.pareto_front(np.array([[np.nan, 1.0]]), [True, False])
    with pytest.raises(ValueError, match=r"shape \(points, 2\)"):
        tune.pareto_front(np.zeros((3, 1)), [True, False])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tune.Range(0.9, 0.5), "low must be below high"),
        (lambda: tune.Range(1, 1), "low must be below high"),
        (lambda: tune.Range(0.0, 1.0, log=True), "log=True needs low above 0"),
        (lambda: tune.Range(0.1, 1.0, 0.1, log=True), "exclude each other"),
        (lambda: tune.Range(0.0, 1.0, 0.3), "the nearest is high=0.9"),
        (lambda: tune.Range(0.0, 1.0, -0.5), "step must be above 0"),
        (lambda: tune.Range(1, 4, 0.5), "whole step"),
        (lambda: tune.Range("a", "b"), "Choice"),
        (lambda: tune.Choice("adam"), "at least two"),
        (lambda: tune.Choice("adam", "sgd", "adam"), "must differ"),
    ],
)
def test_spaces_without_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("space", [tune.Range(0.5, 0.9, 0.1), tune.Range(1, 8, log=True), tune.Choice("a", None, 2.5)])
def test_spaces_are_rebuilt_from_their_repr(space):
    assert eval(repr(space), vars(tune)) == space


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spaces": {}}, "search space is empty"),
        ({"spaces": {"xx": tune.Range(0.0, 1.0)}}, "no parameter 'xx': did you mean x?"),
        ({"spaces": {"Scor.accuracy": tune.Range(0.0, 1.0)}}, "no stage 'Scor': did you mean 01-Score?"),
        ({"spaces": {"Score.acuracy": tune.Range(0.0, 1.0)}}, "no field 'acuracy'; did you mean accuracy?"),
        ({"spaces": {"Score.size.x": tune.Range(0.0, 1.0)}}, "100 has no fields"),
        ({"recipe": [Score(), Score()], "spaces": {"Score.size": tune.Range(1, 2)}}, "write 01-Score or 02-Score"),
        ({"recipe": [Score()]}, "no parameter 'x'"),
        ({"objectives": ("accurracy",)}, "no objective 'accurracy': did you mean accuracy?"),
        ({"objectives": ()}, "objectives is empty"),
        ({"objectives": ("bytes", "bytes")}, "named twice"),
        ({"trials": 0}, "trials must be a whole number from 1, received 0"),
        ({"jobs": 0}, "jobs must be"),
        ({"jobs": 2, "objectives": ("median_ms",)}, "disturb each other's median_ms"),
        ({"jobs": 2, "recipe": lambda x: stages(x)}, "cannot be handed to other processes"),
        ({"objectives": ("accuracy", "bytes"), "pruner": object()}, "leave the pruner out"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(change, message, tmp_path):
    given = {"recipe": stages, "spaces": {"x": tune.Range(0.0, 1.0)}, "workdir": tmp_path / "search", **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        tune.search(**given)
    assert not (tmp_path / "search").exists()


def test_what_is_no_space_is_refused(tmp_path):
    with pytest.raises(TypeError, match="'x' must be a tune.Range or tune.Choice, received 0.5"):
        tune.search(stages, {"x": 0.5}, workdir=tmp_path)


def test_fields_are_reached_by_their_path():
    train = tfopt.Train(3, tfopt.Fit(tfopt.Cosine(0.1)))
    chain = [Score(), train, tfopt.Train()]
    values = {"02-Train.fit.learning_rate.peak": 0.2, "02-Train.epochs": 1, "Score.options.width": 7}
    assert build(chain, values) == [
        Score(options={"width": 7}),
        tfopt.Train(1, tfopt.Fit(tfopt.Cosine(0.2))),
        tfopt.Train(),
    ]
    assert chain[1] is train
    assert train.epochs == 3
