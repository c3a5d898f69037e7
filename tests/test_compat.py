"""tfopt.compat beyond the tutorials: TFMOT's names and arguments, any kind of model, what is refused and why."""

import ast
import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
import tfopt.compat as tfmot
from tests.compat_data import kernels, sparsities
from tests.conftest import blobs, quick, small_model
from tfopt.compat.prune import PruneLowMagnitude
from tfopt.compat.rebuild import layers_of

sparsity, clustering, quantization = tfmot.sparsity.keras, tfmot.clustering.keras, tfmot.quantization.keras
TFMOT = pathlib.Path(importlib.util.find_spec("tensorflow_model_optimization").submodule_search_locations[0])
COMPILED = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy", "jit_compile": False}
MSE = {"optimizer": "sgd", "loss": "mse", "jit_compile": False}

PROBE = """
import os, sys
import tensorflow as tf, keras
before = dict(os.environ)
import tfopt.compat as tfmot
assert "tensorflow_model_optimization" not in sys.modules
assert "tf_keras" not in sys.modules
assert dict(os.environ) == before
assert tf.keras.__version__.startswith("3.")
assert tfmot.sparsity.keras.prune_low_magnitude.__module__ == "tfopt.compat.prune"
print("fine")
"""


def test_import_leaves_keras_and_the_environment_as_they_were():
    clean = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, env=clean)
    assert done.stdout.strip() == "fine", done.stderr[-3000:]


def public_names():
    """(module path, name) of TFMOT's public API, read from its files without importing it."""
    api = TFMOT / "python/core/api"
    for path in sorted(api.rglob("__init__.py")):
        module = ".".join(path.parent.relative_to(api).parts)
        # Transforms are parts of TFMOT's own rewriting; the modules that hold them are refused as a whole.
        if not module or "transforms" in module or "graph_transformations" in module:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield from ((module, alias.name) for alias in node.names)


def test_every_public_name_is_there_or_says_what_to_do_instead():
    found = list(public_names())
    assert len(found) > 40
    refused = set()
    for module, name in found:
        holder = tfmot
        for part in module.split("."):
            holder = getattr(holder, part)
        if not hasattr(holder, name):
            refused.add(name)
            with pytest.raises(AttributeError, match=r"is not in tfopt.compat: \w+"):
                getattr(holder, name)
    assert refused == {
        "ClusteringAlgorithm",
        "Default8BitQuantizeLayoutTransform",
        "Default8BitQuantizeRegistry",
        "DefaultNBitQuantizeLayoutTransform",
        "DefaultNBitQuantizeRegistry",
        "QuantizeLayoutTransform",
        "QuantizeRegistry",
        "QuantizeWrapper",
        "QuantizeWrapperV2",
        "clusterable_layer",
        "default_8bit_transforms",
        "default_n_bit_transforms",
        "fix_input_output_range",
        "graph_transformations",
        "remove_input_range",
    }
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = quantization.nonsense


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("sparsity/keras/prune.py", sparsity.prune_low_magnitude),
        ("sparsity/keras/prune.py", sparsity.strip_pruning),
        ("sparsity/keras/prune.py", sparsity.prune_scope),
        ("clustering/keras/experimental/cluster.py", clustering.experimental.cluster_weights),
        ("clustering/keras/cluster.py", clustering.strip_clustering),
        ("quantization/keras/quantize.py", quantization.quantize_model),
        ("quantization/keras/quantize.py", quantization.quantize_annotate_model),
        ("quantization/keras/quantize.py", quantization.quantize_annotate_layer),
        ("quantization/keras/quantize.py", quantization.quantize_apply),
        ("quantization/keras/quantize.py", quantization.quantize_scope),
        ("sparsity/keras/pruning_schedule.py", sparsity.PolynomialDecay),
        ("sparsity/keras/pruning_schedule.py", sparsity.ConstantSparsity),
        ("sparsity/keras/pruning_callbacks.py", sparsity.PruningSummaries),
        ("clustering/keras/clustering_callbacks.py", clustering.ClusteringSummaries),
        ("quantization/keras/quantizers.py", quantization.quantizers.LastValueQuantizer),
        ("quantization/keras/quantizers.py", quantization.quantizers.FixedQuantizer),
    ],
)
def test_arguments_are_those_of_tfmot(path, ours):
    name = ours.__name__
    tree = ast.parse((TFMOT / "python/core" / path).read_text())
    node = next(each for each in tree.body if getattr(each, "name", None) == name)
    if isinstance(node, ast.ClassDef):
        node = next(each for each in node.body if getattr(each, "name", None) == "__init__")
    theirs = [each.arg for each in node.args.args if each.arg != "self"]
    received = [
        each.name for each in inspect.signature(ours).parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    assert received == theirs
    defaults = [each.default for each in inspect.signature(ours).parameters.values() if each.default is not each.empty]
    assert len(defaults) == len(node.args.defaults)
    for mine, their in zip(defaults, node.args.defaults, strict=True):
        # The others are objects: the default schedule, initialization and scheme.
        if not isinstance(their, ast.Call | ast.Attribute):
            assert mine == ast.literal_eval(their)


# Pruning


def dense_net():
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(4, name="out")]
    return keras.Sequential([keras.Input((8,)), *layers])


X, Y = np.random.default_rng(0).normal(size=(20, 8)), np.ones((20, 4))


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


class Plain(keras.layers.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 4), name="kernel")

    def call(self, inputs):
        return inputs @ self.kernel


def with_plain():
    return keras.Sequential([keras.Input((8,)), Plain(name="mine")])


def subclassed():
    class Own(keras.Model):
        pass

    return Own()


def refusals():
    prune, cluster, quantize = sparsity.prune_low_magnitude, clustering.cluster_weights, quantization.quantize_model
    dense = keras.layers.Dense
    policy = sparsity.PruneForLatencyOnXNNPack
    return {
        "subclassed": (lambda: prune(subclassed()), ValueError, "subclassed.*functional API"),
        "no model": (lambda: prune(3), ValueError, "received builtins.int"),
        "typo": (lambda: prune(dense_net(), prunning_schedule=1), TypeError, "takes no prunning_schedule"),
        "no schedule": (lambda: prune(dense_net(), 0.5), TypeError, "must be a ConstantSparsity.*received 0.5"),
        "own layer": (lambda: prune(with_plain()), ValueError, "'mine'.*PrunableLayer"),
        "own layer alone": (lambda: prune(Plain()), ValueError, "PrunableLayer"),
        "nothing": (lambda: prune(keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])), ValueError, "none has"),
        "max": (lambda: prune(dense(4), block_size=(2, 2), block_pooling_type="MAX"), ValueError, "mean of their"),
        "pooling": (lambda: prune(dense(4), block_pooling_type="SUM"), ValueError, "'AVG' or 'MAX', received 'SUM'"),
        "block": (lambda: prune(dense(4), block_size=4), ValueError, "two whole numbers.*received 4"),
        "both": (lambda: prune(dense(4), block_size=(2, 2), sparsity_m_by_n=(2, 4)), ValueError, "exclude each other"),
        "m by n": (
            lambda: prune(dense(4), sparsity.ConstantSparsity(0.8, 0), sparsity_m_by_n=(2, 4)),
            ValueError,
            "asks for a sparsity of 0.5, the schedule ends at 0.8",
        ),
        "policy": (lambda: prune(dense(4), pruning_policy=policy()), ValueError, "pass the model"),
        "policy's model": (lambda: prune(dense_net(), pruning_policy=policy()), ValueError, "keepdims = True"),
        "strip plain": (lambda: sparsity.strip_pruning(dense_net()), ValueError, "no layer from prune_low_magnitude"),
        "cluster none": (lambda: cluster(dense_net(), 1), ValueError, "whole number from 2, received 1"),
        "cluster init": (lambda: cluster(dense_net(), 4, "best"), ValueError, "LINEAR.*received 'best'"),
        "cluster typo": (lambda: cluster(dense_net(), 4, clusters=1), TypeError, "takes no clusters"),
        "cluster own": (lambda: cluster(with_plain(), 4), ValueError, "ClusterableLayer"),
        "strip unclustered": (lambda: clustering.strip_clustering(dense_net()), ValueError, "from cluster_weights"),
        "quantize pruned": (lambda: quantize(prune(dense_net())), ValueError, "call strip_pruning"),
        "quantize clustered": (lambda: quantize(cluster(dense_net(), 4)), ValueError, "strip_clustering first"),
        "quantize annotated": (
            lambda: quantize(quantization.quantize_annotate_model(dense_net())),
            ValueError,
            "annotated: call quantize_apply",
        ),
        "nothing annotated": (lambda: quantization.quantize_apply(dense_net()), ValueError, "is annotated"),
        "own scheme": (
            lambda: quantization.quantize_apply(quantization.quantize_annotate_model(dense_net()), object()),
            TypeError,
            "one of TFMOT's",
        ),
        "per axis": (
            lambda: quantization.default_8bit.Default8BitQuantizeScheme(disable_per_axis=True),
            ValueError,
            "each channel",
        ),
        "config": (lambda: quantization.quantize_annotate_layer(dense(4), {}), TypeError, "QuantizeConfig or None"),
        "own quantized": (lambda: quantize(with_plain()), ValueError, "cannot be quantized: 'mine'"),
        "log_dir": (lambda: sparsity.PruningSummaries(""), ValueError, "path of a folder.*received ''"),
        "callback alone": (
            lambda: fitted(dense_net(), [sparsity.UpdatePruningStep()]),
            ValueError,
            "nothing to prune: wrap it",
        ),
    }


def fitted(model, callbacks=()):
    model.compile(**MSE)
    model.fit(X, Y, verbose=0, callbacks=list(callbacks))
    return model


@pytest.mark.parametrize("name", list(refusals()))
def test_what_is_refused_says_why(name):
    call, error, message = refusals()[name]
    with pytest.raises(error, match=re.compile(message, re.S)):
        call()


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


# Quantization


def test_layers_that_are_not_annotated_stay_in_float(tmp_path):
    model = small_model()
    annotated = keras.models.clone_model(
        model,
        clone_function=lambda layer: (
            quantization.quantize_annotate_layer(layer) if isinstance(layer, keras.layers.Dense) else layer
        ),
    )
    aware = quantization.quantize_apply(annotated)
    assert set(tfopt.float_islands(aware)) >= {"conv", "bn", "relu", "pool"}
    aware.compile(**COMPILED)
    aware.fit(*blobs(48), verbose=0)
    file = tfopt.export_tflite(aware, tmp_path / "m.tflite", float_io=True)
    assert sorted(tensor.dtype for tensor in file.tensors) == ["float32", "int8", "int8"]
    assert {"quant_hidden", "out"} <= {layer.name for layer in aware.layers}


def test_preserved_zeros_stay_in_later_trainings_of_all_kinds(tmp_path):
    model = small_model()
    for variable in model.trainable_variables:
        if len(variable.shape) >= 2:
            variable.assign(variable * (np.random.default_rng(0).random(variable.shape) < 0.5))
    expected = sparsities(model)
    scheme = quantization.collab_opts.Default8BitPrunePreserveQuantizeScheme()
    aware = quantization.quantize_apply(quantization.quantize_annotate_model(model), scheme)
    x, y = blobs(48)

    def kept(trained):
        return list(sparsities(trained).values()) == pytest.approx(list(expected.values()))

    # A loop of one's own.
    optimizer = keras.optimizers.SGD(0.1)
    with tf.GradientTape() as tape:
        loss = keras.losses.sparse_categorical_crossentropy(y, aware(x, training=True))
    optimizer.apply(tape.gradient(loss, aware.trainable_variables), aware.trainable_variables)
    assert kept(aware)
    aware.compile(**COMPILED)
    aware.fit(x, y, verbose=0)
    assert kept(aware)
    # From a file, and with a callback of tfopt that attaches constraints of its own.
    aware.save(tmp_path / "aware.keras")
    loaded = keras.models.load_model(tmp_path / "aware.keras")
    loaded.fit(x, y, verbose=0, callbacks=[tfopt.ClusteringCallback(8)])
    assert kept(loaded)
    assert all(len(np.unique(kernel)) <= 8 for kernel in kernels(loaded).values())
    # Weights of another model have zeros of their own.
    other = quantization.quantize_model(small_model())
    other.compile(**COMPILED)
    other.fit(x, y, verbose=0)
    other.save_weights(tmp_path / "other.weights.h5")
    loaded = keras.models.load_model(tmp_path / "aware.keras")
    loaded.fit(x, y, verbose=0)
    loaded.load_weights(tmp_path / "other.weights.h5")
    loaded.fit(x, y, verbose=0)
    assert max(sparsities(loaded).values()) == 0


def test_an_aware_model_computes_alike_wherever_it_goes(tmp_path):
    aware = quantization.quantize_model(small_model(), quantized_layer_name_prefix=None)
    assert "quant_conv" not in {layer.name for layer in aware.layers}
    x, y = blobs(48)
    aware.compile(**COMPILED)
    aware.fit(x, y, verbose=0)
    expected = aware.predict(x, verbose=0)
    aware.export(tmp_path / "saved", verbose=False)
    np.testing.assert_allclose(tf.saved_model.load(tmp_path / "saved").serve(x), expected, atol=1.01 / 256)
    # A function that was traced before goes on with the weights as they come.
    infer = tf.function(lambda inputs: aware(inputs, training=False))
    np.testing.assert_allclose(infer(tf.constant(x)), expected, atol=1e-5)
    aware.set_weights([np.zeros_like(each) if each.ndim > 1 else each for each in aware.get_weights()])
    assert np.ptp(np.asarray(infer(tf.constant(x))), axis=0).max() < 1e-6
    tfopt.calibrate(aware, x)
    assert tfopt.export_tflite(aware, tmp_path / "m.tflite").float_ops == []


def test_bits_of_schemes_and_of_layers(tmp_path):
    scheme = quantization.experimental.default_n_bit.DefaultNBitQuantizeScheme(num_bits_weight=4)
    aware = quantization.quantize_apply(quantization.quantize_annotate_model(dense_net()), scheme)
    tfopt.calibrate(aware, X)
    assert {tensor.dtype for tensor in tfopt.export_tflite(aware, tmp_path / "m.tflite").tensors} == {"int4"}


def test_a_lambda_layer_stays_in_float_and_is_told(caplog):
    model = keras.Sequential([*dense_net().layers, keras.layers.Lambda(lambda x: keras.ops.sin(x), name="sine")])
    model.build((None, 8))
    aware = quantization.quantize_model(model)
    assert list(tfopt.float_islands(aware)) == ["sine_quantized"]
    assert "'sine' is a Lambda" in caplog.text


def test_tensorflows_functions_as_activations_are_quantized():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation=tf.nn.relu, name="out")])
    same = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu", name="out")])
    made = [quantization.quantize_model(each) for each in (model, same)]
    kinds = [[type(layer) for layer in each.layers] for each in made]
    assert kinds[0] == kinds[1]
