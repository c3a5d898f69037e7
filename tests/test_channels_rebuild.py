"""The smaller model is the old one in all but its channels, and tells where every weight went."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfopt
from tests.conftest import small_model
from tests.test_channels import CASES, assert_same, conv, head, image, inputs_of, outputs_of, randomized, two_outputs
from tests.test_channels_plan import Mystery
from tfopt.channels.plan import plan_channels
from tfopt.channels.prune import prune_channels
from tfopt.channels.rebuild import apply_plan


def halved(model, **options):
    return apply_plan(model, plan_channels(model, ratio=0.5, **{"multiple": 1, **options}))


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_every_old_weight_is_found_in_the_new_model(make):
    model = randomized(make())
    small, kept = halved(model)
    old, new = ({variable.path: np.array(variable) for variable in each.variables} for each in (model, small))
    assert kept.keys() == old.keys()
    assert sorted(path for path, _ in kept.values()) == sorted(new)
    for path, (new_path, axes) in kept.items():
        assert len(axes) == old[path].ndim
        whole = [np.arange(size) if axis is None else axis for size, axis in zip(old[path].shape, axes, strict=True)]
        np.testing.assert_array_equal(new[new_path], old[path][np.ix_(*whole)])
    assert any(axis is not None for _, axes in kept.values() for axis in axes)


def test_names_settings_and_structure_stay():
    x = image()
    y = layers.BatchNormalization(momentum=0.7, epsilon=0.01, trainable=False, name="norm")(
        conv(8, name="body", kernel_regularizer="l2", bias_constraint="non_neg", dilation_rate=2)(x)
    )
    block = keras.Sequential([image(8), conv(6, name="inner"), layers.ReLU(6.0, name="cut")], name="block")
    block.trainable = False
    model = keras.Model(x, head(layers.Activation("silu", name="silu")(block(y))), name="named")
    model.get_layer("head").bias.trainable = False
    model.compile("sgd", "mse")
    block.compile("sgd", "mse")
    small, _ = halved(randomized(model))
    assert (small.name, small.output_names, [each.name for each in small.inputs]) == ("named", ["head"], ["image"])
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert not small.compiled
    assert not small.get_layer("block").compiled
    assert isinstance(small.get_layer("block"), keras.Sequential)
    for old, new in zip(model._flatten_layers(), small._flatten_layers(), strict=True):
        assert (type(old), old.name, old.trainable, old.dtype_policy) == (
            type(new),
            new.name,
            new.trainable,
            new.dtype_policy,
        )
    assert [each.trainable for each in small.weights] == [each.trainable for each in model.weights]
    assert [each.path for each in small.weights] == [each.path for each in model.weights]
    old, new = model.get_layer("body").get_config(), small.get_layer("body").get_config()
    assert {key for key in old if old[key] != new[key]} == {"filters"}
    assert model.get_layer("norm").get_config() == small.get_layer("norm").get_config()


def test_inputs_and_outputs_keep_their_names_and_order():
    model = randomized(two_outputs())
    small, _ = halved(model)
    assert list(small.input) == list(model.input)
    assert list(small.output) == list(model.output)
    assert small.output_names == model.output_names


def test_the_old_model_stays_as_it_is():
    model = randomized(small_model(dropout=0.5))
    weights, config, inputs = model.get_weights(), model.get_config(), inputs_of(model)
    before = outputs_of(model, inputs)
    halved(model)
    assert model.get_config() == config
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))
    np.testing.assert_array_equal(before[0], outputs_of(model, inputs)[0])


@pytest.mark.slow
def test_it_trains_saves_and_exports(tmp_path, data):
    model = small_model(dropout=0.1)
    small = prune_channels(model, ratio=0.5, multiple=2)
    assert small.count_params() < 0.4 * model.count_params()
    small.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    first = small.evaluate(data.train, verbose=0)
    small.fit(data.train, epochs=3, verbose=0, shuffle=False)
    assert small.evaluate(data.train, verbose=0) < first
    small.save(tmp_path / "small.keras")
    assert_same(small, keras.models.load_model(tmp_path / "small.keras"), 1e-6)
    measured = tfopt.export_tflite(small, tmp_path / "small.tflite", "int8", data)
    assert measured.bytes < tfopt.export_tflite(model, tmp_path / "old.tflite", "int8", data).bytes


def test_raw_operators_are_saved_with_their_new_shapes(tmp_path):
    x = image()
    y = ops.reshape(conv(8, activation="relu")(x), (-1, 36, 8))
    model = randomized(keras.Model(x, layers.Dense(3)(layers.Flatten()(y))))
    small, _ = halved(model)
    small.save(tmp_path / "small.keras")
    assert_same(small, keras.models.load_model(tmp_path / "small.keras"), 1e-6)


def test_mixed_precision_and_dtypes_stay():
    x = keras.Input((6, 6, 3), dtype="uint8", name="image")
    y = conv(8, dtype="mixed_float16", name="half")(layers.Rescaling(1 / 255)(x))
    model = keras.Model(x, layers.Dense(3, dtype="float32")(layers.Flatten()(layers.Activation("relu")(y))))
    small, _ = halved(model)
    assert small.inputs[0].dtype == "uint8"
    assert small.get_layer("half").dtype_policy.name == "mixed_float16"
    assert small.get_layer("half").kernel.dtype == "float32"


def test_layers_with_functions_and_statistics_of_their_own():
    x = image()
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3.0, 2.0, (32, 6, 6, 3)))
    y = layers.Lambda(lambda value: value * 2.0)(norm(x))
    y = Mystery()(conv(6, 1)(conv(8, activation="relu")(y)))
    model = keras.Model(x, head(y))
    same = prune_channels(model, ratio=0.0)
    assert_same(model, same, 1e-6)
    assert halved(model)[0].count_params() < model.count_params()


def test_a_plan_is_for_its_model():
    model = randomized(small_model())
    plan = plan_channels(model, ratio=0.5, multiple=1)
    twin = small_model()
    assert apply_plan(twin, plan)[0].count_params() == plan.after.parameters
    with pytest.raises(ValueError, match="no layer 'conv', 'hidden'"):
        apply_plan(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), plan)
    # The same names, but here they are an output, or of another width.
    x = keras.Input((8, 8, 2))
    y = layers.Dense(12, name="hidden")(layers.Flatten()(conv(8, name="conv")(x)))
    with pytest.raises(ValueError, match="other channels belong together"):
        apply_plan(keras.Model(x, y), plan)


def test_a_plan_for_other_widths():
    model = randomized(small_model())
    plan = plan_channels(model, ratio=0.5, multiple=1)
    x = keras.Input((8, 8, 2))
    y = layers.Dense(12, name="hidden")(layers.Flatten()(conv(4, name="conv")(x)))
    with pytest.raises(ValueError, match="the plan is for another model"):
        apply_plan(keras.Model(x, layers.Dense(3)(y)), plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50V2"])
def test_applications(name):
    model = getattr(keras.applications, name)(input_shape=(32, 32, 3), weights=None, classes=10)
    batch = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)).astype("float32")
    same = prune_channels(model, ratio=0)
    np.testing.assert_allclose(same(batch), model(batch), rtol=0, atol=1e-5)
    small, _ = halved(model)
    assert small.count_params() <= 0.35 * model.count_params()
    small.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    assert np.isfinite(small.train_on_batch(batch, np.arange(8)))
    assert tf.reduce_all(tf.math.is_finite(small(batch)))
