"""Channel pruning on every structure: the sizes by hand, and outputs that stay where what goes had no effect."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfopt.channels.plan import plan_channels
from tfopt.channels.prune import prune_channels
from tfopt.channels.rebuild import apply_plan

TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def randomized(model, seed=0):
    """With weights that differ everywhere; variances stay positive."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        low = 0.5 if "variance" in variable.name else -1.0
        variable.assign(rng.uniform(low, 1.0, variable.shape).astype("float32"))
    return model


def inputs_of(model, count=3, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(count, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]


def outputs_of(model, inputs):
    given = keras.tree.pack_sequence_as(model._inputs_struct, inputs) if len(inputs) > 1 else inputs[0]
    return [np.asarray(each) for each in keras.tree.flatten(model(given, training=False))]


def assert_same(model, other, tolerance=1e-5):
    inputs = inputs_of(model)
    expected, actual = outputs_of(model, inputs), outputs_of(other, inputs)
    for one, another in zip(expected, actual, strict=True):
        assert np.ptp(one, axis=0).max() > 0
        np.testing.assert_allclose(another, one, rtol=0, atol=tolerance * max(1.0, np.abs(one).max()))


def image(channels=3, name="image"):
    return keras.Input((6, 6, channels), name=name)


def head(x, name="head"):
    return layers.Dense(3, name=name)(layers.GlobalAveragePooling2D()(x))


def conv(filters, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", **options)


def plain():
    x = image()
    y = layers.ReLU()(layers.BatchNormalization()(conv(8, name="first", use_bias=False)(x)))
    y = layers.MaxPooling2D()(layers.LeakyReLU()(conv(6, name="second")(y)))
    return keras.Model(x, head(layers.Dropout(0.5)(layers.ZeroPadding2D()(y))))


def sequential():
    return keras.Sequential(
        [image(), conv(8, activation="relu"), layers.Flatten(), layers.Dense(10, activation="gelu"), layers.Dense(3)]
    )


def residual():
    x = image()
    first = conv(8, activation="relu", name="first")(x)
    y = first + conv(8, name="inside")(layers.ReLU()(conv(4, name="narrow")(first)))
    y = layers.Add()([y, conv(8, 1, name="again")(y)])
    return keras.Model(x, head(ops.relu(y)))


def depthwise_separable():
    x = image()
    y = conv(8, name="stem")(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(y)
    y = ops.relu6(layers.BatchNormalization()(y))
    return keras.Model(x, head(layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu")(y)))


def concatenated():
    x = image()
    left, right = conv(4, name="left")(x), conv(6, name="right")(x)
    y = layers.Concatenate()([left, right, left])
    down = ops.concatenate([layers.ReLU()(y), layers.ReLU()(y)], axis=1)
    return keras.Model(x, head(conv(4, 1, name="both")(down)))


def excited():
    x = image()
    y = conv(8, name="body")(x)
    squeezed = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(y))
    gate = conv(8, 1, activation="sigmoid", name="expand")(conv(4, 1, activation="relu", name="squeeze")(squeezed))
    return keras.Model(x, head(layers.Multiply()([y, gate])))


def grouped():
    x = image()
    y = layers.Conv2D(12, 3, groups=3, activation="relu", name="grouped")(conv(6, name="stem")(x))
    y = layers.Conv2D(24, 3, groups=12, activation="relu", name="like_depthwise")(y)
    return keras.Model(x, head(y))


def transposed():
    x = image()
    y = layers.UpSampling2D()(conv(4, strides=2, activation="relu")(x))
    y = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(y)
    return keras.Model(x, conv(2, name="mask")(layers.Cropping2D(1)(y)))


def one_dimensional():
    x = keras.Input((8, 3))
    y = layers.DepthwiseConv1D(3)(layers.Conv1D(4, 3, padding="causal", activation="relu")(x))
    y = layers.SeparableConv1D(4, 2, activation="relu")(layers.AveragePooling1D(2)(y))
    y = layers.Conv1DTranspose(6, 2, activation="relu")(y)
    return keras.Model(x, layers.Dense(3)(layers.GlobalMaxPooling1D()(y)))


def three_dimensional():
    x = keras.Input((4, 4, 4, 2))
    y = layers.Conv3DTranspose(4, 2, activation="relu")(layers.Conv3D(4, 2, activation="relu")(x))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.SpatialDropout3D(0.1)(y))))


def nested():
    """A nested model inside a nested model, which takes fewer channels then."""
    inner = image(8)
    tower = keras.Sequential([image(8), conv(4, name="c"), layers.ReLU()], name="tower")
    block = keras.Model(inner, layers.Concatenate()([tower(inner), conv(4, name="c")(inner)]), name="block")
    outer = image()
    return keras.Model(outer, head(block(conv(8, name="stem")(outer))))


def nested_with_several_inputs():
    first = {"zulu": image(8, "zulu"), "alpha": image(4, "alpha")}
    made = {"u": conv(4, name="u")(first["zulu"]), "v": layers.ReLU()(first["alpha"])}
    inner, x = keras.Model(first, made, name="inner"), image()
    found = inner({"zulu": conv(8, name="zulu")(x), "alpha": conv(4, name="alpha")(x)})
    return keras.Model(x, head(layers.Concatenate()([found["u"], found["v"]])))


def sequential_of_sequentials():
    block = keras.Sequential([image(), conv(8), layers.ReLU()], name="block")
    return keras.Sequential(
        [image(), block, keras.Sequential([conv(4, activation="relu")]), layers.Flatten(), layers.Dense(3)]
    )


def shared():
    """A layer that is called twice, and a nested model without weights."""
    left, right = image(name="left"), image(name="right")
    first, twice = conv(8, name="first"), conv(4, activation="relu", name="twice")
    pool = keras.Sequential([image(4), layers.MaxPooling2D()], name="pool")
    other = conv(8, name="other")(right)
    outputs = [pool(twice(first(left))), pool(twice(other))]
    return keras.Model([left, right], head(layers.Maximum()(outputs)))


def two_outputs():
    inputs = {"zulu": image(name="zulu"), "alpha": image(name="alpha")}
    x = conv(4, activation="relu", name="seen")(inputs["zulu"]) * 0.5
    y = conv(6, activation="relu", name="hidden")(layers.Concatenate()([x, inputs["alpha"]]))
    return keras.Model(inputs, {"second": layers.Activation("relu", name="second")(x), "first": head(y, "first")})


def reshaped():
    """Operators that move everything but the channels."""
    x = image()
    y = ops.transpose(conv(8, activation="relu")(x), (0, 2, 1, 3))
    y = layers.Permute((2, 1, 3))(ops.reshape(y, (-1, 6, 6, 8)))
    y = ops.pad(ops.mean(y, axis=1), ((0, 0), (1, 1), (0, 0)))
    y = ops.squeeze(ops.expand_dims(y, 1), 1)[:, 1:]
    y = layers.Reshape((-1, 4 * 8))(ops.clip(y[:, :4], 0.0, 6.0))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.RepeatVector(2)(layers.Reshape((32,))(y)))))


def flattened_and_back():
    """With a fixed batch."""
    x = keras.Input((6, 6, 3), batch_size=3, name="image")
    y = ops.reshape(layers.Flatten()(conv(8, activation="relu")(x)), (3, 36, 8))
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


def scaled():
    """Weights for each channel."""
    x = image()
    y = layers.PReLU(shared_axes=[1, 2])(conv(8, name="body")(x))
    y = layers.PReLU()(layers.Rescaling(np.arange(8.0).tolist(), 0.0)(y))
    return keras.Model(x, head(layers.ReLU()(layers.GroupNormalization(-1)(y))))


def other_axes():
    """Normalizations over, or along, other axes too, which make something of nothing."""
    x = image()
    y = layers.GroupNormalization(2)(layers.LayerNormalization((-1, 1))(conv(8, name="body")(x)))
    y = layers.BatchNormalization(axis=1)(y)
    return keras.Model(x, head(layers.RMSNormalization()(layers.LayerNormalization(axis=[1, 2])(y))))


# The parameters at a ratio of 0.5, from kernels and biases by hand.
CASES = {
    plain: 3 * 9 * 4 + 4 * 4 + (4 * 9 * 3 + 3) + (3 * 3 + 3),
    sequential: (3 * 9 * 4 + 4) + (36 * 4 * 5 + 5) + (5 * 3 + 3),
    residual: (3 * 9 * 4 + 4) + (4 * 9 * 2 + 2) + (2 * 9 * 4 + 4) + (4 * 4 + 4) + (4 * 3 + 3),
    depthwise_separable: (3 * 9 * 4 + 4) + (9 * 8 + 8) + 4 * 8 + (9 * 16 + 16 * 3 + 3) + (3 * 3 + 3),
    concatenated: (3 * 9 * 2 + 2) + (3 * 9 * 3 + 3) + (7 * 2 + 2) + (2 * 3 + 3),
    excited: (3 * 9 * 4 + 4) + (4 * 2 + 2) + (2 * 4 + 4) + (4 * 3 + 3),
    grouped: (3 * 9 * 3 + 3) + (1 * 9 * 6 + 6) + (9 * 12 + 12) + (12 * 3 + 3),
    transposed: (3 * 9 * 2 + 2) + (2 * 9 * 3 + 3) + (3 * 9 * 2 + 2),
    one_dimensional: (3 * 3 * 2 + 2) + (3 * 2 + 2) + (2 * 2 + 2 * 2 + 2) + (2 * 2 * 3 + 3) + (3 * 3 + 3),
    three_dimensional: (2 * 8 * 2 + 2) + (2 * 8 * 2 + 2) + (64 * 2 * 3 + 3),
    nested: (3 * 9 * 4 + 4) + 2 * (4 * 9 * 2 + 2) + (4 * 3 + 3),
    nested_with_several_inputs: (27 * 4 + 4) + (27 * 2 + 2) + (4 * 9 * 2 + 2) + (4 * 3 + 3),
    sequential_of_sequentials: (27 * 4 + 4) + (4 * 9 * 2 + 2) + (36 * 2 * 3 + 3),
    shared: 2 * (3 * 9 * 4 + 4) + (4 * 9 * 2 + 2) + (2 * 3 + 3),
    two_outputs: (3 * 9 * 4 + 4) + (7 * 9 * 3 + 3) + (3 * 3 + 3),
    reshaped: (3 * 9 * 4 + 4) + (2 * 16 * 3 + 3),
    flattened_and_back: (3 * 9 * 4 + 4) + (4 * 3 + 3),
    scaled: (3 * 9 * 4 + 4) + 4 + 36 * 4 + 2 * 4 + (4 * 3 + 3),
    other_axes: (3 * 9 * 4 + 4) + 2 * (4 * 6) + 2 * 4 + 4 * 6 + 2 * 36 + 4 + (4 * 3 + 3),
}


def cases(*left_out):
    return pytest.mark.parametrize(
        "make", [make for make in CASES if make not in left_out], ids=lambda make: make.__name__
    )


@cases()
def test_ratio_0_changes_nothing(make):
    model = randomized(make())
    same = prune_channels(model, ratio=0)
    assert type(same) is type(model)
    assert same is not model
    assert not same.compiled
    assert same.count_params() == model.count_params()
    assert_same(model, same, 1e-6)


@cases()
def test_parameters_at_half(make):
    model = randomized(make())
    plan = plan_channels(model, ratio=0.5, multiple=1)
    small, _ = apply_plan(model, plan)
    assert small.count_params() == CASES[make]
    assert (plan.before.parameters, plan.after.parameters) == (model.count_params(), CASES[make])
    counted = plan_channels(small, ratio=0).before
    assert (plan.after.parameters, plan.after.macs) == (counted.parameters, counted.macs)
    assert [each.shape for each in small.outputs] == [each.shape for each in model.outputs]
    assert [each.shape for each in small.inputs] == [each.shape for each in model.inputs]


def silence(model, plan):
    """Makes zeros of what the plan takes away: filters, biases, what normalizes them. What reads them stays."""
    _, kept = apply_plan(model, plan)
    lost = 0
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.Model):
            continue
        for variable in layer.weights:
            values, axes = np.array(variable), kept[variable.path][1]
            axis = -2 if isinstance(layer, (*TRANSPOSED, *DEPTHWISE)) and values.ndim > 1 else -1
            if variable.path.endswith("depthwise_kernel") or axes[axis] is None:
                continue
            gone = np.delete(np.arange(values.shape[axis]), axes[axis])
            np.moveaxis(values, axis, -1)[..., gone] = 0.0
            variable.assign(values)
            lost += len(gone)
    assert lost > 0


@cases(other_axes)
def test_channels_without_effect_go_without_effect(make):
    model = randomized(make())
    plan = plan_channels(model, ratio=0.5, multiple=1)
    inputs = inputs_of(model)
    before = outputs_of(model, inputs)
    silence(model, plan)
    small, _ = apply_plan(model, plan)
    assert small.count_params() < model.count_params()
    assert_same(model, small)
    # What went had an effect before.
    assert np.abs(before[0] - outputs_of(small, inputs)[0]).max() > 1e-3
