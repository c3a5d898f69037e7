"""Clustering: where clusters begin, how they learn, and the promise down to the exported integers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tfopt
from tests.conftest import blobs, quick, small_model
from tests.test_patterns import weights_in
from tfopt.cluster.centroids import first_centroids, nearest
from tfopt.cluster.keep import KeepClusters

values = arrays.arrays("float32", st.integers(20, 60), elements=st.floats(-2, 2, width=16), unique=True)


@pytest.mark.parametrize("initialization", ["kmeans++", "linear", "density"])
@given(values=values, count=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_first_centroids_rise_within_the_weights(initialization, values, count):
    found = first_centroids(values, count, initialization)
    assert found.shape == (count,)
    assert (np.diff(found) >= 0).all()
    assert values.min() - 1e-5 <= found.min() <= found.max() <= values.max() + 1e-5
    chosen = nearest(values, found)
    errors = np.abs(values[:, None] - found)
    assert np.allclose(errors[np.arange(values.size), chosen], errors.min(1), atol=1e-5)


def test_kmeans_loses_least():
    weights = np.random.default_rng(0).normal(size=2000).astype("float32")

    def loss(initialization):
        centroids = first_centroids(weights, 8, initialization)
        return float(np.square(weights - centroids[nearest(weights, centroids)]).mean())

    assert loss("kmeans++") < min(loss("linear"), loss("density"))
    # Lloyd-Max's quantizer of a normal distribution with 8 levels.
    assert loss("kmeans++") == pytest.approx(0.0345, rel=0.1)


class EveryStep(keras.callbacks.Callback):
    """Counts the different values after every call of the training function."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        kernels = [keras.ops.convert_to_numpy(each) for each in self.model.weights if each.name == "kernel"]
        self.seen.append([len(np.unique(each)) for each in kernels])


def clustered(count=8, epochs=2, strategy=None, compiling=None, model=None, **options):
    x, y = blobs(96)
    keras.utils.set_random_seed(1)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = model or small_model(dropout=0.0)
        model.compile(
            **{
                "optimizer": "adam",
                "loss": "sparse_categorical_crossentropy",
                "jit_compile": False,
                **(compiling or {}),
            }
        )
    callback, watch = tfopt.ClusteringCallback(count, **options), EveryStep()
    history = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=[callback, watch])
    return model, callback, watch.seen, history.history["loss"]


WAYS = {
    "plain": {},
    "steps_per_execution": {"compiling": {"steps_per_execution": 4}},
    "xla": {"compiling": {"jit_compile": True}},
    "sgd": {"compiling": {"optimizer": "sgd"}},
    "linear": {"initialization": "linear"},
    "density": {"initialization": "density"},
    "refresh": {"refresh": 3},
    "refresh, xla": {"refresh": 3, "compiling": {"jit_compile": True}},
}


@pytest.mark.parametrize("way", quick(WAYS, "plain", "xla", "refresh"))
def test_few_values_at_every_step_and_they_learn(way):
    model, callback, seen, losses = clustered(**WAYS[way])
    assert all(count <= 8 for step in seen for count in step)
    assert callback.clusters == {"conv/kernel": 8, "hidden/kernel": 8, "out/kernel": 8}
    assert callback.invariant.check(model) == []
    assert losses[-1] < losses[0]


def test_each_value_moves_by_the_mean_of_its_members():
    kernel = np.array([[1.0], [1.1], [3.0], [3.1]], "float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False, name="d")])
    model.layers[0].kernel.assign(kernel)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    callback = tfopt.ClusteringCallback(2)
    # Each row reads one weight; the gradients are (w - y).
    x, y = np.sqrt(2) * np.eye(4, dtype="float32"), np.sqrt(2) * np.array([[0.0], [1.0], [2.0], [5.0]], "float32")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[callback])
    found = keras.ops.convert_to_numpy(model.layers[0].kernel).ravel()
    start = np.array([1.05, 1.05, 3.05, 3.05])
    moves = -0.1 * (start - y.ravel() / np.sqrt(2))
    expected = start + np.repeat(moves.reshape(2, 2).mean(1), 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_a_refresh_lets_weights_change_their_cluster():
    def members(refresh):
        model, *_ = clustered(4, epochs=4, refresh=refresh, compiling={"optimizer": keras.optimizers.Adam(0.02)})
        return np.unique(keras.ops.convert_to_numpy(model.get_layer("hidden").kernel), return_inverse=True)[1]

    assert not np.array_equal(members(0), members(2))


@pytest.mark.slow
def test_steps_per_execution_changes_nothing():
    plain, *_ = clustered(refresh=5)
    several, *_ = clustered(refresh=5, compiling={"steps_per_execution": 5})
    for one, other in zip(plain.get_weights(), several.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_two_replicas_train_as_one_device_does(mirrored):
    """Without BatchNormalization, which sees half a batch on each."""

    def losses(strategy):
        keras.utils.set_random_seed(5)
        with strategy.scope():
            model = keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])
        _, callback, _, losses = clustered(8, strategy=strategy, model=model, refresh=5)
        assert set(callback.clusters.values()) == {8}
        return losses

    assert losses(mirrored) == pytest.approx(losses(tf.distribute.get_strategy()), rel=1e-4)


@pytest.mark.parametrize("per_channel", [False, True])
def test_kept_clusters_let_weights_change_theirs(per_channel):
    model, before, *_ = clustered(4, per_channel=per_channel)
    kernel = model.get_layer("hidden").kernel
    old = kernel.numpy().reshape(-1, kernel.shape[-1])
    x, y = blobs(96)
    # Another training: what clustered it is gone.
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    again.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", jit_compile=False)
    kept = KeepClusters(before.invariant, again)
    again.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=[kept])
    assert all(count <= before.clusters[path] for path, count in kept.clusters.items())
    assert kept.clusters.keys() == before.clusters.keys()
    assert kept.invariant.per_channel is per_channel
    new = again.get_layer("hidden").kernel.numpy().reshape(old.shape)
    assert all(len(np.unique(each)) <= 4 for each in (new.T if per_channel else [new]))
    # Weights that shared a value share one no more.
    together = np.unique(old.ravel(), return_inverse=True)[1]
    assert any(len(np.unique(new.ravel()[together == each])) > 1 for each in range(together.max() + 1))


def test_channels_have_clusters_of_their_own():
    model, callback, _, _ = clustered(4, per_channel=True)
    kernel = keras.ops.convert_to_numpy(model.get_layer("hidden").kernel)
    assert {len(np.unique(kernel[:, channel])) for channel in range(kernel.shape[1])} == {4}
    assert callback.clusters["hidden/kernel"] > 8


def test_zeros_stay_and_count_as_a_cluster():
    x, y = blobs(96)
    model = small_model(dropout=0.0)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    pruning = tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0, 0))
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[pruning])
    before = [keras.ops.convert_to_numpy(each) == 0 for each in model.weights if each.name == "kernel"]
    clustered(8, model=model)
    after = [keras.ops.convert_to_numpy(each) for each in model.weights if each.name == "kernel"]
    for zeros, kernel in zip(before, after, strict=True):
        assert ((kernel == 0) == zeros).all()
        assert len(np.unique(kernel)) == 8


def test_it_goes_on_after_backup_and_restore(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    x, y = blobs(96)

    def run(*others, epochs=4):
        keras.utils.set_random_seed(2)
        model = small_model(dropout=0.0)
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [tfopt.ClusteringCallback(8), *others, backup]
        model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
        return model

    with pytest.raises(KeyboardInterrupt):
        run(Crash())
    resumed = run()
    for kernel in (each for each in resumed.weights if each.name == "kernel"):
        assert len(np.unique(keras.ops.convert_to_numpy(kernel))) <= 8


@pytest.mark.parametrize("per_channel", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_clusters_reach_the_integers(per_channel, data, tmp_path):
    fit = tfopt.Fit(3e-3)
    stages = [
        tfopt.Train(1, fit),
        tfopt.Cluster(6, 1, per_channel=per_channel, layers=["conv", "hidden"], fit=fit),
        tfopt.QuantizeAware(1, fit=fit),
        tfopt.ExportTFLite(),
    ]
    work = tfopt.run(stages, tfopt.Work(small_model(), data, tmp_path))
    (promise,) = work.invariants
    assert all(count <= 6 * (12 if per_channel else 1) for count in promise.targets.values())
    large = [each for each in weights_in(work.report.artefacts["tflite"]["path"]) if each.size > 36]
    assert len(large) == 2
    for tensor in large:
        rows = tensor.reshape(len(tensor), -1) if per_channel else tensor.reshape(1, -1)
        # A BatchNormalization with a negative gamma turns the sign of its channel.
        assert all(len(np.unique(np.abs(row))) <= 6 for row in rows)


REFUSED = {
    "one cluster": ({"number_of_clusters": 1}, "whole number from 2, received 1"),
    "half a cluster": ({"number_of_clusters": 2.5}, "whole number from 2, received 2.5"),
    "unknown start": ({"number_of_clusters": 8, "initialization": "random"}, "one of kmeans.*received 'random'"),
    "negative refresh": ({"number_of_clusters": 8, "refresh": -1}, "refresh must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, message = REFUSED[case]
    for build in (tfopt.ClusteringCallback, tfopt.Cluster):
        with pytest.raises(ValueError, match=message):
            build(**options)


def test_more_clusters_than_weights_are_refused_before_training(data, tmp_path):
    with pytest.raises(ValueError, match=r"no kernel of 'small' has more weights than that \(the largest has 1536\)"):
        clustered(5000)
    with pytest.raises(ValueError, match="take fewer clusters"):
        tfopt.Cluster(5000).validate(tfopt.Work(small_model(), data, tmp_path))
    _, callback, _, _ = clustered(40)
    assert [each["layer"] for each in callback.skipped if "no more than" in each["reason"]] == ["out/kernel"]
