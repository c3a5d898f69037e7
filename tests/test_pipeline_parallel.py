"""Pipeline parallelism: a model on two devices trains as on one, and each part runs where it should."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import blobs, small_model
from tfopt.train.pipeline_parallel import place

layers = keras.layers
DEVICES = ["CPU:0", "CPU:1"]


def skips(**options):
    """Two inputs, two outputs, a connection that skips a cut, an operator between layers; no batch normalization."""
    image, extra = keras.Input((8, 8, 2), name="image"), keras.Input((3,), name="extra")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv", **options)(image)
    pooled = layers.GlobalAveragePooling2D(name="average")(x)
    early = layers.Dense(1, name="early", dtype="float32")(pooled)
    x = layers.Dense(6, activation="tanh", name="hidden", **options)(keras.ops.concatenate([pooled, extra], axis=-1))
    x = layers.Dense(4, activation="relu", name="wide")(x * 2.0)
    x = layers.Add(name="add")([x, pooled])
    out = layers.Dense(3, activation="softmax", name="out", dtype="float32")(x)
    return keras.Model({"image": image, "extra": extra}, {"early": early, "out": out}, name="skips")


def skips_data(size=26):
    images, labels = blobs(size)
    rng = np.random.default_rng(1)
    x = {"image": images, "extra": rng.normal(size=(size, 3)).astype("float32")}
    y = {"early": rng.normal(size=(size, 1)).astype("float32"), "out": labels}
    weight = {"early": rng.uniform(0.1, 2, size).astype("float32"), "out": rng.uniform(0.1, 2, size).astype("float32")}
    return x, y, weight


def twins(make):
    first, second = make(), make()
    for old, new in zip(first.variables, second.variables, strict=True):
        new.assign(old)
    return first, second


def compile_skips(model, optimizer=None, **options):
    model.compile(
        optimizer or keras.optimizers.Adam(0.01, global_clipnorm=0.5),
        loss={"early": "mse", "out": "sparse_categorical_crossentropy"},
        loss_weights={"early": 0.3, "out": 1.0},
        metrics={"out": ["accuracy"]},
        weighted_metrics={"early": ["mae"]},
        jit_compile=False,
        **options,
    )


def fit_skips(model, size=26, callbacks=()):
    """Batches of 8; the last is of 2."""
    x, y, weight = skips_data(size)
    fitted = model.fit(
        x, y, sample_weight=weight, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return fitted.history


def assert_equal_models(expected, found, atol=1e-6):
    for one, other in zip(expected.variables, found.variables, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=atol, err_msg=one.path)


def assert_equal_logs(expected, found, atol=1e-6):
    assert expected.keys() == found.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(values, found[key], atol=atol, err_msg=key)


# Equal to one device


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_trains_as_on_one_device(micro_batches):
    # Of 3 micro-batches of the last batch of 2, one is empty.
    one, two = twins(skips)
    compile_skips(one)
    logs = fit_skips(one)
    with place(two, DEVICES, micro_batches) as placed:
        compile_skips(placed)
        assert_equal_logs(logs, fit_skips(placed))
        x, y, weight = skips_data(11)
        expected = one.evaluate(x, y, sample_weight=weight, batch_size=4, verbose=0, return_dict=True)
        found = placed.evaluate(x, y, sample_weight=weight, batch_size=4, verbose=0, return_dict=True)
        assert_equal_logs(expected, found)
        predicted, wanted = placed.predict(x, batch_size=4, verbose=0), one.predict(x, batch_size=4, verbose=0)
        assert_equal_logs(wanted, predicted)
    assert_equal_models(one, two)


def test_dropout_and_batch_normalization_are_equal_in_whole_batches():
    one, two = twins(lambda: small_model(dropout=0.3))
    x, y = blobs(50)
    for model in (one, two):
        names = [(layer.name, type(layer)) for layer in model.layers]
        with place(two, DEVICES) if model is two else _itself(one) as trained:
            trained.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
            trained.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        assert [(layer.name, type(layer)) for layer in model.layers] == names
    moved = {each.path: each.numpy() for each in two.non_trainable_variables}
    assert not np.allclose(moved["bn/moving_mean"], 0)
    assert_equal_models(one, two)


class _itself:
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        return self.model

    def __exit__(self, *error):
        pass


# Where things are


def device_of(name):
    return name.rpartition(":")[2]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_variables_and_operations_are_on_their_devices(micro_batches):
    with place(skips(kernel_regularizer="l2"), DEVICES, micro_batches, boundaries=["hidden"]) as placed:
        compile_skips(placed)
        x, y, weight = skips_data(4)
        batch = next(iter(tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(4)))
        placed._symbolic_build(data_batch=batch)
        where = {"conv": "0", "early": "1", "hidden": "1", "wide": "1", "out": "1"}
        assert {each.path.split("/")[0]: device_of(each.value.device) for each in placed.variables} == where
        slots = [each for each in placed.optimizer.variables if "momentum" in each.path or "velocity" in each.path]
        assert len(slots) == 2 * len(placed.trainable_variables)
        for each in slots:
            owner = next(name for name in where if f"{name}_" in each.path)
            assert device_of(each.value.device) == where[owner], each.path
        graph = tf.function(placed.train_step, autograph=False).get_concrete_function(batch).graph
        matmuls = {name: 0 for name in where}
        for operation in graph.get_operations():
            for name, device in where.items():
                # Gradients have the name of their layer too; those that read a variable go where it is.
                inside = re.search(rf"/{name}(_\d+)?/", operation.name)
                if inside and operation.type not in ("ReadVariableOp", "Placeholder"):
                    assert device_of(operation.device) == device, operation.name
                    matmuls[name] += operation.type == "MatMul"
        # Forwards, and backwards for the weights and for the input.
        assert {name: matmuls[name] for name in ("early", "hidden", "wide", "out")} == dict.fromkeys(
            ("early", "hidden", "wide", "out"), 3 * micro_batches
        )
