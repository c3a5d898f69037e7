"""The mean of weights: the same whatever compiles and distributes the step, with every promise, and resumed."""

import contextlib

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import small_model
from tfopt.ensemble import AverageWeights, AveragingCallback, SnapshotCallback, as_one_model

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [3.0]]) + 1).astype("float32")


def network(batch_norm=False, **options):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(6, "relu", name="a"), keras.layers.Dense(1, name="b")]
    if batch_norm:
        layers.insert(1, keras.layers.BatchNormalization(name="norm"))
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **{"jit_compile": False, **options})
    return model


class Recorder(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights())


def fitted(model, *callbacks, epochs=2):
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


def expected(decay, begin, frequency, epochs=2):
    """By hand: each step's weights seen, and the mean taken afterwards."""
    recorder = Recorder()
    fitted(network(), recorder, epochs=epochs)
    counting = recorder.seen[begin + frequency - 1 :: frequency]
    mean = [np.zeros_like(each) for each in counting[0]]
    for number, weights in enumerate(counting, 1):
        share = max(1 / number, 0 if decay is None else 1 - decay)
        mean = [old + share * (new - old) for old, new in zip(mean, weights, strict=True)]
    return mean, len(counting)


@pytest.mark.parametrize(
    ("way", "options"),
    [
        pytest.param("plain", {}, marks=pytest.mark.slow),
        ("several steps", {"steps_per_execution": 4}),
        pytest.param("xla", {"jit_compile": True}, marks=pytest.mark.slow),
        ("replicas", {}),
    ],
)
def test_the_mean_is_that_of_the_steps(way, options, mirrored):
    begin, frequency, decay = 3, 2, 0.6
    mean, count = expected(decay, begin, frequency)
    callback = AveragingCallback(decay, begin, frequency)
    with mirrored.scope() if way == "replicas" else contextlib.nullcontext():
        model = network(**options)
    fitted(model, callback)
    assert callback.count == count == 4
    for found, wanted in zip(model.get_weights(), mean, strict=True):
        assert np.allclose(found, wanted, atol=1e-5)
    # Training that follows is as without it.
    assert all(variable.constraint is None for variable in model.trainable_variables)


@pytest.mark.slow
def test_without_decay_it_is_the_mean_of_all():
    mean, count = expected(None, 0, 1)
    callback = AveragingCallback()
    model = fitted(network(), callback)
    assert callback.count == count == 12
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(model.get_weights(), mean, strict=True))


@pytest.mark.parametrize("replicas", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_statistics_belong_to_the_mean(replicas, mirrored):
    with mirrored.scope() if replicas else contextlib.nullcontext():
        model = network(batch_norm=True)
    fitted(model, AveragingCallback(data=tfopt.from_arrays((X, Y), (X, Y), (X, Y))))
    kernel, bias = model.get_layer("a").get_weights()
    hidden = np.maximum(X @ kernel + bias, 0)
    *_, mean, variance = model.get_layer("norm").get_weights()
    assert np.allclose(mean, hidden.mean(0), atol=1e-4)
    assert np.allclose(variance, hidden.var(0), atol=1e-3)


@pytest.mark.parametrize("last", [pytest.param(False, marks=pytest.mark.slow), True])
def test_zeros_and_clusters_are_in_the_mean(last):
    pruning = tfopt.PruningCallback(tfopt.PolynomialDecay(0.0, 0.5, 0, 8, frequency=2), layers=["a"])
    averaging = AveragingCallback(begin_step=2)
    model = fitted(network(), *([pruning, averaging] if last else [averaging, pruning]))
    assert pruning.invariant.check(model) == []
    assert (model.get_layer("a").kernel.numpy() == 0).mean() == 0.5
    clusters = tfopt.ClusteringCallback(4, layers=["a"], refresh=0)
    fitted(model, clusters, AveragingCallback())
    assert clusters.clusters == {model.get_layer("a").kernel.path: 4}
    assert (model.get_layer("a").kernel.numpy() == 0).mean() >= 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, "decay must be None or in"),
        ({"decay": 0}, "decay must be None or in"),
        ({"begin_step": -1}, "begin_step must be a whole number from 0"),
        ({"frequency": 0}, "frequency must be a whole number from 1"),
        ({"frequency": 1.5}, "frequency must be a whole number from 1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        AveragingCallback(**arguments)


def test_clusters_that_move_are_not_averaged():
    model = network()
    clusters = tfopt.ClusteringCallback(4, layers=["a"])
    with pytest.raises(ValueError, match="a/kernel change their clusters in .* refresh=0"):
        fitted(model, clusters, AveragingCallback())
    assert model.optimizer.iterations == 0


def test_what_cannot_be_averaged_is_told_before_the_first_step():
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="no step would count: the first is 13 .* 12"):
        fitted(model, AveragingCallback(begin_step=12))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    with pytest.raises(ValueError, match="norm of .* have statistics"):
        fitted(network(batch_norm=True), AveragingCallback())
    quantized = tfopt.quantize_aware(network())
    quantized.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="average before QuantizeAware"):
        fitted(quantized, AveragingCallback())


def test_snapshots_are_the_ends_of_cycles():
    recorder, snapshots = Recorder(), SnapshotCallback(epochs=2, count=2)
    model = fitted(network(), recorder, snapshots, epochs=6)
    ends = [recorder.seen[6 * 4 - 1], recorder.seen[6 * 6 - 1]]
    for each, weights in zip(snapshots.models, ends, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(each.get_weights(), weights, strict=True))
    together = as_one_model(snapshots.models)
    assert np.allclose(together(X), (snapshots.models[0](X) + model(X)) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="two members or more: 3 epochs .* every 2 give 1"):
        fitted(network(), SnapshotCallback(epochs=2), epochs=3)
    with pytest.raises(ValueError, match="epochs must be a whole number"):
        SnapshotCallback(0)


# The stage


def start(data, folder, **options):
    keras.utils.set_random_seed(3)
    return tfopt.Work(small_model(), data, folder, **options)


FIT = tfopt.Fit(3e-3)


@pytest.mark.slow
def test_promises_hold_in_the_mean_down_to_the_file(data, tmp_path):
    stages = [
        tfopt.Prune(0.5, 1, tfopt.ConstantSparsity(0.5, 2), fit=FIT),
        tfopt.Cluster(8, 1, fit=FIT),
        AverageWeights(3, fit=FIT),
        tfopt.ExportTFLite(calibration_examples=20, max_drop=1.0),
    ]
    work = tfopt.run(stages, start(data, tmp_path))
    assert [each.kind for each in work.invariants] == ["sparsity", "clustered"]
    note = work.report.stages[2].notes[0]
    assert note.startswith("the mean of 2 sets of weights; accuracy on the test split: the last weights ")


@pytest.mark.slow
def test_on_two_replicas_the_mean_is_that_of_one_device(data, mirrored, tmp_path):
    stage = AverageWeights(2, decay=0.8, fit=FIT)
    one = tfopt.run([stage], start(data, tmp_path / "one"))
    two = tfopt.run([stage], start(data, tmp_path / "two", strategy=mirrored))
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        assert np.allclose(a, b, atol=2e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AverageWeights(begin=1.0), "begin must be a fraction"),
        (lambda: AverageWeights(decay=2.0), "decay must be None or in"),
        (lambda: AverageWeights(frequency=0), "frequency must be"),
        (lambda: AverageWeights(fit=tfopt.Fit(early_stopping=2)), "leave early_stopping out"),
        (lambda: AverageWeights(fit=tfopt.Fit(synchronize_every=2)), "leave synchronize_every out"),
    ],
)
def test_stages_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_few_steps_and_quantized_models_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="1 of 8 steps would count, and a mean needs two"):
        AverageWeights(1).validate(start(data, tmp_path))
    quantized = tfopt.Work(tfopt.quantize_aware(small_model()), data, tmp_path)
    with pytest.raises(ValueError, match="put AverageWeights before QuantizeAware"):
        AverageWeights(2).validate(quantized)
