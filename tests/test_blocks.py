"""Residual blocks: found where they can go, taken out exactly, chosen by what they cost."""

import keras
import numpy as np
import pytest
from keras import layers

import tfopt
from tests.conftest import quick, residual_model, small_model
from tfopt.blocks import PruneBlocks, find_blocks, prune_blocks
from tfopt.evaluation import evaluate
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.train.statistics import recalibrate

FIT = tfopt.Fit(3e-3)


def conv(name, filters=4, **options):
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def plain(x):
    return layers.Add(name="sum")([x, conv("one")(x)])


def branch_first(x):
    return layers.Add(name="sum")([conv("one")(x), x])


def operator(x):
    return x + conv("one")(x)


def long_branch(x):
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(conv("one", 8)(x)))
    return layers.Add(name="sum")([x, conv("two")(y)])


def gated(x):
    y = conv("one")(x)
    gate = layers.Dense(4, "sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    return layers.Add(name="sum")([x, y * gate])


FOUND = {
    plain: (("one",), 0),
    branch_first: (("one",), 1),
    operator: (("one",), 0),
    long_branch: (("one", "bn", "relu", "two"), 0),
    gated: (None, 0),
}


def model_of(make):
    inputs = keras.Input((6, 6, 4))
    return keras.Model(inputs, layers.Conv2D(2, 1, name="head")(make(layers.ReLU(name="start")(inputs))))


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
def test_a_branch_beside_a_direct_connection_goes(make):
    model = model_of(make)
    (block,) = find_blocks(model)
    names, direct = FOUND[make]
    assert block.direct == direct
    assert names is None or block.layers == names
    smaller = prune_blocks(model, [block.name])
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype("float32")
    np.testing.assert_array_equal(smaller(x), model.get_layer("head")(np.maximum(x, 0.0)))
    assert not {layer.name for layer in smaller.layers} & set(block.layers)
    np.testing.assert_array_equal(prune_blocks(model, [])(x), model(x))


CUTS = {
    "in the layer before": (lambda: conv("before", activation="relu"), "relu", ["before", "head"]),
    "a layer of its own": (lambda: layers.ReLU(name="before"), "relu", ["before", "head"]),
    "a narrower one": (lambda: layers.ReLU(6.0, name="before"), "relu", ["before", "head"]),
    "a wider one": (lambda: layers.ReLU(name="before"), "relu6", ["before", "after_first", "head"]),
    "another function": (
        lambda: conv("before", activation="silu"),
        "silu",
        ["before", "after_first", "after_second", "head"],
    ),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_relu_that_would_repeat_another_goes_with_its_block(case, tmp_path):
    """In an integer file it would be an operator of its own, slower than the block."""
    before, after, expected = CUTS[case]
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 4))
    x = before()(inputs)
    for name in ("first", "second"):
        x = layers.Activation(after, name=f"after_{name}")(layers.Add(name=name)([x, conv(f"conv_{name}")(x)]))
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x))
    smaller = prune_blocks(model, ["first", "second"])
    assert [layer.name for layer in smaller.layers[1:]] == expected
    values = np.random.default_rng(0).normal(0, 4, (3, 6, 6, 4)).astype("float32")
    cut = model.get_layer("before")(values)
    for name in ("after_first", "after_second"):
        cut = model.get_layer(name)(cut)
    np.testing.assert_array_equal(smaller(values), model.get_layer("head")(cut))


def test_the_file_has_no_operator_for_what_is_gone(tmp_path):
    inputs = keras.Input((6, 6, 4))
    x = conv("before", activation="relu")(inputs)
    x = layers.ReLU()(layers.Add(name="sum")([x, conv("branch")(x)]))
    aware = tfopt.quantize_aware(prune_blocks(keras.Model(inputs, conv("head")(x)), ["sum"]))
    tfopt.calibrate(aware, np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype("float32"))
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    operators = read_tflite(tmp_path / "m.tflite").graphs[0].operators
    assert [each.type for each in operators] == ["CONV_2D", "CONV_2D"]


def projected(x):
    return layers.Add()([layers.Conv2D(4, 1)(x), conv("one")(x)])


def read_elsewhere(x):
    y = conv("one")(x)
    return layers.Concatenate()([layers.Add()([x, y]), y])


def of_two_beginnings(x):
    other = keras.Input((6, 6, 4), name="other")
    return layers.Add()([x, conv("one")(layers.Add()([x, other]))]), other


def without_weights(x):
    return layers.Add()([x, layers.ReLU()(x)])


def twice(x):
    return layers.Add()([x, x])


def of_three(x):
    return layers.Add()([x, conv("one")(x), conv("two")(x)])


def spread(x):
    return layers.Add()([x, layers.GlobalAveragePooling2D(keepdims=True)(conv("one")(x))])


@pytest.mark.parametrize(
    "make",
    [projected, read_elsewhere, without_weights, twice, of_three, spread],
    ids=lambda make: make.__name__,
)
def test_other_sums_are_no_blocks(make):
    assert find_blocks(model_of(make)) == []


def test_a_branch_that_reads_another_input_is_no_block():
    inputs = keras.Input((6, 6, 4))
    total, other = of_two_beginnings(inputs)
    assert find_blocks(keras.Model([inputs, other], total)) == []


def test_an_output_inside_a_branch_stays():
    inputs = keras.Input((6, 6, 4))
    y = conv("one")(inputs)
    assert find_blocks(keras.Model(inputs, [y, layers.Add()([inputs, y])])) == []


def test_shared_layers_are_not_gained():
    inputs = keras.Input((6, 6, 4))
    shared = conv("shared")
    x = layers.Add(name="first")([inputs, shared(inputs)])
    assert find_blocks(keras.Model(inputs, shared(x))) == []


def test_blocks_in_nested_models_go_and_all_else_stays():
    inner_inputs = keras.Input((6, 6, 4))
    inner = keras.Model(inner_inputs, plain(inner_inputs), name="inner")
    inputs = keras.Input((6, 6, 4))
    frozen = conv("frozen")
    frozen.trainable = False
    model = keras.Model(inputs, inner(frozen(inputs)), name="outer")
    (block,) = find_blocks(model)
    assert block.name == "inner/sum"
    smaller = prune_blocks(model, ["inner/sum"])
    x = np.ones((1, 6, 6, 4), "float32")
    np.testing.assert_array_equal(smaller(x), frozen(x))
    assert [each.path for each in smaller.variables] == [each.path for each in frozen.variables]
    assert not smaller.trainable_variables


APPLICATIONS = {"MobileNetV2": 10, "ResNet50": 12, "ResNet50V2": 9, "EfficientNetB0": 9, "Xception": 8}


@pytest.mark.parametrize("make", quick(list(APPLICATIONS), "MobileNetV2"))
def test_blocks_of_keras_applications(make):
    size = 71 if make == "Xception" else 32
    model = getattr(keras.applications, make)(weights=None, input_shape=(size, size, 3), classes=4)
    blocks = find_blocks(model)
    assert len(blocks) == APPLICATIONS[make]
    smaller = prune_blocks(model, [each.name for each in blocks])
    assert smaller.count_params() < model.count_params()
    assert smaller(np.zeros((1, size, size, 3), "float32")).shape == (1, 4)


def two_blocks():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 2))
    x = conv("start")(inputs)
    for name in ("idle", "busy"):
        branch = layers.BatchNormalization(name=f"bn_{name}")(conv(f"conv_{name}")(x))
        x = layers.Add(name=name)([x, branch])
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.GlobalMaxPooling2D()(x)))


def test_sensitivity_is_that_without_one_block(data):
    model = residual_model()
    found = tfopt.sensitivity(model, data, "blocks")
    smaller = prune_blocks(model, ["sum"])
    assert found.values == {"sum": {1.0: pytest.approx(evaluate(smaller, data, "validation")["accuracy"])}}
    model = two_blocks()
    found = tfopt.sensitivity(model, data, "blocks", layers=["busy"])
    smaller = prune_blocks(model, ["busy"])
    recalibrate(smaller, data)
    assert found.values == {"busy": {1.0: pytest.approx(evaluate(smaller, data, "validation")["accuracy"])}}
    with pytest.raises(ValueError, match="a block goes whole"):
        tfopt.sensitivity(model, data, "blocks", levels=[0.5])
    with pytest.raises(ValueError, match="has no residual blocks"):
        tfopt.sensitivity(small_model(), data, "blocks")


def test_the_stage_takes_the_block_that_does_nothing(data, tmp_path):
    model = two_blocks()
    model.get_layer("bn_idle").gamma.assign(np.zeros(4))
    # Trained by hand would be slow: the other block turns the signs around, without which all is wrong.
    work = tfopt.run([PruneBlocks(1, 1, fit=FIT)], tfopt.Work(model, data, tmp_path))
    entry = work.report.stages[0]
    drops = tfopt.sensitivity(model, data, "blocks")
    least = min(drops.values, key=lambda name: drops.drop(name, 1.0))
    assert set(entry.changed) == {f"conv_{least}", f"bn_{least}", least}
    assert entry.skipped == [{"layer": "busy" if least == "idle" else "idle", "reason": "the block was not chosen"}]
    assert work.model.count_params() == model.count_params() - 148 - 16
    assert len(entry.history["loss"]) == 1


REFUSED = {
    "no such block": (["nowhere"], "'nowhere' is no residual block that can be taken out of 'residual'; there are sum"),
    "a string": ("sum", "blocks must be a list of the names of sums, received 'sum'"),
    "too many": (2, "2 residual blocks cannot be taken out of 'residual', it has 1 that can: sum"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_training(case, data, tmp_path):
    blocks, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tfopt.run([tfopt.Train(1, FIT), PruneBlocks(blocks)], tfopt.Work(residual_model(), data, tmp_path))
    assert not list(tmp_path.glob("01-*"))


def test_refused_kinds():
    for blocks in (0, True, []):
        with pytest.raises(ValueError, match="blocks"):
            PruneBlocks(blocks)
    with pytest.raises(ValueError, match="has none: prune channels"):
        prune_blocks(small_model(), ["sum"])
