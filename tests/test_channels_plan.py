"""Which channels go: ratios, selections, and what is left whole or refused."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.test_channels import assert_same, conv, head, image, randomized, residual, two_outputs
from tfopt.channels.costs import Costs
from tfopt.channels.ids import Ties
from tfopt.channels.plan import ChannelPlan, kept_count, plan_channels
from tfopt.channels.prune import prune_channels
from tfopt.channels.rebuild import apply_plan


def mlp(*units, activation="relu"):
    """Dense layers named by their place; the last is the output."""
    x = y = keras.Input((4,), name="x")
    for number, each in enumerate(units):
        y = layers.Dense(each, activation if number < len(units) - 1 else None, name=f"dense_{number}")(y)
    return keras.Model(x, y, name="mlp")


def normed():
    """A convolution with one BatchNormalization behind it, and one without."""
    x = image()
    y = layers.BatchNormalization(name="norm")(conv(4, name="first")(x))
    return keras.Model(x, head(conv(6, name="second")(y)))


# Ids


def test_ties_are_transitive_over_long_chains():
    ties = Ties()
    parts = [ties.new(3) for _ in range(40)]
    order = np.random.default_rng(0).permutation(39)
    for each in order:
        ties.tie(parts[each], parts[each + 1])
    apart = ties.new(2)
    assert ties.classes().labels.tolist() == [0, 1, 2] * 40 + apart.tolist()


def test_ties_of_one_tensor_with_itself():
    ties = Ties()
    ids = ties.new(6)
    ties.tie_across(ids, 3)
    ties.freeze(ids[4:5], "why")
    classes = ties.classes()
    assert classes.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert classes.frozen == {0: "why"}
    with pytest.raises(ValueError, match="6 channels cannot be tied to 2"):
        ties.tie(ids, ids[:2])


# Ratios


@pytest.mark.parametrize(
    ("count", "ratio", "multiple", "width", "kept"),
    [
        (64, 0.0, 8, 1, 64),
        (64, 0.5, 8, 1, 32),
        (64, 0.51, 8, 1, 32),
        (64, 0.49, 8, 1, 40),
        (10, 0.1, 1, 1, 9),
        (30, 0.1, 1, 1, 27),
        (10, 0.99, 1, 1, 1),
        (10, 0.99, 8, 1, 8),
        (9, 0.05, 8, 1, 9),
        (8, 0.9, 8, 1, 8),
        (3, 0.9, 8, 1, 3),
        # Two channels of a layer in each class: four classes are a multiple of eight channels.
        (16, 0.9, 8, 2, 4),
        (16, 0.9, 8, 3, 8),
    ],
)
def test_kept_count(count, ratio, multiple, width, kept):
    assert kept_count(count, ratio, multiple, width) == kept


def test_groups_of_grouped_convolutions_are_rounded_as_channels():
    x = image()
    y = layers.Conv2D(64, 3, groups=4, activation="relu", name="grouped")(conv(8, name="stem")(x))
    plan = plan_channels(randomized(keras.Model(x, head(y))), ratio=0.8)
    # 16 positions in each of 4 groups: of these, 4 remain, so 16 channels.
    assert len(plan.kept["grouped"]) == 16
    assert sorted(np.bincount(np.array(plan.kept["grouped"]) // 16)) == [4, 4, 4, 4]
    assert "multiple=8" in plan.skipped["stem"]


def test_groups_of_a_normalization_lose_the_same():
    x = image()
    model = keras.Model(x, head(layers.ReLU()(layers.GroupNormalization(4)(conv(16, name="body")(x)))))
    model = randomized(model)
    model.get_layer("body").kernel.assign(np.ones((3, 3, 3, 16)) * np.arange(1, 17))
    # Of each four, the last two: alone, the last eight would stay.
    assert plan_channels(model, ratio=0.5, multiple=1).kept == {"body": (2, 3, 6, 7, 10, 11, 14, 15)}


def test_a_nested_model_without_weights_takes_the_same_at_each_call():
    pool = keras.Sequential([image(8), layers.MaxPooling2D()], name="pool")
    x = image()
    heads = [head(pool(conv(8, name=name)(x)), f"head_{name}") for name in ("one", "other")]
    model = randomized(keras.Model(x, heads))
    plan = plan_channels(model, layers={"one": 0.5}, multiple=1)
    assert [set(group) for group in plan.groups] == [{"one", "other"}]
    assert plan.kept["one"] == plan.kept["other"]
    assert apply_plan(model, plan)[0].count_params() == plan.after.parameters == 2 * (27 * 4 + 4 + 4 * 3 + 3)


def test_a_plan_tells_all():
    plan = plan_channels(randomized(residual()), ratio=0.5, multiple=1)
    assert plan.groups == (("first", "inside", "again"), ("narrow",))
    assert plan.kept["first"] == plan.kept["inside"] == plan.kept["again"]
    assert len(plan.kept["narrow"]) == 2
    assert plan.skipped == {"head": "its channels are outputs of the model"}
    assert plan.before.channels == 8 + 4 + 8 + 8 + 3
    assert plan.after.channels == 4 + 2 + 4 + 4 + 3
    # 3 x 3 kernels over 36 places, then 1 x 1, then the head.
    assert plan.before.macs == 36 * 9 * (3 * 8 + 8 * 4 + 4 * 8) + 36 * 8 * 8 + 8 * 3
    assert plan.after.macs == 36 * 9 * (3 * 4 + 4 * 2 + 2 * 4) + 36 * 4 * 4 + 4 * 3
    assert eval(repr(plan), {"ChannelPlan": ChannelPlan, "Costs": Costs}) == plan


# Selections


def test_layers_by_name_predicate_and_ratio():
    model = randomized(mlp(8, 8, 8, 3))
    one = plan_channels(model, ratio=0.5, layers=["dense_1"], multiple=1)
    assert one.kept.keys() == {"dense_1"}
    assert one.skipped["dense_0"] == "layers does not select it"
    same = plan_channels(model, ratio=0.5, layers=lambda layer: layer.name == "dense_1", multiple=1)
    assert same == one
    own = plan_channels(model, layers={"dense_0": 0.25, "dense_2": 0.75}, multiple=1)
    assert {name: len(kept) for name, kept in own.kept.items()} == {"dense_0": 6, "dense_2": 2}
    most = plan_channels(model, target={"macs": 0.8}, layers=["dense_1", "dense_2"], multiple=1)
    assert most.kept.keys() == {"dense_1", "dense_2"}


def test_a_name_of_a_nested_model_and_of_one_layer_of_a_group():
    block = keras.Sequential([image(), conv(8, name="inner")], name="block")
    x = image()
    model = randomized(keras.Model(x, head(layers.Add()([block(x), conv(8, name="other")(x)]))))
    whole = plan_channels(model, ratio=0.5, multiple=1)
    assert whole.groups == (("block/inner", "other"),)
    for name in ("block", "inner", "other"):
        assert plan_channels(model, layers={name: 0.5}, multiple=1) == whole


@pytest.mark.parametrize(
    ("layers_", "message"),
    [
        (["dense_2"], "the output layer would be pruned: of 'dense_2', its channels are outputs"),
        ({"dense_2": 0.5}, "the output layer would be pruned"),
        (lambda layer: True, "the output layer would be pruned"),
        (["dense_9"], "has no layer 'dense_9'; did you mean"),
        (["x"], "has no layer|no channels are made there"),
        ({"dense_0": 1.0}, r"the ratio of 'dense_0' must be a fraction in \[0, 1\), received 1.0"),
        ({}, "empty mapping"),
        (lambda layer: False, "selects none"),
    ],
)
def test_selections_that_are_wrong(layers_, message):
    ratio = None if isinstance(layers_, dict) else 0.5
    with pytest.raises(ValueError, match=message):
        plan_channels(mlp(8, 8, 3), ratio=ratio, layers=layers_, multiple=1)


def test_the_layer_before_a_softmax_is_the_output_too():
    x = image()
    model = keras.Model(x, layers.Softmax()(head(conv(4)(x))))
    with pytest.raises(ValueError, match="the output layer would be pruned: of 'head'"):
        plan_channels(model, ratio=0.5, layers=["head"])


def test_layers_of_a_group_with_different_ratios():
    with pytest.raises(ValueError, match=r"'first', 'inside' lose their channels together .* \[0.25, 0.5\]"):
        plan_channels(residual(), layers={"first": 0.25, "inside": 0.5}, multiple=1)


def test_several_outputs_stay():
    plan = plan_channels(randomized(two_outputs()), ratio=0.5, multiple=1)
    assert plan.kept.keys() == {"hidden"}
    assert plan.skipped.keys() == {"seen", "first"}


# What is left whole


@keras.saving.register_keras_serializable("test_channels")
class Mystery(layers.Layer):
    def call(self, x):
        return ops.flip(x, axis=-1)


@keras.saving.register_keras_serializable("test_channels")
class Dense(layers.Dense):
    """Another's class of a known name."""

    def call(self, x):
        return super().call(x) - ops.mean(x, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable("test_channels")
def upside_down(x):
    return x[..., ::-1]


UNKNOWN = {
    "a custom layer": (Mystery(name="step"), r"for step \(Mystery\) there is no rule"),
    "a known name": (Dense(8, name="step"), r"for step \(Dense\) there is no rule"),
    "a Lambda": (layers.Lambda(upside_down, name="step"), r"\(Lambda\) there is no rule"),
    "softmax": (layers.Softmax(name="step"), r"step \(Softmax\) may read all its channels at once"),
    "its activation": (layers.Activation("log_softmax", name="step"), "may read all its channels at once"),
    "any activation": (layers.Activation(upside_down, name="step"), "may read all its channels at once"),
    "another axis": (layers.Permute((1, 3, 2), name="step"), "moves the channels to another axis"),
    "an operator": (lambda x: ops.flip(x, axis=-1), r"\(Flip\) there is no rule"),
    "a mean": (lambda x: x - ops.mean(x, axis=-1, keepdims=True), "reads all channels at once"),
    "one for each": (lambda x: x * np.arange(8.0, dtype="float32"), "a constant for each channel"),
    "one of all": (lambda x: x[..., :4], "may take channels out"),
    "apart": (layers.Reshape((6, 6, 4, 2), name="step"), "takes the channels apart"),
    "more": (lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1))), "adds channels"),
    "limits": (lambda x: ops.clip(x, np.zeros(8), np.ones(8)), "limit for each channel"),
    "noise": (layers.Dropout(0.5, noise_shape=(None, 1, 1, 8), name="step"), "names the channels"),
    "attention": (layers.MultiHeadAttention(2, 4, name="step"), r"for step \(MultiHeadAttention\) there is no rule"),
    "channels first": (layers.GlobalAveragePooling2D("channels_first", name="step"), "build the model channels last"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_no_rule_knows_is_left_whole(case):
    step, reason = UNKNOWN[case]
    x = image()
    y = conv(8, activation="relu", name="before")(conv(8, name="free")(x))
    y = step(y, y) if case == "attention" else step(y)
    model = randomized(keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y))))
    plan = plan_channels(model, ratio=0.5, multiple=1)
    assert plan.kept.keys() == {"free"}
    assert re.search(reason, plan.skipped["before"])
    small, _ = apply_plan(model, plan)
    assert small.count_params() == plan.after.parameters
    assert np.asarray(small(np.ones((2, 6, 6, 3), "float32"))).shape == (2, 3)


def test_dense_layers_that_are_more_than_dense():
    model = randomized(mlp(8, 8, 8, 8, 3))
    model.get_layer("dense_2").enable_lora(2)
    model.get_layer("dense_3").quantize("int8")
    plan = plan_channels(model, ratio=0.5, multiple=1)
    assert plan.kept.keys() == {"dense_0"}
    assert "LoRA" in plan.skipped["dense_1"]
    assert "LoRA" in plan.skipped["dense_2"]
    assert "quantized by Keras" in plan.skipped["dense_3"]
    assert_same(model, prune_channels(model, ratio=0), 1e-6)


def test_an_activation_that_reads_all_channels_freezes_its_layer():
    with pytest.raises(ValueError, match="the activation softmax of dense_0 may read all channels at once"):
        plan_channels(mlp(8, 3, activation="softmax"), ratio=0.5)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, r"ratio must be a fraction in \[0, 1\), received 1.0"),
        ({"ratio": -0.1}, "ratio must be a fraction"),
        ({"ratio": 50}, "for 50 % write 0.5"),
        ({"ratio": float("nan")}, "ratio must be a fraction"),
        ({}, "give one of ratio, target, or layers"),
        ({"ratio": 0.5, "target": {"macs": 0.5}}, "give one of ratio, target, or layers"),
        ({"ratio": 0.5, "layers": {"dense_0": 0.5}}, "give one of ratio, target, or layers"),
        ({"target": {"size": 0.5}}, "keys among channels, parameters, macs"),
        ({"target": {}}, "keys among channels, parameters, macs"),
        ({"target": 0.5}, "keys among channels, parameters, macs"),
        ({"target": {"macs": 0.0}}, "must be more than 0"),
        ({"target": {"macs": 1.5}}, r"target\['macs'\] must be a fraction"),
        ({"ratio": 0.5, "multiple": 0}, "multiple must be a whole number of at least 1"),
        ({"ratio": 0.5, "criterion": "l3"}, "criterion must be one of l1, l2, bn_gamma, taylor, received 'l3'"),
        ({"ratio": 0.5, "criterion": "taylor"}, "needs data="),
        ({"ratio": 0.5, "criterion": "taylor", "data": np.ones((2, 4))}, "must give batches of"),
        ({"ratio": 0.5, "criterion": "taylor", "data": (np.ones((2, 4)),)}, "received 1 parts"),
        ({"ratio": 0.5, "criterion": "taylor", "data": []}, "data has no batch"),
        ({"ratio": 0.5, "criterion": "bn_gamma"}, "no BatchNormalization with a gamma"),
        ({"ratio": 0.5}, "nothing would be pruned .* multiple of 8"),
        ({"ratio": 0.1, "multiple": 1}, "nothing would be pruned"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(mlp(8, 3), **options)


def test_weights_that_are_no_numbers():
    model = mlp(8, 3)
    model.get_layer("dense_0").bias.assign(np.full(8, np.nan))
    with pytest.raises(ValueError, match="'dense_0/bias' are not all finite"):
        prune_channels(model, ratio=0.5)


def test_models_with_nothing_to_prune():
    with pytest.raises(ValueError, match="no channel can be pruned. dense_0: its channels are outputs of the model"):
        prune_channels(mlp(3), ratio=0.5)
    with pytest.raises(ValueError, match="It has no convolution or dense layer"):
        prune_channels(keras.Sequential([image(), layers.ReLU()]), ratio=0.5)


def test_models_without_a_graph():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="subclassed model"):
        prune_channels(Subclassed(), ratio=0.5)
    with pytest.raises(ValueError, match="not built"):
        prune_channels(keras.Sequential([layers.Dense(3)]), ratio=0.5)
