"""TFMOT's comprehensive guides with `import tfopt.compat as tfmot` and Keras 3: a dense layer on random numbers."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
import tfopt.compat as tfmot
from tests.compat_data import convert, kernels, names, sparsities, zipped
from tests.conftest import quick

pytestmark = [
    # A model that knows its ranges needs no examples; the converter says so.
    pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected:UserWarning"),
]

DENSE = {"loss": "categorical_crossentropy", "optimizer": "adam", "metrics": ["accuracy"]}


def dense_model():
    return keras.Sequential([keras.layers.Dense(20, input_shape=[20]), keras.layers.Flatten()])


@pytest.fixture(scope="module")
def random_data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, 20)).astype("float32"), keras.utils.to_categorical([3], num_classes=20)


@pytest.fixture
def pretrained(random_data, tmp_path):
    """A model with weights from a file."""
    model = dense_model()
    model.compile(**DENSE)
    model.fit(*random_data, verbose=0)
    model.save_weights(tmp_path / "pretrained.weights.h5")
    loaded = dense_model()
    loaded.load_weights(tmp_path / "pretrained.weights.h5")
    return loaded


of_guides = pytest.mark.filterwarnings("ignore:Do not pass an `input_shape`:UserWarning")


@pytest.mark.slow
@of_guides
def test_pruning_guide_ways_to_define_a_model(pretrained):
    prune = tfmot.sparsity.keras.prune_low_magnitude
    whole = prune(pretrained)
    assert names(whole)[0] == f"prune_low_magnitude_{names(pretrained)[0]}"

    some = keras.models.clone_model(
        pretrained, clone_function=lambda layer: prune(layer) if isinstance(layer, keras.layers.Dense) else layer
    )
    for model in (whole, some):
        np.testing.assert_array_equal(model.layers[0].layer.kernel, pretrained.layers[0].kernel)

    inputs = keras.Input((20,))
    functional = keras.Model(inputs, keras.layers.Flatten()(prune(keras.layers.Dense(10))(inputs)))
    sequential = keras.Sequential([prune(keras.layers.Dense(20, input_shape=[20])), keras.layers.Flatten()])
    assert functional.output_shape == (None, 10)
    assert sequential.built

    class MyDense(keras.layers.Dense, tfmot.sparsity.keras.PrunableLayer):
        def get_prunable_weights(self):
            return [self.kernel, self.bias]

    own = keras.Sequential([prune(MyDense(20, input_shape=[20])), keras.layers.Flatten()])
    blocks = prune(pretrained, block_size=[1, 16])
    for model, pruned in ((own, ["kernel", "bias"]), (blocks, ["kernel"])):
        model.layers[0].layer.bias.assign(np.arange(1.0, 21.0))
        model.compile(**DENSE)
        x, y = np.ones((1, 20)), np.eye(20)[:1]
        model.fit(x, y, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
        assert [each.name for each in model.layers[0].prunable_variables()] == pruned
    assert (np.asarray(own.layers[0].layer.bias) == 0).mean() == 0.5
    kernel = np.asarray(blocks.layers[0].layer.kernel)
    assert all(len(set((row[:16] == 0).tolist())) == 1 for row in kernel)


@of_guides
def test_pruning_guide_training(pretrained, random_data, tmp_path):
    model = tfmot.sparsity.keras.prune_low_magnitude(pretrained)
    logs = str(tmp_path / "logs")
    callbacks = [
        tfmot.sparsity.keras.UpdatePruningStep(),
        tfmot.sparsity.keras.PruningSummaries(log_dir=logs),
    ]
    model.compile(**DENSE)
    model.fit(*random_data, callbacks=callbacks, epochs=2, verbose=0)
    assert sparsities(tfmot.sparsity.keras.strip_pruning(model)) == {f"{pretrained.layers[0].name}/kernel": 0.5}


@of_guides
def test_pruning_guide_loop_of_ones_own(pretrained, random_data, tmp_path):
    x, y = random_data
    model = tfmot.sparsity.keras.prune_low_magnitude(pretrained)
    optimizer = keras.optimizers.Adam()
    model.optimizer = optimizer
    step_callback = tfmot.sparsity.keras.UpdatePruningStep()
    step_callback.set_model(model)
    log_callback = tfmot.sparsity.keras.PruningSummaries(log_dir=str(tmp_path))
    log_callback.set_model(model)
    step_callback.on_train_begin()
    for _ in range(2):
        log_callback.on_epoch_begin(epoch=-1)
        for _ in range(1):
            step_callback.on_train_batch_begin(batch=-1)
            with tf.GradientTape() as tape:
                loss = keras.losses.categorical_crossentropy(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            assert (np.asarray(model.layers[0].layer.kernel) == 0).mean() == 0.5
        step_callback.on_epoch_end(batch=-1)
    assert int(model.layers[0].pruning_step.numpy()) == 2


@of_guides
@pytest.mark.parametrize("suffix", quick([".keras", ".h5"], ".keras"))
def test_pruning_guide_checkpoint_and_training_on(suffix, pretrained, random_data, tmp_path):
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.2, 0.8, begin_step=0, end_step=8, frequency=2)
    model = tfmot.sparsity.keras.prune_low_magnitude(pretrained, schedule)
    model.compile(**DENSE)
    steps = tfmot.sparsity.keras.UpdatePruningStep
    model.fit(*random_data, epochs=4, callbacks=[steps()], verbose=0)
    half = float(schedule(4)[1])
    model.save(tmp_path / f"model{suffix}", include_optimizer=True)
    with tfmot.sparsity.keras.prune_scope():
        loaded = keras.models.load_model(tmp_path / f"model{suffix}")
    assert loaded.layers[0].pruning_schedule == schedule
    if suffix == ".h5":
        # Keras 3 restores no optimizer from such files that could go on, of any model.
        loaded.compile(**DENSE)
    before = np.asarray(loaded.layers[0].layer.kernel) == 0
    assert before.mean() == pytest.approx(half, abs=0.002)
    loaded.fit(*random_data, epochs=4, callbacks=[steps()], verbose=0)
    after = np.asarray(loaded.layers[0].layer.kernel) == 0
    assert after.mean() == 0.8
    assert after[before].all()


@of_guides
def test_pruning_guide_export(pretrained, random_data, tmp_path):
    model = tfmot.sparsity.keras.prune_low_magnitude(pretrained)
    # The guide trains nothing here; it is a warning in the log.
    exported = tfmot.sparsity.keras.strip_pruning(model)
    sizes = []
    for each in (model, exported):
        each.save(tmp_path / "model.h5", include_optimizer=False)
        sizes.append(zipped(tmp_path / "model.h5"))
    assert sizes[1] < sizes[0]


@pytest.mark.slow
@of_guides
def test_clustering_guide(pretrained, random_data, tmp_path):
    cluster, init = tfmot.clustering.keras.cluster_weights, tfmot.clustering.keras.CentroidInitialization
    params = {"number_of_clusters": 3, "cluster_centroids_init": init.KMEANS_PLUS_PLUS}
    some = keras.models.clone_model(
        pretrained,
        clone_function=lambda layer: cluster(layer, **params) if isinstance(layer, keras.layers.Dense) else layer,
    )

    class MyDense(keras.layers.Dense, tfmot.clustering.keras.ClusterableLayer):
        def get_clusterable_weights(self):
            return [("kernel", self.kernel), ("bias", self.bias)]

    mine = MyDense(20, input_shape=[20], bias_initializer="random_normal")
    own = keras.Sequential([cluster(mine, **params), keras.layers.Flatten()])
    for model in (cluster(pretrained, **params), some, own):
        model.compile(**DENSE)
        model.fit(*random_data, verbose=0)
        final = tfmot.clustering.keras.strip_clustering(model)
        assert all(len(np.unique(kernel)) == 3 for kernel in kernels(final).values())
    assert len(np.unique(final.layers[0].bias)) == 3

    for suffix in (".keras", ".h5"):
        model = cluster(pretrained, **params)
        model.compile(**DENSE)
        model.fit(*random_data, verbose=0)
        model.save(tmp_path / f"model{suffix}")
        with tfmot.clustering.keras.cluster_scope():
            loaded = keras.models.load_model(tmp_path / f"model{suffix}")
        np.testing.assert_array_equal(
            loaded.predict(random_data[0], verbose=0), model.predict(random_data[0], verbose=0)
        )
        loaded.compile(**DENSE)
        loaded.fit(*random_data, epochs=3, verbose=0)
        assert all(len(np.unique(kernel)) == 3 for kernel in kernels(loaded).values())
    tfmot.clustering.keras.strip_clustering(model).save(tmp_path / "final.h5", include_optimizer=False)
    model.save(tmp_path / "model.h5", include_optimizer=False)
    assert zipped(tmp_path / "final.h5") < zipped(tmp_path / "model.h5")


def dense_config(bits=8, activations=True):
    """The guide's configuration of a dense layer."""
    quantizers = tfmot.quantization.keras.quantizers

    class DenseConfig(tfmot.quantization.keras.QuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            made = quantizers.LastValueQuantizer(num_bits=bits, symmetric=True, narrow_range=False, per_axis=False)
            return [(layer.kernel, made)]

        def get_activations_and_quantizers(self, layer):
            made = quantizers.MovingAverageQuantizer(num_bits=8, symmetric=False, narrow_range=False, per_axis=False)
            return [(layer.activation, made)] if activations else []

        def set_quantize_weights(self, layer, quantize_weights):
            layer.kernel = quantize_weights[0]

        def set_quantize_activations(self, layer, quantize_activations):
            layer.activation = quantize_activations[0]

        def get_output_quantizers(self, layer):
            return []

        def get_config(self):
            return {}

    return DenseConfig


def trained_file(aware, random_data, path):
    aware.compile(**DENSE)
    aware.fit(*random_data, verbose=0)
    return convert(aware, path)


@pytest.mark.slow
@of_guides
def test_quantization_guide_ways_to_define_a_model(pretrained, random_data, tmp_path):
    keras_api = tfmot.quantization.keras
    annotate = keras_api.quantize_annotate_layer
    some = keras.models.clone_model(
        pretrained, clone_function=lambda layer: annotate(layer) if isinstance(layer, keras.layers.Dense) else layer
    )
    inputs = keras.Input((20,))
    functional = keras.Model(inputs, keras.layers.Flatten()(annotate(keras.layers.Dense(20))(inputs)))
    sequential = keras.Sequential([annotate(keras.layers.Dense(20, input_shape=[20])), keras.layers.Flatten()])
    made = [keras_api.quantize_model(pretrained), *map(keras_api.quantize_apply, (some, functional, sequential))]
    np.testing.assert_array_equal(next(iter(kernels(made[1]).values())), pretrained.layers[0].kernel)
    for model in made:
        assert any(name.startswith("quant_dense") for name in names(model))
        file = trained_file(model, random_data, tmp_path / "m.tflite")
        assert [tensor.dtype for tensor in file.tensors] == ["int8"]
        assert file.float_ops == []


@of_guides
@pytest.mark.parametrize("suffix", quick([".keras", ".h5"], ".keras"))
def test_quantization_guide_checkpoint(suffix, pretrained, random_data, tmp_path):
    model = tfmot.quantization.keras.quantize_model(pretrained)
    model.compile(**DENSE)
    model.fit(*random_data, verbose=0)
    model.save(tmp_path / f"aware{suffix}")
    with tfmot.quantization.keras.quantize_scope():
        loaded = keras.models.load_model(tmp_path / f"aware{suffix}")
    np.testing.assert_array_equal(loaded.predict(random_data[0], verbose=0), model.predict(random_data[0], verbose=0))
    assert convert(loaded, tmp_path / "a.tflite").bytes == convert(model, tmp_path / "b.tflite").bytes


@pytest.mark.slow
@of_guides
def test_quantization_guide_configurations(random_data, tmp_path):
    keras_api = tfmot.quantization.keras

    class CustomLayer(keras.layers.Dense):
        pass

    def applied(layer, config):
        model = keras_api.quantize_annotate_model(
            keras.Sequential([keras_api.quantize_annotate_layer(layer, config()), keras.layers.Flatten()])
        )
        with keras_api.quantize_scope({config.__name__: config, "CustomLayer": CustomLayer}):
            return keras_api.quantize_apply(model)

    for layer, bits in ((CustomLayer(20, input_shape=(20,)), 8), (keras.layers.Dense(20, input_shape=(20,)), 4)):
        file = trained_file(applied(layer, dense_config(bits)), random_data, tmp_path / "m.tflite")
        assert [tensor.dtype for tensor in file.tensors] == [f"int{bits}"]

    # What an integer file cannot hold is refused, where TFMOT trained it without a way to a file.
    with pytest.raises(ValueError, match="neither activations nor outputs.*without quantize_annotate_layer"):
        applied(keras.layers.Dense(20, input_shape=(20,)), dense_config(activations=False))

    class FixedRangeQuantizer(keras_api.quantizers.Quantizer):
        def build(self, tensor_shape, name, layer):
            return {}

        def __call__(self, inputs, training, weights, **kwargs):
            return keras.ops.clip(inputs, -1.0, 1.0)

        def get_config(self):
            return {}

    class FixedRangeConfig(dense_config()):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, FixedRangeQuantizer())]

    with pytest.raises(ValueError, match="FixedRangeQuantizer.*kernel_constraint"):
        applied(keras.layers.Dense(20, input_shape=(20,)), FixedRangeConfig)


@of_guides
def test_untrained_ranges_are_refused_where_tfmot_wrote_a_file_of_chance(pretrained, random_data, tmp_path, caplog):
    aware = tfmot.quantization.keras.quantize_model(pretrained)
    # The converter swallows what is raised within it. Without tf_keras it fails itself, with it there is a second way.
    with pytest.raises((TypeError, ValueError)):
        convert(aware, tmp_path / "m.tflite")
    assert "does not know the ranges of 2 of its tensors" in caplog.text
    assert importlib.import_module("tf_keras")
    with pytest.raises(ValueError, match="does not know the ranges of 2 of its tensors"):
        convert(aware, tmp_path / "m.tflite")
    tfopt.calibrate(aware, random_data[0])
    assert convert(aware, tmp_path / "m.tflite").float_ops == []
