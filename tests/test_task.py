"""What a model is trained for, models to train, and trainings that cannot be."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, small_model
from tests.test_train import fitted, linear
from tfopt.evaluation import evaluate
from tfopt.train.task import task_of

layers = keras.layers


def binary_data():
    x, y = blobs(160)
    return tfopt.from_arrays((x, (y == 1).astype("int64")), batch_size=16)


# What the data and the head say


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_single_unit_is_a_binary_classifier(activation, tmp_path):
    data = binary_data()
    task = task_of(linear(1, activation), data)
    assert isinstance(task.loss, keras.losses.BinaryCrossentropy)
    assert task.loss.from_logits is (activation is None)
    model, history = fitted(tmp_path, data, linear(1, activation), epochs=5, learning_rate=0.02)
    assert evaluate(model, data)["accuracy"] > 0.9
    x, y = blobs(100, seed=9)
    threshold = 0.5 if activation else 0
    assert ((model.predict(x, verbose=0)[:, 0] > threshold) == (y == 1)).mean() > 0.9
    assert history["val_accuracy"][-1] > 0.9


def test_a_sigmoid_in_a_layer_of_its_own_is_seen():
    model = keras.Sequential([linear(1, None), layers.Activation("sigmoid")])
    model.build((None, 8, 8, 2))
    assert task_of(model, binary_data()).loss.from_logits is False


def test_softmax_and_logits_are_told_apart_however_they_are_made(data):
    apart = keras.Sequential([keras.Input((8, 8, 2)), linear(3, None), layers.Softmax()])
    for model, logits in [(linear(), False), (linear(3, None), True), (apart, False), (linear(3, "relu"), True)]:
        loss = task_of(model, data).loss
        assert isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
        assert loss.from_logits is logits


def test_one_hot_targets_and_regression(tmp_path):
    x, y = blobs(160)
    one_hot = tfopt.from_arrays((x, np.eye(3, dtype="float32")[y]), batch_size=16)
    task = task_of(linear(), one_hot)
    assert isinstance(task.loss, keras.losses.CategoricalCrossentropy)
    model, _ = fitted(tmp_path / "hot", one_hot, linear(), learning_rate=0.02)
    assert evaluate(model, one_hot)["accuracy"] > 0.9
    rows = x.mean((1, 2, 3)) * 3 + 1
    for name, targets in {"numbers": rows, "columns": rows[:, None]}.items():
        data = tfopt.from_arrays((x, targets.astype("float32")), batch_size=16)
        model, history = fitted(tmp_path / name, data, linear(1, None), epochs=8, learning_rate=0.02)
        assert set(history) == {"loss", "mean_absolute_error", "val_loss", "val_mean_absolute_error"}
        assert history["val_loss"][-1] < history["val_loss"][0] / 4


def test_targets_that_do_not_fit_the_output_are_refused_before_training(tmp_path):
    x, _ = blobs(40)
    wide = tfopt.from_arrays((x, np.eye(4, dtype="float32")[np.arange(40) % 4]))
    with pytest.raises(
        ValueError, match=r"targets of shape \(4,\) an example, the model 'linear' outputs of shape .3,"
    ):
        tfopt.Train(1).validate(tfopt.Work(linear(), wide, tmp_path))
    two = tfopt.from_arrays((x, (np.ones(40), np.ones(40))))
    with pytest.raises(ValueError, match="give 2 targets, the model 'linear' has one output"):
        tfopt.Train(1).validate(tfopt.Work(linear(1, None), two, tmp_path))


# Models compiled by the user


def test_a_compiled_model_keeps_its_loss_and_metrics(data, tmp_path):
    model = linear(3, None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    model.compile("rmsprop", loss, metrics=[metric], weighted_metrics=["accuracy"])
    work = tfopt.Train(2, tfopt.Fit(0.02))(tfopt.Work(model, data, tmp_path))
    history = work.report.stages[0].history
    assert {"loss", "top2", "accuracy", "val_top2"} <= set(history)
    assert work.model.loss.get_config() == loss.get_config()
    predicted = work.model.predict(blobs(100, seed=4)[0], verbose=0).argmax(1)
    labels = blobs(100, seed=4)[1]
    assert (predicted == labels)[labels != 2].mean() > 0.85
    evaluated = evaluate(work.model, data)
    assert {"loss", "top2", "accuracy"} == set(evaluated)


def test_whole_numbers_are_targets_of_a_regression_where_the_model_says_so(tmp_path):
    x, y = blobs(160)
    data = tfopt.from_arrays((x, y * 10 + 5), batch_size=16)
    model = linear(1, None)
    model.compile("sgd", "mse", metrics=["mae"])
    work = tfopt.Train(3, tfopt.Fit(0.05))(tfopt.Work(model, data, tmp_path))
    history = work.report.stages[0].history
    assert history["loss"][-1] < history["loss"][0]
    assert "mae" in history


def unregistered(truth, predicted):
    return keras.ops.mean(predicted)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a .lambda.")
@pytest.mark.parametrize("loss", [unregistered, lambda truth, predicted: keras.ops.mean(predicted)])
def test_losses_that_cannot_be_written_down_are_an_error(loss, data, tmp_path):
    model = linear()
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="'linear' is compiled with a loss or metric that cannot be .* register your"):
        tfopt.Train(1).validate(tfopt.Work(model, data, tmp_path))
    model.compile("sgd", "mse", metrics=[loss])
    with pytest.raises(ValueError, match="'linear' is compiled with a loss or metric that cannot be .* register your"):
        task_of(model, data)


def test_a_model_compiled_without_a_loss_is_an_error(data):
    model = linear()
    model.compile("sgd")
    with pytest.raises(ValueError, match="'linear' is compiled without a loss, so it cannot be trained"):
        task_of(model, data)


def test_several_outputs_need_a_loss(data, tmp_path):
    inputs = keras.Input((8, 8, 2))
    flat = layers.Flatten()(inputs)
    model = keras.Model(inputs, [layers.Dense(3)(flat), layers.Dense(2)(flat)], name="forked")
    with pytest.raises(ValueError, match=r"'forked' has several outputs, .* call model.compile\(loss=...\)"):
        tfopt.Train(1).validate(tfopt.Work(model, data, tmp_path))
    x, y = blobs(60)
    both = tfopt.from_arrays((x, (y, (y == 0).astype("int64"))), batch_size=16)
    losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", [losses, losses], loss_weights=[1.0, 0.5])
    work = tfopt.Train(3, tfopt.Fit(0.01))(tfopt.Work(model, both, tmp_path))
    assert work.report.stages[0].history["loss"][-1] < work.report.stages[0].history["loss"][0]
    assert work.model.get_compile_config()["loss_weights"] == [1.0, 0.5]


# What cannot be trained


def test_frozen_models_and_no_epochs_are_refused(data, tmp_path):
    frozen = small_model()
    frozen.trainable = False
    with pytest.raises(ValueError, match="'small' has nothing to train: all of its layers are frozen"):
        tfopt.Train(1).validate(tfopt.Work(frozen, data, tmp_path))
    for epochs in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"epochs must be a whole number from 1, received {epochs}"):
            tfopt.Train(epochs).validate(tfopt.Work(small_model(), data, tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adan"}, "optimizer must be one of adadelta, .*adam, .*received 'adan'"),
        (
            {"precision": "float16"},
            "precision must be one of float32, .*mixed_float16, received 'float16'",
        ),
        ({"learning_rate": 0}, "learning_rate must be a number above 0 or a schedule such as Cosine, received 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be .* received nan"),
        ({"learning_rate": "fast"}, "learning_rate must be .* received 'fast'"),
        ({"steps_per_execution": 0}, "steps_per_execution must be at least 1, received 0"),
        ({"early_stopping": 0}, "early_stopping must be None or a number of epochs from 1, received 0"),
    ],
)
def test_settings_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tfopt.Fit(**options)


def test_a_factory_must_make_a_model_of_data_with_classes(data, tmp_path):
    work = tfopt.Work(None, data, tmp_path)
    assert tfopt.Build(tfopt.models.cnn, {"filters": 4}).validate(work).model.output_shape == (None, 3)
    with pytest.raises(TypeError, match="factory must return a keras.Model, it returned list"):
        tfopt.Build(lambda shape, classes: []).validate(work)
    nameless = tfopt.from_arrays(blobs(40))
    with pytest.raises(ValueError, match=r"Build makes classifiers of one input; .* 0 class names"):
        tfopt.Build(tfopt.models.cnn).validate(work.replace(data=nameless))


# Architectures


@pytest.mark.parametrize(
    ("factory", "shape", "classes", "options", "parameters"),
    [
        ("cnn", (8, 8, 1), 10, {}, 85_354),
        ("cnn", (8, 8, 1), 10, {"dropout": 0.0, "shift": 0.1}, 85_354),
        ("cnn", (17, 12, 3), 2, {"filters": 8}, None),
        ("ds_cnn", (28, 28, 1), 10, {}, 22_218),
        ("ds_cnn", (49, 10, 1), 12, {"filters": 16, "blocks": 2}, None),
        ("resnet8", (32, 32, 3), 10, {}, 78_426),
        ("resnet8", (15, 20, 1), 7, {"filters": 4}, None),
    ],
)
def test_models_take_any_size_and_give_probabilities(factory, shape, classes, options, parameters):
    model = getattr(tfopt.models, factory)(shape, classes, **options)
    outputs = model(np.random.default_rng(0).normal(size=(3, *shape)), training=False)
    assert outputs.shape == (3, classes)
    assert np.allclose(np.sum(outputs, 1), 1, atol=1e-5)
    if parameters:
        assert model.count_params() == parameters
    assert model.to_json() == getattr(tfopt.models, factory)(shape, classes, **options).to_json()


def test_resnet8_has_the_weights_of_mlperf_tiny():
    model = tfopt.models.resnet8((32, 32, 3), 10)
    kernels = [tuple(each.shape) for each in model.weights if each.name == "kernel"]
    assert kernels.count((3, 3, 16, 16)) == 2  # the published 78,666 count 240 biases before batch normalizations
    assert {(1, 1, 16, 32), (1, 1, 32, 64), (64, 10)} <= set(kernels)
    assert len([layer for layer in model.layers if isinstance(layer, layers.Add)]) == 3


def test_rounded_probabilities_are_still_probabilities():
    x, y = np.ones((40, 4), "float32"), np.arange(40) % 10
    data = tfopt.from_arrays((x, y), batch_size=8)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(10, "softmax", kernel_initializer="zeros")])
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, x)
    # Ten times 26/256.
    assert float(aware(x).numpy().sum(-1)[0]) == pytest.approx(1.015625)
    assert task_of(aware, data).loss.from_logits is False
    assert evaluate(aware, data)["loss"] == pytest.approx(np.log(10), abs=0.02)
