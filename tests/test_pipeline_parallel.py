"""Pipeline parallelism: a model on two devices trains as on one, and each part runs where it should."""

import contextlib
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs, quick, small_model
from tests.pipeline_models import (
    DEVICES,
    assert_equal_logs,
    assert_equal_models,
    compile_skips,
    fit_skips,
    skips,
    skips_data,
    twins,
)
from tests.test_docs import run_blocks
from tfopt.invariants import Sparsity, keeping
from tfopt.schedules import PolynomialDecay
from tfopt.train.pipeline_parallel import place, split_model

layers = keras.layers


# Equal to one device


@pytest.mark.parametrize("micro_batches", quick([1, 2, 3], 3))
def test_trains_as_on_one_device(micro_batches):
    # Of 3 micro-batches of the last batch of 2, one is empty.
    one, two = twins(lambda: skips(kernel_regularizer="l2"))
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


@pytest.mark.slow
def test_dropout_and_batch_normalization_are_equal_in_whole_batches():
    one, two = twins(lambda: small_model(dropout=0.3))
    x, y = blobs(50)
    for model in (one, two):
        with place(two, DEVICES) if model is two else contextlib.nullcontext(one) as trained:
            trained.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
            trained.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    moved = {each.path: each.numpy() for each in two.non_trainable_variables}
    assert not np.allclose(moved["bn/moving_mean"], 0)
    assert_equal_models(one, two)


@pytest.mark.parametrize(
    "options", quick([("steps_per_execution", 4), ("run_eagerly", True)], ("steps_per_execution", 4))
)
@pytest.mark.slow
def test_each_way_of_running_the_step_is_equal(options):
    one, two = twins(skips)
    options = dict([options])
    compile_skips(one, **options)
    logs = fit_skips(one)
    with place(two, DEVICES, 2) as placed:
        compile_skips(placed, **options)
        assert_equal_logs(logs, fit_skips(placed))
    assert_equal_models(one, two)


@pytest.mark.parametrize(
    ("policy", "micro_batches", "eagerly", "tolerance"),
    [
        # In a graph, TensorFlow fuses operations, and so leaves out roundings, on one device and not across two.
        ("mixed_bfloat16", 1, True, 1e-6),
        # Sums of 16-bit gradients in another order: 2^-11 of steps of 0.01 times gradients of about 1, and the fusing.
        pytest.param("mixed_float16", 2, False, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_is_equal(policy, micro_batches, eagerly, tolerance):
    def make():
        keras.config.set_dtype_policy(policy)
        try:
            return skips()
        finally:
            keras.config.set_dtype_policy("float32")

    one, two = twins(make)
    compile_skips(one, "sgd", run_eagerly=eagerly)
    logs = fit_skips(one)
    with place(two, DEVICES, micro_batches) as placed:
        assert placed.get_layer("conv").compute_dtype == policy.removeprefix("mixed_")
        compile_skips(placed, "sgd", run_eagerly=eagerly)
        scales = isinstance(placed.optimizer, keras.optimizers.LossScaleOptimizer)
        assert scales == isinstance(one.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
        assert_equal_logs(logs, fit_skips(placed), tolerance)
    assert_equal_models(one, two, tolerance)


@pytest.mark.slow
def test_loss_scaling_skips_the_step_whose_gradients_are_infinite():
    one, two = twins(skips)
    x, y, weight = skips_data()
    x["extra"][10] = np.inf
    scales = []
    for model in (one, two):
        with place(two, DEVICES, 2) if model is two else contextlib.nullcontext(one) as trained:
            scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
            compile_skips(trained, scaled)
            trained.fit(x, y, sample_weight=weight, batch_size=8, epochs=2, shuffle=False, verbose=0)
            # 4 batches in each of 2 epochs; the second is skipped.
            assert int(scaled.inner_optimizer.iterations) == 6
            scales.append(float(scaled.dynamic_scale))
    assert scales == [2.0**13] * 2
    assert_equal_models(one, two)


def sequences():
    """Masks and row-wise gradients: an embedding, a recurrent layer on the other device, masked outputs."""
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(20, 8, mask_zero=True, name="embedding"),
            layers.Dense(8, name="dense"),
            layers.SimpleRNN(4, return_sequences=True, name="recurrent"),
            layers.Dense(1, name="out"),
        ],
        name="sequences",
    )


@pytest.mark.parametrize("micro_batches", quick([1, 2], 2))
@pytest.mark.slow
def test_masks_cross_the_cut_and_reach_the_loss(micro_batches):
    one, two = twins(sequences)
    rng = np.random.default_rng(0)
    x = rng.integers(1, 20, (10, 6)) * (np.arange(6) < rng.integers(1, 7, (10, 1)))
    y = rng.normal(size=(10, 6, 1))
    logs = []
    for model in (one, two):
        with (
            place(two, DEVICES, micro_batches, ["recurrent"])
            if model is two
            else contextlib.nullcontext(one) as trained
        ):
            trained.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], jit_compile=False)
            logs.append(trained.fit(x, y, batch_size=5, epochs=2, shuffle=False, verbose=0).history)
    assert_equal_logs(*logs)
    assert_equal_models(one, two)
    # The mask matters: without it the loss is another.
    assert abs(np.mean((one(x) - y) ** 2) - one.evaluate(x, y, verbose=0)[0]) > 0.01


def nested():
    """A cut inside a nested model; a layer called twice in one part; an output that is also passed on."""
    inner_in = keras.Input((5,))
    inner = layers.Dense(8, activation="relu", name="one")(inner_in)
    inner = layers.Dense(8, activation="relu", name="two")(inner)
    encoder = keras.Model(inner_in, inner, name="encoder")
    x = keras.Input((5,), name="x")
    code = encoder(x)
    twice = layers.Dense(8, name="twice")
    head = layers.Dense(2, name="one")(twice(twice(code)))
    return keras.Model(x, [head, code], name="nested")


@pytest.mark.slow
def test_nested_models_are_cut_inside_and_keep_their_structure():
    one, two = twins(nested)
    parts = split_model(two, DEVICES, ["encoder/two"])
    assert [part.layers for part in parts] == [("encoder/one",), ("encoder/two", "twice", "twice", "one")]
    assert [part.parameters for part in parts] == [5 * 8 + 8, 2 * (8 * 8 + 8) + 8 * 2 + 2]
    x, y = np.ones((6, 5)) * np.arange(6)[:, None], [np.ones((6, 2)), np.zeros((6, 8))]
    paths = [each.path for each in two.variables]
    one.compile("adam", ["mse", "mae"], jit_compile=False)
    one.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    with place(two, DEVICES, 2, ["encoder/two"]) as placed:
        assert [each.path for each in placed.variables] == paths
        placed.compile("adam", ["mse", "mae"])
        placed.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    assert [each.path for each in two.variables] == paths
    assert [layer.name for layer in two.layers] == ["x", "encoder", "twice", "one"]
    assert_equal_models(one, two)


@pytest.mark.slow
def test_what_layers_add_to_the_loss_counts_once():
    def make():
        inputs = keras.Input((4,))
        x = layers.Dense(5, kernel_regularizer=keras.regularizers.L2(0.1), name="first")(inputs)
        x = layers.Dense(5, activity_regularizer="l2", bias_regularizer="l1", name="second")(x)
        return keras.Model(inputs, layers.Dense(1, name="third")(x))

    one, two = twins(make)
    x, y = np.ones((6, 4)), np.zeros((6, 1))
    one.compile("sgd", "mse", jit_compile=False)
    logs = one.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0).history
    with place(two, DEVICES) as placed:
        placed.compile("sgd", "mse")
        assert_equal_logs(logs, placed.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0).history)
        np.testing.assert_allclose(placed.evaluate(x, y, verbose=0), one.evaluate(x, y, verbose=0), atol=1e-6)
    assert_equal_models(one, two)
    with pytest.raises(ValueError, match="micro_batches=2: a layer of .* adds to the loss"):
        with place(two, DEVICES, 2):
            pass


@pytest.mark.slow
def test_frozen_layers_stay_and_batch_normalization_then_takes_micro_batches():
    def make():
        model = small_model()
        model.get_layer("bn").trainable = False
        model.get_layer("hidden").bias.trainable = False
        return model

    one, two = twins(make)
    x, y = blobs(20)
    frozen = one.get_layer("hidden").bias.numpy()
    for model in (one, two):
        with place(two, DEVICES, 3) if model is two else contextlib.nullcontext(one) as trained:
            trained.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
            trained.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_equal_models(one, two)
    np.testing.assert_array_equal(two.get_layer("hidden").bias, frozen)


def test_promises_constraints_and_pruning_hold():
    one, two = twins(skips)
    for model in (one, two):
        kernel = model.get_layer("hidden").kernel
        kernel.assign(kernel.numpy() * (np.arange(kernel.shape[1]) % 2))
        model.get_layer("out").kernel.constraint = keras.constraints.MaxNorm(0.5)
        promise = Sparsity({"hidden/kernel": 0.5})
        pruning = tfopt.PruningCallback(
            PolynomialDecay(0.0, 0.75, begin_step=0, end_step=6, frequency=2), layers=["conv"]
        )
        with place(two, DEVICES, 2) if model is two else contextlib.nullcontext(one) as trained:
            with keeping(trained, [promise]):
                compile_skips(trained, steps_per_execution=2)
                fit_skips(trained, callbacks=[pruning])
        assert promise.check(model) == []
        assert np.linalg.norm(model.get_layer("out").kernel, axis=0).max() <= 0.5 + 1e-6
        assert (model.get_layer("conv").kernel.numpy() == 0).mean() == 0.75
    assert_equal_models(one, two)


@pytest.mark.slow
def test_the_model_has_the_weights_after_an_error_too_and_its_own_state_is_left_alone():
    model = skips()
    before = model.get_weights()
    inbound = [len(layer._inbound_nodes) for layer in model.operations]
    with pytest.raises(RuntimeError, match="stop"):
        with place(model, DEVICES) as placed:
            compile_skips(placed)
            fit_skips(placed)
            trained = placed.get_weights()
            assert [each.path for each in placed.variables] == [each.path for each in model.variables]
            assert all((one == other).all() for one, other in zip(before, model.get_weights(), strict=True))
            raise RuntimeError("stop")
    assert all((one == other).all() for one, other in zip(trained, model.get_weights(), strict=True))
    assert not all((one == other).all() for one, other in zip(before, model.get_weights(), strict=True))
    assert [len(layer._inbound_nodes) for layer in model.operations] == inbound
    assert not model.compiled


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
        # The optimizer writes each variable from the device where it is.
        handles = {id(inside): outside for outside, inside in graph.captures}
        writes = [each for each in graph.get_operations() if re.match(r"adam\w*/Assign\w+VariableOp", each.name)]
        writes = [each for each in writes if each.device]
        assert len(writes) == 3 * len(placed.trainable_variables)
        for each in writes:
            assert device_of(each.device) == device_of(handles[id(each.inputs[0])].device), each.name
        # Forwards, and backwards for the weights and for the input.
        assert {name: matmuls[name] for name in ("early", "hidden", "wide", "out")} == dict.fromkeys(
            ("early", "hidden", "wide", "out"), 3 * micro_batches
        )


FOUR = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)
from tfopt.train.pipeline_parallel import place
keras.utils.set_random_seed(0)
inputs = keras.Input((4,))
a = keras.layers.Dense(4, activation="tanh", name="a")(inputs)
b = keras.layers.Dense(4, activation="tanh", name="b")(a)
c = keras.layers.Dense(4, activation="tanh", name="c")(b)
d = keras.layers.Dense(4, name="d")(c + a + inputs)
one = keras.Model(inputs, d)
two = keras.models.clone_model(one)
two.set_weights(one.get_weights())
x, y = np.random.default_rng(0).normal(size=(2, 10, 4))
one.compile("adam", "mse", jit_compile=False)
one.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
with place(two, [f"CPU:{index}" for index in range(4)], micro_batches=4) as placed:
    assert [each.value.device[-1] for each in placed.variables] == list("00112233")
    placed.compile("adam", "mse")
    placed.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
for before, after in zip(one.get_weights(), two.get_weights(), strict=True):
    np.testing.assert_allclose(before, after, atol=1e-6)
print("equal")
"""


@pytest.mark.slow
def test_connections_skip_several_cuts_on_four_devices():
    done = subprocess.run([sys.executable, "-c", FOUR], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_the_card_runs(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small_model()
    before = model.get_weights()
    text = pathlib.Path(tfopt.train.__file__).with_name("PARALLEL.md").read_text(encoding="utf-8")
    run_blocks(text, "PARALLEL.md", {"model": model, "ds": data.train}, monkeypatch)
    saved = keras.models.load_model("trained.keras").get_weights()
    assert all((one == other).all() for one, other in zip(saved, model.get_weights(), strict=True))
    assert not all((one == other).all() for one, other in zip(saved, before, strict=True))
