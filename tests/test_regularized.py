"""Regularization of a model that exists: penalties, smoothed labels, statistics of BatchNormalization."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, quick, small_model
from tests.test_train import fitted, linear, losses_by_hand
from tfopt.evaluation import evaluate
from tfopt.train import recalibrate, regularized
from tfopt.train.smooth import SmoothedCrossentropy, smoothed
from tfopt.train.task import Task

layers = keras.layers


def kernels(model):
    return [each.numpy() for each in model.trainable_variables if each.name == "kernel"]


def cosines(kernel):
    """The mean absolute cosine of two columns."""
    columns = kernel.reshape(-1, kernel.shape[-1])
    columns = columns / np.linalg.norm(columns, axis=0)
    products, count = np.abs(columns.T @ columns), columns.shape[1]
    return (products.sum() - np.trace(products)) / (count * (count - 1))


# Penalties


@pytest.mark.parametrize(
    ("given", "penalty"),
    [
        ({"l1": 0.3}, lambda w: 0.3 * np.abs(w).sum()),
        ({"l2": 0.2}, lambda w: 0.2 * (w**2).sum()),
        ({"l1": 0.3, "l2": 0.2}, lambda w: 0.3 * np.abs(w).sum() + 0.2 * (w**2).sum()),
        ({"orthogonal": 0.5}, lambda w: 0.5 * cosines(w)),
        ({"l2": 0.2, "orthogonal": 0.5}, lambda w: 0.2 * (w**2).sum() + 0.5 * cosines(w)),
    ],
)
def test_the_loss_has_the_penalty_and_all_else_is_the_same(given, penalty, trained):
    model = regularized(trained, **given)
    assert float(sum(model.losses)) == pytest.approx(sum(penalty(each) for each in kernels(trained)), rel=1e-4)
    assert not trained.losses
    x, _ = blobs(20)
    assert np.array_equal(model(x, training=False), trained(x, training=False))
    assert [each.path for each in model.variables] == [each.path for each in trained.variables]
    assert model.loss == trained.loss
    assert len(model.optimizer.variables) == len(trained.optimizer.variables) > 10
    for one, other in zip(model.optimizer.variables, trained.optimizer.variables, strict=True):
        assert np.array_equal(one, other)


def test_training_goes_where_the_penalty_points(data, tmp_path):
    plain, _ = fitted(tmp_path / "plain", data, linear(), epochs=4)
    small, _ = fitted(tmp_path / "l2", data, regularized(linear(), l2=0.1), epochs=4)
    assert np.linalg.norm(kernels(small)[0]) < 0.9 * np.linalg.norm(kernels(plain)[0])
    apart, _ = fitted(tmp_path / "orthogonal", data, regularized(linear(), orthogonal=1.0), epochs=4)
    assert cosines(kernels(apart)[0]) < 0.5 * cosines(kernels(plain)[0])


READ = """
import sys, keras
model = keras.saving.load_model(sys.argv[1])
assert "tfopt" not in sys.modules
print(repr(float(sum(model.losses))))
"""


@pytest.mark.slow
def test_keras_reads_the_file_without_tfopt(trained, tmp_path):
    model = regularized(trained, l1=0.1, l2=0.2)
    model.save(tmp_path / "l1l2.keras")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "l1l2.keras")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) == pytest.approx(float(sum(model.losses)), rel=1e-6)
    both = regularized(trained, l1=0.1, orthogonal=0.2)
    both.save(tmp_path / "both.keras")
    assert float(sum(keras.saving.load_model(tmp_path / "both.keras").losses)) == float(sum(both.losses))


def test_nested_wrapped_recurrent_and_attention_layers(tmp_path):
    inner = keras.Sequential([keras.Input((6, 4)), layers.Dense(4, name="inner")], name="block")
    inputs = keras.Input((6,))
    x = inner(layers.Embedding(10, 4, name="words")(inputs))
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both_ways")(x)
    x = layers.SeparableConv1D(4, 3, name="separable")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(x)))
    expected = [
        each
        for each in model.trainable_variables
        if each.name in ("kernel", "embeddings", "recurrent_kernel", "pointwise_kernel")
    ]
    assert len(expected) == 12
    copy = regularized(model, l2=1.0)
    wanted = sum((each.numpy() ** 2).sum() for each in expected)
    assert float(sum(copy.losses)) == pytest.approx(wanted, rel=1e-5)
    copy.save(tmp_path / "model.keras")
    assert float(sum(keras.saving.load_model(tmp_path / "model.keras").losses)) == pytest.approx(wanted, rel=1e-5)
    one = regularized(model, l2=1.0, layers=["inner"])
    kernel = model.get_layer("block").get_layer("inner").kernel.numpy()
    assert float(sum(one.losses)) == pytest.approx((kernel**2).sum(), rel=1e-5)
    separable = regularized(model, l1=1.0, layers=["separable"])
    own = [each for each in model.get_layer("separable").variables if each.name != "bias"]
    assert float(sum(separable.losses)) == pytest.approx(sum(np.abs(each).sum() for each in own), rel=1e-5)
    with pytest.raises(ValueError, match="cannot have a penalty on its kernel alone: name the layer around it"):
        regularized(model, l2=1.0, layers=["query"])


def test_penalties_that_cannot_be_are_refused(trained):
    for options, message in (
        ({}, "needs one of l1, l2 and orthogonal above 0"),
        ({"l2": -1.0}, "l2 must be at least 0, received -1.0"),
        ({"l2": 1.0, "layers": ["hiden"]}, "has no layer 'hiden'; did you mean 'hidden'"),
        ({"l2": 1.0, "layers": ["bn"]}, "no layer that can be regularized"),
    ):
        with pytest.raises(ValueError, match=message):
            regularized(trained, **options)
    with pytest.raises(ValueError, match=r"'conv' \(Conv2D\) has a kernel_regularizer already"):
        regularized(regularized(trained, l2=1.0, layers=["conv"]), l1=1.0)
    assert len(regularized(regularized(trained, l2=1.0, layers=["conv"]), l1=1.0, layers=["out"]).losses) == 2
    with pytest.raises(ValueError, match="'linear/head/kernel' has one output unit"):
        regularized(linear(1), orthogonal=1.0)


# Label smoothing


def test_integer_labels_are_smoothed_as_keras_smooths_one_hot_ones():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, 4)).astype("float32")
    labels = rng.integers(0, 4, (6, 1))
    weights = rng.uniform(size=6).astype("float32")
    for given in (labels, labels[:, 0]):
        loss = smoothed(Task(keras.losses.SparseCategoricalCrossentropy(from_logits=True), None), 0.2).loss
        by_keras = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
        wanted = float(by_keras(np.eye(4)[labels[:, 0]], outputs, sample_weight=weights))
        assert float(loss(given, outputs, sample_weight=weights)) == pytest.approx(wanted, rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(again, SmoothedCrossentropy)
    assert again.get_config() == loss.get_config()
    # Of every place, as in segmentation.
    places = rng.normal(size=(2, 3, 3, 4)).astype("float32")
    chosen = rng.integers(0, 4, (2, 3, 3))
    wanted = float(by_keras(np.eye(4)[chosen], places))
    assert float(loss(chosen, places)) == pytest.approx(wanted, rel=1e-5)


def smoothed_by_hand(model, data, share):
    """The smoothed loss of each training example, and its label."""
    plain, y = losses_by_hand(model, data)
    x = np.concatenate([batch[0].numpy() for batch in data.batches("train")])
    all_classes = -np.log(model.predict(x, verbose=0)).mean(axis=1)
    return (1 - share) * plain + share * all_classes, y


@pytest.mark.parametrize("weigh", quick([None, "classes", "examples"], "classes"))
def test_smoothed_labels_meet_weights(weigh, tmp_path):
    x, y = blobs(120)
    weights = np.linspace(0.5, 2, 120).astype("float32")
    arrays = (x, y, weights) if weigh == "examples" else (x, y)
    data = tfopt.from_arrays(arrays, batch_size=120)
    by_class = {0: 1.0, 1: 2.0, 2: 4.0} if weigh == "classes" else None
    model = linear()
    losses, labels = smoothed_by_hand(model, data, 0.3)
    each = np.ones(len(labels))
    if weigh == "classes":
        each = np.array([by_class[label] for label in labels])
    if weigh == "examples":
        each = np.concatenate([batch[2].numpy() for batch in data.batches("train")])
    options = {"learning_rate": 1e-9, "label_smoothing": 0.3, "class_weight": by_class, "epochs": 1}
    after, history = fitted(tmp_path, data, model, **options)
    # Keras takes the mean over the examples.
    assert history["loss"][0] == pytest.approx(float((each * losses).mean()), rel=1e-4)
    # The model that comes back is judged by the plain loss, and its file needs nothing of tfopt's.
    assert evaluate(after, data, "train")["loss"] == pytest.approx(losses_by_hand(after, data)[0].mean(), rel=1e-4) or (
        weigh == "examples"
    )
    assert type(after.loss) is keras.losses.SparseCategoricalCrossentropy


@pytest.mark.slow
def test_smoothing_makes_a_model_less_sure(data, tmp_path):
    x, _ = blobs(60, seed=3)
    sure = [
        fitted(tmp_path / str(share), data, epochs=6, learning_rate=1e-2, label_smoothing=share)[0]
        .predict(x, verbose=0)
        .max(axis=1)
        .mean()
        for share in (0.0, 0.3)
    ]
    # The best that a model can do with 0.3 is 0.8 for its class.
    assert sure[0] > 0.95
    assert sure[1] < 0.88


def test_losses_that_smooth_themselves_and_those_without_classes(data, tmp_path):
    for loss in ("binary_crossentropy", "categorical_crossentropy", keras.losses.CategoricalFocalCrossentropy()):
        assert smoothed(Task(loss, None), 0.1).loss.get_config()["label_smoothing"] == 0.1
    task = Task("mean_squared_error", ["mean_absolute_error"])
    assert smoothed(task, 0.0) is task
    for loss, message in (
        ("mean_squared_error", "label_smoothing=0.1 needs classes, .* the loss is 'mean_squared_error'"),
        (["binary_crossentropy"] * 2, "as the one loss"),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=2), "does not go with ignore_class"),
        (keras.losses.BinaryCrossentropy(label_smoothing=0.2), r"smooths labels already \(0.2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            smoothed(Task(loss, None), 0.1)
    x = blobs(40)[0]
    numbers = tfopt.from_arrays((x, x.mean(axis=(1, 2, 3))), batch_size=8)
    stage = tfopt.Train(1, tfopt.Fit(label_smoothing=0.1))
    with pytest.raises(ValueError, match="label_smoothing=0.1 needs classes"):
        stage.validate(tfopt.Work(linear(1, None), numbers, tmp_path))
    with pytest.raises(ValueError, match=r"label_smoothing must be a fraction in \[0, 1\), received 10"):
        tfopt.Fit(label_smoothing=10)


# Statistics


def two_norms(dropout=0.0):
    inputs = keras.Input((8, 8, 2))
    x = layers.BatchNormalization(name="first")(layers.Conv2D(4, 3, name="conv")(inputs))
    x = layers.Dropout(dropout)(layers.ReLU()(x))
    x = layers.BatchNormalization(name="second", momentum=0.7)(layers.Dense(5)(layers.Flatten()(x)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def normalized(x, epsilon=1e-3):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon), x.mean(axes), x.var(axes)


def test_statistics_are_those_of_all_examples():
    x, y = blobs(100)
    data = tfopt.from_arrays((x + 1, y), batch_size=24)
    model = two_norms(dropout=0.5)
    weights = [each.numpy() for each in model.trainable_variables]
    recalibrate(model, data)
    batches = [batch[0].numpy() for batch in data.training_batches()]
    assert [len(each) for each in batches] == [24, 24, 24, 8]
    conv, dense = model.get_layer("conv"), model.layers[-3]
    # The first: of all at once. The second: each batch normalized by itself, nothing dropped.
    whole = conv(np.concatenate(batches)).numpy().astype("float64")
    _, mean, variance = normalized(whole)
    first, second = model.get_layer("first"), model.get_layer("second")
    np.testing.assert_allclose(first.moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.moving_variance, variance, rtol=1e-4)
    inputs = [np.maximum(normalized(conv(each).numpy())[0], 0).reshape(len(each), -1) for each in batches]
    outputs = dense(np.concatenate(inputs)).numpy().astype("float64")
    np.testing.assert_allclose(second.moving_mean, outputs.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(second.moving_variance, outputs.var(0), rtol=1e-3)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.trainable_variables, strict=True))
    assert {type(first), type(second)} == {layers.BatchNormalization}
    assert (first.momentum, second.momentum) == (0.99, 0.7)
    # So it can be trained and saved as before.
    assert first(np.ones((1, 6, 6, 4)), training=False).shape == (1, 6, 6, 4)


def test_some_batches_and_frozen_layers(data):
    model = two_norms()
    model.get_layer("second").trainable = False
    recalibrate(model, data, batches=2)
    x = np.concatenate([batch[0].numpy() for batch in data.training_batches().take(2)])
    _, mean, variance = normalized(model.get_layer("conv")(x).numpy().astype("float64"))
    np.testing.assert_allclose(model.get_layer("first").moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.get_layer("first").moving_variance, variance, rtol=1e-4)
    assert not model.get_layer("second").moving_mean.numpy().any()


def test_what_a_change_of_weights_did_to_the_statistics_is_mended(data, trained):
    """Scaled filters, normalized by their own statistics, are the filters as they were."""
    x, _ = blobs(40, seed=5)
    models = []
    for scale in (1.0, 5.0):
        model = keras.models.clone_model(trained)
        model.set_weights(trained.get_weights())
        model.get_layer("conv").kernel.assign(trained.get_layer("conv").kernel * scale)
        models.append(model)
    apart = np.abs(models[0](x).numpy() - models[1](x).numpy()).max()
    for model in models:
        recalibrate(model, data)
    assert np.abs(models[0](x).numpy() - models[1](x).numpy()).max() < 0.02 < apart


def test_what_cannot_be_recalibrated(data):
    with pytest.raises(ValueError, match="'linear' has no BatchNormalization that is trainable"):
        recalibrate(linear(), data)
    with pytest.raises(ValueError, match="batches must be None or a whole number from 1, received 0"):
        recalibrate(small_model(), data, batches=0)
    renorm = keras.Sequential([keras.Input((8, 8, 2)), layers.BatchNormalization(renorm=True, name="r")])
    with pytest.raises(ValueError, match="the layer 'r' has renorm=True"):
        recalibrate(renorm, data)
