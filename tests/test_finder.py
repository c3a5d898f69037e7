"""The range finder: what it sweeps, where it stops, what it suggests."""

import dataclasses

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import small_model
from tests.test_train import linear
from tfopt.train import find_learning_rate


def test_the_finder_sweeps_stops_and_leaves_the_model():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype("float32")
    data = tfopt.from_arrays((x, x.sum(axis=1) + rng.normal(0, 0.1, 200)), batch_size=16)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile("adam", "mean_squared_error", jit_compile=False)
    before = model.get_weights()
    options = {"low": 1e-4, "high": 100.0, "steps": 60}
    sweep = find_learning_rate(model, data, tfopt.Fit(optimizer="sgd"), **options)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert int(model.optimizer.iterations) == 0
    # SGD on squares of variance 1 diverges above a rate of about 1.
    assert 0.5 < sweep.rates[-1] < 10
    assert sweep.rates == pytest.approx(np.geomspace(1e-4, 100, 60)[: len(sweep.rates)], rel=1e-3)
    assert max(sweep.losses[-3:]) > 4 * min(sweep.losses)
    assert 0.005 < sweep.suggestion < 0.5
    assert dict(sweep)["rates"] == sweep.rates
    assert find_learning_rate(model, data, tfopt.Fit(optimizer="sgd"), **options) == sweep
    with pytest.raises(dataclasses.FrozenInstanceError):
        sweep.rates = ()


def test_the_losses_are_those_of_single_batches(data):
    model = linear()
    x, y = next(iter(data.training_batches(0)))
    first = float(keras.losses.SparseCategoricalCrossentropy()(y, model(x)))
    sweep = find_learning_rate(model, data, tfopt.Fit(optimizer="sgd"), low=1e-9, high=1e-8, steps=20)
    batches = [*data.training_batches(0), *data.training_batches(1), *data.training_batches(2)][:20]
    by_hand = [float(keras.losses.SparseCategoricalCrossentropy()(y, model(x))) for x, y in batches]
    assert sweep.losses[0] == pytest.approx(first, rel=1e-5)
    assert sweep.losses == pytest.approx(by_hand, rel=1e-4)


def test_the_suggestion_is_the_steepest_place_and_is_plotted(tmp_path):
    rates = np.geomspace(1e-5, 1, 51)
    losses = tuple(1 / (1 + np.exp(4 * np.log10(rates / 1e-2))))
    sweep = tfopt.train.RateSweep(tuple(rates), losses, losses)
    assert sweep.suggestion == pytest.approx(1e-2, rel=0.3)
    figure = sweep.plot()
    figure.savefig(tmp_path / "sweep.png")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [len(each.get_xdata()) for each in axes.lines] == [51, 51, 2]
    assert axes.lines[2].get_xdata()[0] == sweep.suggestion
    with pytest.raises(ValueError, match="the loss falls nowhere between the rates 1e-05 and 1"):
        _ = dataclasses.replace(sweep, smoothed=losses[::-1]).suggestion


def test_the_finder_refuses_what_cannot_be_swept(data):
    for options, message in (
        ({"low": 1.0, "high": 0.1}, "low must be above 0 and below high, received low=1.0 and high=0.1"),
        ({"steps": 3}, "steps must be a whole number from 10, received 3"),
        ({"smoothing": 1}, r"smoothing must be in \[0, 1\), received 1"),
        ({"fit": tfopt.Fit(layer_rates={"hiden": 2})}, "did you mean hidden"),
    ):
        with pytest.raises(ValueError, match=message):
            find_learning_rate(small_model(), data, **options)
