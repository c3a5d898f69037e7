"""tfopt.compat beyond the tutorials: pruning and clustering of any kind of model, in any kind of training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt.compat as tfmot
from tests.compat_data import COMPILED, MSE, X, Y, dense_net, fitted, kernels, sparsities
from tests.conftest import blobs, quick, small_model
from tfopt.compat.prune import PruneLowMagnitude
from tfopt.compat.rebuild import layers_of

sparsity, clustering, quantization = tfmot.sparsity.keras, tfmot.clustering.keras, tfmot.quantization.keras


# Pruning


def test_training_without_the_callback_is_refused():
    model = sparsity.prune_low_magnitude(dense_net())
    model.compile(**MSE)
    ways = (lambda: model.fit(X, Y, verbose=0), lambda: model.train_on_batch(X, Y), lambda: model(X, training=True))
    for train in ways:
        with pytest.raises(RuntimeError, match="without the callback UpdatePruningStep"):
            train()
    model.fit(X, Y, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    # Also after a training with it, whose step is traced.
    with pytest.raises(RuntimeError, match="without the callback UpdatePruningStep"):
        model.fit(X, Y, verbose=0)
    assert model.predict(X, verbose=0).shape == (20, 4)


@pytest.mark.parametrize(
    "schedule",
    [
        # TFMOT's issues 973 and 975: 100 steps between updates, in a shorter training.
        sparsity.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000),
        sparsity.ConstantSparsity(0.5, begin_step=100),
        sparsity.PolynomialDecay(0.0, 0.001, begin_step=0, end_step=10, frequency=1),
    ],
)
def test_a_schedule_that_would_prune_nothing_is_refused_before_training(schedule):
    model = sparsity.prune_low_magnitude(dense_net(), schedule)
    model.compile(**MSE)
    before = model.get_weights()
    with pytest.raises(ValueError, match="nothing of 'prune_low_magnitude_hidden' would be pruned.*Lower frequency"):
        model.fit(X, Y, batch_size=2, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    for old, new in zip(before[1:], model.get_weights()[1:], strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_schedule_that_is_not_at_its_end_goes_on_in_the_next_fit(caplog):
    schedule = sparsity.PolynomialDecay(0.5, 0.75, begin_step=0, end_step=7, frequency=100)
    model = sparsity.prune_low_magnitude(dense_net(), schedule)
    model.compile(**MSE)
    reached = []
    for _ in range(2):
        model.fit(X, Y, batch_size=5, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
        reached.append(set(sparsities(sparsity.strip_pruning(model)).values()))
    # 7 is an update although no 100 steps have passed.
    assert reached == [{0.5}, {0.75}]
    assert "is at step 4 of its pruning schedule" in caplog.text


def test_a_schedule_of_ones_own_prunes_and_one_that_never_does_is_told():
    class Own(sparsity.PruningSchedule):
        def __init__(self, renews=True):
            self.renews = renews

        def __call__(self, step):
            return tf.logical_and(self._should_prune_in_step(step, 1, -1, 1), self.renews), tf.constant(0.25)

        def get_config(self):
            return {"class_name": "Own", "config": {"renews": self.renews}}

    model = sparsity.prune_low_magnitude(dense_net(), Own())
    model.compile(**MSE)
    model.fit(X, Y, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    assert set(sparsities(sparsity.strip_pruning(model)).values()) == {0.25}
    with keras.utils.custom_object_scope({"Own": Own}):
        assert keras.models.clone_model(model).layers[0].pruning_schedule.renews
    with pytest.raises(ValueError, match="custom_object_scope"):
        keras.models.clone_model(model)

    never = sparsity.prune_low_magnitude(dense_net(), Own(renews=False))
    never.compile(**MSE)
    with pytest.raises(RuntimeError, match="nothing of 'prune_low_magnitude_hidden' was pruned"):
        never.fit(X, Y, verbose=0, callbacks=[sparsity.UpdatePruningStep()])


def attention_net():
    layers = keras.layers
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 8, mask_zero=True, name="embedding")(tokens)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x, use_causal_mask=True)
    x = layers.LayerNormalization(name="norm")(x + 1.0)
    return keras.Model(tokens, layers.Dense(3, activation="softmax", name="out")(layers.GlobalMaxPooling1D()(x)))


def nested_net():
    """A frozen and a trainable model inside, a shared layer, a batch normalization."""
    layers = keras.layers
    frozen = keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(4, 3, name="frozen")], name="base")
    frozen.trainable = False
    head = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.SeparableConv2D(4, 3, name="sep"), layers.BatchNormalization(name="bn")],
        name="head",
    )
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((8, 8, 2))
    x = layers.GlobalAveragePooling2D()(head(frozen(inputs)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="out")(shared(shared(x))))


@pytest.mark.parametrize(
    ("build", "pruned"),
    [
        pytest.param(attention_net, 4, marks=pytest.mark.slow),
        (nested_net, 3),
        (small_model, 3),
    ],
)
def test_any_graph_is_pruned_saved_and_stripped(build, pruned, tmp_path):
    model = build()
    x = np.random.default_rng(0).integers(1, 9, (8, 6)) if build is attention_net else blobs(8)[0]
    expected, before = model.predict(x, verbose=0), model.get_weights()
    wrapped = sparsity.prune_low_magnitude(model, sparsity.ConstantSparsity(0.5, 0))
    assert len(layers_of(wrapped, PruneLowMagnitude)) == pruned
    np.testing.assert_allclose(wrapped.predict(x, verbose=0), expected, rtol=1e-5)
    wrapped.compile(**COMPILED)
    wrapped.fit(x, np.arange(8) % 3, epochs=2, batch_size=4, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    wrapped.save(tmp_path / "wrapped.keras")
    loaded = keras.models.load_model(tmp_path / "wrapped.keras")
    stripped = sparsity.strip_pruning(loaded)
    np.testing.assert_allclose(stripped.predict(x, verbose=0), wrapped.predict(x, verbose=0), rtol=1e-5)
    assert not layers_of(stripped, PruneLowMagnitude)
    by_layer = [w for layer in layers_of(wrapped, PruneLowMagnitude) for w in layer.prunable_variables()]
    assert len(by_layer) == {attention_net: 10, nested_net: 3, small_model: 3}[build]
    assert all((np.asarray(each) == 0).mean() == pytest.approx(0.5, abs=0.02) for each in by_layer)
    # What was passed is what it was.
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer.name for layer in stripped.layers][1:] == [layer.name for layer in model.layers][1:]


@pytest.mark.parametrize("steps_per_execution", quick([1, 4], 4))
def test_masks_hold_at_every_step_and_a_checkpoint_within_an_epoch_goes_on(steps_per_execution, tmp_path):
    schedule = sparsity.PolynomialDecay(0.25, 0.75, begin_step=0, end_step=12, frequency=4)

    def pruned():
        keras.utils.set_random_seed(1)
        model = sparsity.prune_low_magnitude(dense_net(), schedule)
        model.compile(**MSE, steps_per_execution=steps_per_execution)
        return model

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 7:
                raise KeyboardInterrupt

    options = {"x": X[:16], "y": Y[:16], "batch_size": 1, "verbose": 0, "shuffle": False}
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=4, delete_checkpoint=False)
    model = pruned()
    with pytest.raises(KeyboardInterrupt):
        model.fit(**options, callbacks=[sparsity.UpdatePruningStep(), backup, Stop()])
    half = np.asarray(model.layers[0].layer.kernel) == 0
    assert half.mean() == pytest.approx(float(schedule(8)[1]), abs=0.01)
    again = pruned()
    # The epoch begins anew, as is Keras' way; the schedule does not.
    again.fit(**options, callbacks=[sparsity.UpdatePruningStep(), backup])
    after = np.asarray(again.layers[0].layer.kernel) == 0
    assert after.mean() == 0.75
    assert after[half].all()
    assert int(again.layers[0].pruning_step.numpy()) == 24


def own_class_with(layer):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def call(self, inputs):
            return self.inner(inputs)

    return Own()


@pytest.mark.parametrize("make", [lambda layer: keras.Sequential([layer]), own_class_with])
def test_models_that_are_not_built_say_so_and_train_once_they_are(make):
    for wrapper, callbacks in (
        (sparsity.prune_low_magnitude(keras.layers.Dense(4)), [sparsity.UpdatePruningStep()]),
        (clustering.cluster_weights(keras.layers.Dense(4), 2), []),
    ):
        model = make(wrapper)
        with pytest.raises(ValueError, match="no weights yet that could be (pruned|clustered): begin the model with"):
            fitted(model, callbacks)
        model = make(type(wrapper).from_config(wrapper.get_config()))
        model(X)
        fitted(model, callbacks)
        kernel = np.asarray(model.layers[0].layer.kernel)
        assert (kernel == 0).mean() == 0.5 if callbacks else len(np.unique(kernel)) == 2


def test_single_layers_lists_and_what_is_wrapped_already():
    layers = [keras.layers.Dense(4), keras.layers.Dense(4)]
    made = sparsity.prune_low_magnitude(layers)
    assert [type(each) for each in made] == [PruneLowMagnitude] * 2
    assert sparsity.prune_low_magnitude(made[0]) is made[0]
    clustered = clustering.cluster_weights(layers, 4)
    assert clustering.cluster_weights(clustered[0], 8) is clustered[0]
    model = keras.Sequential([keras.Input((8,)), *made])
    assert layers_of(sparsity.prune_low_magnitude(model), PruneLowMagnitude) == made


@pytest.mark.slow
def test_pruning_and_clustering_on_two_replicas(mirrored):
    x, y = blobs(64)
    with mirrored.scope():
        model = small_model()
        pruned = sparsity.prune_low_magnitude(model, sparsity.PolynomialDecay(0.0, 0.5, 0, 6, frequency=2))
        pruned.compile(**COMPILED)
    pruned.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    assert all(value == pytest.approx(0.5, abs=0.01) for value in sparsities(pruned).values())
    with mirrored.scope():
        clustered = clustering.cluster_weights(sparsity.strip_pruning(pruned), 4, preserve_sparsity=True)
        clustered.compile(**COMPILED)
    clustered.fit(x, y, batch_size=16, epochs=2, verbose=0)
    for kernel in kernels(clustered).values():
        assert len(np.unique(kernel)) <= 4
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.01)
    with mirrored.scope():
        aware = quantization.quantize_apply(
            quantization.quantize_annotate_model(clustering.strip_clustering(clustered)),
            tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(),
        )
        aware.compile(**COMPILED)
    aware.fit(x, y, batch_size=16, epochs=1, verbose=0)
    assert all(len(np.unique(kernel)) <= 4 for kernel in kernels(aware).values())


# Clustering


@pytest.mark.parametrize(
    "init", quick(list(clustering.CentroidInitialization), clustering.CentroidInitialization.KMEANS_PLUS_PLUS)
)
def test_clusters_learn_together_without_a_callback(init):
    model = dense_net()
    clustered = clustering.cluster_weights(model, 4, init)
    before = kernels(clustered)
    fitted(clustered)
    for name, kernel in kernels(clustered).items():
        assert 2 <= len(np.unique(kernel)) <= 4
        assert not np.array_equal(kernel, before[name])
    assert len(np.unique(model.layers[0].kernel)) > 60


def test_weights_move_to_the_cluster_that_they_come_nearest_to(tmp_path):
    """Held in the first clusters, the same training lost a point to TFMOT's on Fashion-MNIST."""
    layer = keras.layers.Dense(2, use_bias=False, name="out")
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.kernel.assign([[0.0, 0.4], [1.0, 0.55], [0.0, 1.0], [0.0, 0.0]])
    clustered = clustering.cluster_weights(model, 2, clustering.CentroidInitialization.LINEAR)
    np.testing.assert_array_equal(clustered.layers[0].layer.kernel, [[0, 0], [1, 1], [0, 1], [0, 0]])
    # Each step moves the first row of weights by -0.06 and +0.06, the values of the clusters hardly.
    x, sign = np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([[0.06, -0.06]])

    def loss(_, outputs):
        return keras.ops.sum(outputs * sign)

    clustered.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    clustered.fit(x, np.zeros((1, 2)), epochs=1, verbose=0)
    clustered.save_weights(tmp_path / "m.weights.h5")
    members = np.asarray(clustered.layers[0].layer.kernel) > 0.5
    np.testing.assert_array_equal(members, [[0, 0], [1, 1], [0, 1], [0, 0]])
    # How far a weight has come is saved with the model, too.
    again = clustering.cluster_weights(model, 2, clustering.CentroidInitialization.LINEAR)
    again.load_weights(tmp_path / "m.weights.h5")
    again.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    again.fit(x, np.zeros((1, 2)), epochs=1, verbose=0)
    members = np.asarray(again.layers[0].layer.kernel) > 0.5
    np.testing.assert_array_equal(members, [[0, 1], [1, 1], [0, 1], [0, 0]])
    assert len(np.unique(again.layers[0].layer.kernel)) == 2


def test_clusters_of_each_channel_and_small_kernels(caplog):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3, name="conv"), layers.Flatten(), layers.Dense(2, name="out")]
    )
    clustered = clustering.experimental.cluster_weights(model, 4, cluster_per_channel=True)
    conv, dense = kernels(clustered).values()
    assert [len(np.unique(conv[..., channel])) for channel in range(3)] == [4, 4, 4]
    assert len(np.unique(dense)) == 4
    clustering.cluster_weights(model, 60)
    assert "has 54 weights, no more than clusters" in caplog.text


def test_summaries_of_clusters_are_written(tmp_path):
    clustered = clustering.cluster_weights(dense_net(), 4)
    fitted(clustered, [clustering.ClusteringSummaries(str(tmp_path), cluster_update_freq="batch")])
    assert list((tmp_path / "metrics").iterdir())
