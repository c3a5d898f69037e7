"""Costs of a model, and the ratio that reaches a target."""

import keras
import pytest
from keras import layers

from tests.test_channels import assert_same, conv, head, image, randomized, shared
from tests.test_channels_plan import mlp
from tfopt.channels.plan import plan_channels
from tfopt.channels.rebuild import apply_plan


def test_macs_of_every_kind():
    x = image()
    y = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    y = layers.SeparableConv2D(4, 2, strides=2, depth_multiplier=3)(y)
    y = layers.Conv2D(6, 1, groups=2)(layers.Conv2D(4, 1, groups=4)(y))
    y = layers.Conv2DTranspose(5, 2, strides=2)(y)
    macs = 16 * 9 * 6 + (4 * 4 * 18 + 4 * 18 * 4) + 4 * 4 + 4 * 6 * 2 + 4 * 4 * 6 * 5 + 16 * 5 * 7
    assert plan_channels(keras.Model(x, layers.Dense(7)(y)), ratio=0).before.macs == macs


def test_multiplications_of_a_shared_layer_count_at_each_call():
    plan = plan_channels(shared(), ratio=0)
    assert plan.before.macs == 36 * 9 * 2 * (3 * 8 + 8 * 4) + 4 * 3


@pytest.mark.parametrize(
    "target", [{"macs": 0.4}, {"parameters": 0.6}, {"channels": 0.5}, {"macs": 0.7, "channels": 0.6}]
)
def test_a_target_is_just_reached(target):
    model = randomized(mlp(32, 24, 40, 3))
    plan = plan_channels(model, target=target, multiple=1)
    small, _ = apply_plan(model, plan)
    after = plan_channels(small, ratio=0).before
    assert after == plan.after
    shares = {key: getattr(after, key) / getattr(plan.before, key) for key in target}
    assert all(shares[key] <= target[key] for key in target)
    # One channel more of each layer would be too many for one of them.
    assert any(shares[key] > target[key] - 0.08 for key in target)


def test_a_target_that_is_reached_already():
    model = randomized(mlp(8, 3))
    plan = plan_channels(model, target={"macs": 1.0})
    assert plan.kept == {}
    assert_same(model, apply_plan(model, plan)[0], 1e-6)


def test_a_target_out_of_reach_names_the_nearest():
    model = randomized(mlp(32, 3))
    # 4 inputs, at least 8 channels of 32, 3 outputs: a quarter.
    with pytest.raises(ValueError, match=r"\{'macs': 0.1\} cannot be reached: the nearest is \{'macs': 0.25\}"):
        plan_channels(model, target={"macs": 0.1})
    nearest = plan_channels(model, target={"macs": 0.25})
    assert nearest.after.macs == 7 * 8
    assert plan_channels(model, target={"macs": 0.1}, multiple=1).after.macs == 7 * 3


def test_multiplications_of_open_sizes_are_unknown():
    x = keras.Input((None, None, 3))
    model = randomized(keras.Model(x, head(conv(8)(x))))
    assert plan_channels(model, ratio=0.5, multiple=1).after.macs is None
    with pytest.raises(ValueError, match="leaves a size of its input open"):
        plan_channels(model, target={"macs": 0.5})
    assert plan_channels(model, target={"parameters": 0.6}, multiple=1).after.parameters <= 0.6 * model.count_params()


def test_a_target_is_met_closely_where_groups_shrink_at_one_ratio():
    """Four groups of 16 lose half at once at ratio 0.5: all but as many as the target needs keep theirs."""
    sequence = [keras.layers.Dense(16, name=f"d{index}") for index in range(4)]
    model = keras.Sequential([keras.Input((16,)), *sequence, keras.layers.Dense(2)])
    plan = plan_channels(model, target={"macs": 0.7})
    # All four at half would leave a third.
    assert 0.5 < plan.after.macs / plan.before.macs <= 0.7
    assert 1 <= len(plan.kept) < 4
