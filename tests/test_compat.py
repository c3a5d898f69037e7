"""tfopt.compat beyond the tutorials: TFMOT's names and arguments, what is refused and why, quantization."""

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
from tests.compat_data import COMPILED, X, dense_net, fitted, kernels, sparsities
from tests.conftest import blobs, small_model

sparsity, clustering, quantization = tfmot.sparsity.keras, tfmot.clustering.keras, tfmot.quantization.keras
TFMOT = pathlib.Path(importlib.util.find_spec("tensorflow_model_optimization").submodule_search_locations[0])

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


@pytest.mark.parametrize("name", list(refusals()))
def test_what_is_refused_says_why(name):
    call, error, message = refusals()[name]
    with pytest.raises(error, match=re.compile(message, re.S)):
        call()


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
