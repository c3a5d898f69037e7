"""Which filters matter least, by each criterion."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.test_channels import conv, head, image, randomized, two_outputs
from tests.test_channels_plan import mlp, normed
from tfopt.channels.importance import by_class, scores
from tfopt.channels.plan import plan_channels
from tfopt.channels.propagate import follow_channels


@pytest.mark.parametrize(("criterion", "kept"), [("l1", (1, 3)), ("l2", (0, 3))])
def test_norms_of_filters(criterion, kept):
    model = randomized(mlp(4, 2))
    kernel = np.array([[0, 1, 0.1, -1], [0, 1, 0.1, 1], [2.5, -1, 0.1, 1], [0, 1, 0.1, 1]])
    model.get_layer("dense_0").kernel.assign(kernel * [[1, 1, 1, 5]])
    plan = plan_channels(model, ratio=0.5, criterion=criterion, multiple=1)
    assert plan.kept == {"dense_0": kept}


def test_filters_of_a_group_are_judged_relative_to_their_layers():
    x = image()
    small, large = conv(3, 1, name="small")(x), conv(3, 1, name="large")(x)
    model = keras.Model(x, head(layers.Add()([small, large])))
    model.get_layer("small").set_weights([np.full((1, 1, 3, 3), 0.01) * [9, 5, 1], np.zeros(3)])
    model.get_layer("large").set_weights([np.full((1, 1, 3, 3), 10.0) * [3, 4, 8], np.zeros(3)])
    # Relative to their means, together: 1.8 + 0.6, 1 + 0.8, 0.2 + 1.6.
    assert plan_channels(model, ratio=0.5, multiple=1).kept["small"] == (0, 2)
    assert plan_channels(model, ratio=0.7, multiple=1).kept["small"] == (0,)


def test_ties_go_in_order():
    model = randomized(mlp(6, 2))
    model.get_layer("dense_0").kernel.assign(np.ones((4, 6)))
    assert plan_channels(model, ratio=0.5, multiple=1).kept == {"dense_0": (3, 4, 5)}


def test_gamma():
    model = randomized(normed())
    model.get_layer("norm").gamma.assign([0.1, -3.0, 2.0, -0.2])
    plan = plan_channels(model, ratio=0.5, criterion="bn_gamma", multiple=1)
    assert plan.kept == {"first": (1, 2)}
    assert plan.skipped["second"] == "no BatchNormalization with a gamma scales its channels"


def test_taylor_is_the_product_of_weights_and_gradients():
    model = randomized(mlp(6, 5, 3))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 4)).astype("float32"), rng.integers(0, 3, 48)
    expected = np.zeros(6)
    kernel = model.get_layer("dense_0").kernel
    for start in (0, 32):
        with tf.GradientTape() as tape:
            rows = slice(start, start + 32)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(y[rows], model(x[rows], training=False))
            )
        expected += np.abs(np.sum(np.asarray(kernel) * np.asarray(tape.gradient(loss, kernel.value)), axis=0)) / 2
    flow = follow_channels(model)
    found = by_class(scores(model, flow, "taylor", (x, y)), flow.ties.classes().labels)
    ids = next(iter(flow.producers.values())).ids
    np.testing.assert_allclose(found[ids], expected / expected.mean(), rtol=1e-4)
    batched = tf.data.Dataset.from_tensor_slices((x, y, np.ones(48))).batch(32)
    plans = [plan_channels(model, ratio=0.5, criterion="taylor", data=data, multiple=1) for data in ((x, y), batched)]
    assert plans[0] == plans[1]
    assert plans[0].kept["dense_0"] == tuple(sorted(np.argsort(expected)[3:].tolist()))


def test_taylor_uses_the_compiled_loss_and_leaves_the_model_as_it_was():
    model = randomized(mlp(6, 2))
    before = model.get_weights()
    x, y = np.ones((4, 4), "float32"), np.ones((4, 2), "float32")
    with pytest.raises(ValueError, match="compile the model with its own"):
        plan_channels(model, ratio=0.5, criterion="taylor", data=(x, y))
    model.compile("sgd", "mse")
    # The second output hangs on two filters only.
    model.get_layer("dense_1").set_weights(
        [np.array([[0, 0], [0, 1.0], [0, 0], [0, 0], [0, 2.0], [0, 0]]), np.zeros(2)]
    )
    model.get_layer("dense_0").set_weights([np.abs(before[0]), np.zeros(6)])
    weights = model.get_weights()
    plan = plan_channels(model, ratio=0.6, criterion="taylor", data=(x, y), multiple=1)
    # The others matter equally little, so the first of them go.
    assert plan.kept == {"dense_0": (1, 4, 5)}
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))


def test_taylor_of_several_inputs_and_outputs():
    model = randomized(two_outputs())
    model.compile("sgd", {"first": "mse", "second": "mse"})
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(8, 6, 6, 3)).astype("float32") for name in ("zulu", "alpha")}
    y = {"first": rng.normal(size=(8, 3)).astype("float32"), "second": np.zeros((8, 6, 6, 4), "float32")}
    # What the head does not read has no gradient.
    model.get_layer("first").kernel.assign(np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])[:, None] * np.ones((6, 3)))
    plan = plan_channels(model, ratio=0.5, criterion="taylor", data=(x, y), multiple=1)
    assert plan.kept == {"hidden": (0, 2, 5)}
