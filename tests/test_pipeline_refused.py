"""Pipeline parallelism: what cannot work is refused before training."""

import keras
import numpy as np
import pytest

from tests.conftest import small_model
from tests.pipeline_models import DEVICES
from tfopt.train.pipeline_parallel import place, split_model

layers = keras.layers


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(2), layers.Dense(2)

        def call(self, x):
            return self.second(self.first(x))

    model = Own()
    model(np.ones((1, 2)))
    return model


def shared():
    inputs = keras.Input((4,))
    twice = layers.Dense(4, name="twice")
    x = layers.Dense(4, name="between")(twice(inputs))
    return keras.Model(inputs, layers.Dense(1, name="out")(twice(x)), name="shared")


def tied():
    class Tied(layers.Layer):
        def __init__(self, other, **options):
            super().__init__(**options)
            self.kernel = other.kernel

        def call(self, x):
            return x @ self.kernel

    inputs = keras.Input((4,))
    first = layers.Dense(4, name="first")
    return keras.Model(inputs, Tied(first, name="tied")(first(inputs)) if first.build((None, 4)) is None else None)


def dense(count):
    return keras.Sequential([keras.Input((2,)), *[layers.Dense(2, name=f"d{index}") for index in range(count)]])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (subclassed, {}, "is a subclassed model .Own.: it has no graph"),
        (lambda: keras.Sequential([layers.Dense(2)]), {}, "is not built"),
        (shared, {"boundaries": ["between"]}, "boundary between would cut between two calls of the layer 'twice'"),
        (lambda: dense(1), {}, "has 1 layers with weights, fewer than the 2 devices"),
        (lambda: dense(2), {"devices": ["CPU:0"]}, "devices must be two at least, received .'CPU:0'."),
        (lambda: dense(2), {"devices": ["CPU:0", "cpu:0"]}, "devices has CPU:0 twice"),
        (lambda: dense(2), {"devices": ["CPU:0", "GPU:7"]}, "no device 'GPU:7'; .*CPU:0, CPU:1"),
        (lambda: dense(2), {"boundaries": ["d0"]}, "running order, without the model's first layer"),
        (lambda: dense(3), {"boundaries": ["d1", "d2"]}, "2 devices need 1, received 2"),
        (lambda: dense(2), {"boundaries": ["d7"]}, "has no layer 'd7'; There are d0, d1"),
        (lambda: dense(2), {"micro_batches": 0}, "micro_batches must be a whole number from 1, received 0"),
        (tied, {}, "the layers 'first' and 'tied' share the variable"),
        (small_model, {"micro_batches": 2}, "bn/moving_mean, bn/moving_variance are computed from the whole batch"),
    ],
)
def test_what_cannot_work_is_refused_before_training(make, options, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        with place(model, **{"devices": DEVICES, **options}):
            pass


def test_a_shared_layer_is_not_cut_where_the_cut_is_free():
    # Both calls are in one part, though a cut between them would balance better.
    first, second = split_model(shared(), DEVICES)
    assert first.layers == ("twice", "between", "twice")
    assert second.layers == ("out",)


def test_strategies_keras_distributions_xla_and_saving_the_copy_are_refused(mirrored):
    with pytest.raises(ValueError, match="a strategy exclude each other"):
        with mirrored.scope(), place(dense(2), DEVICES):
            pass
    with mirrored.scope():
        model = dense(2)
    with pytest.raises(ValueError, match="a strategy exclude each other"):
        with place(model, DEVICES):
            pass
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
    try:
        with pytest.raises(ValueError, match="keras.distribution.DataParallel is set"):
            with place(dense(2), DEVICES):
                pass
    finally:
        keras.distribution.set_distribution(None)
    with place(dense(2), DEVICES) as placed:
        with pytest.raises(NotImplementedError, match="is a copy for training: save the model itself"):
            placed.save("copy.keras")
        with pytest.raises(ValueError, match="XLA compiles for one device"):
            placed.compile("sgd", "mse", jit_compile=True)
        placed.compile("sgd", "mse", jit_compile="auto")
        assert placed.jit_compile is False


@pytest.mark.parametrize(("devices", "boundaries"), [("CPU:0", None), (DEVICES, "d1")])
def test_a_string_is_no_list(devices, boundaries):
    with pytest.raises(TypeError, match="must be a list of names, received the string"):
        with place(dense(2), devices, boundaries=boundaries):
            pass
