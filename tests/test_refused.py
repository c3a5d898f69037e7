"""What would silently train on one device, or each worker for itself, is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.train.refused import refuse_horovod_optimizer, refuse_keras_distribution


@pytest.fixture
def distributed():
    """Sets a distribution by its name, for a test."""

    def distribute(name):
        devices = keras.distribution.list_devices("cpu")
        mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
        if name == "DataParallel":
            made = keras.distribution.DataParallel(devices=devices)
        else:
            made = keras.distribution.ModelParallel(
                layout_map=keras.distribution.LayoutMap(mesh), batch_dim_name="batch", auto_shard_dataset=False
            )
        keras.distribution.set_distribution(made)

    yield distribute
    keras.distribution.set_distribution(None)


@pytest.mark.parametrize("name", ["DataParallel", "ModelParallel"])
def test_a_keras_distribution_is_refused(name, distributed):
    refuse_keras_distribution()
    distributed(name)
    with pytest.raises(ValueError, match=f"keras.distribution.{name} is set, which Keras .* ignores"):
        refuse_keras_distribution()
    keras.distribution.set_distribution(None)
    refuse_keras_distribution()


@pytest.mark.filterwarnings("ignore")
def test_why_data_parallel_does_nothing_on_this_backend(distributed):
    # Where this fails, Keras has learnt it, and need not be refused any more.
    distributed("DataParallel")
    sizes, devices = [], []

    class Witness(keras.layers.Layer):
        def call(self, x):
            tf.py_function(lambda value: sizes.append(len(value)), [x], [])
            return x

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), Witness(), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(np.ones((16, 4)), np.ones((16, 1)), batch_size=8, verbose=0)
    devices = {each.value.device.rpartition(":")[2] for each in [*model.variables, *model.optimizer.variables]}
    assert len(keras.distribution.list_devices("cpu")) == 2
    assert devices == {"0"}
    assert sizes == [8, 8]


def horovod_optimizer(optimizer, module="horovod._keras"):
    """As horovod._keras.create_distributed_optimizer makes it (0.28.1), without the exchange itself."""

    class _DistributedOptimizer(*optimizer.__class__.__bases__):
        _HAS_AGGREGATE_GRAD = True

        def __init__(self, **kwargs):
            super(self.__class__, self).__init__(**kwargs)
            self._allreduce_grads = lambda gradients, variables: gradients

    _DistributedOptimizer.__module__ = module
    cls = type(optimizer.__class__.__name__, (optimizer.__class__,), dict(_DistributedOptimizer.__dict__))
    return cls.from_config(optimizer.get_config())


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_horovods_optimizer_is_refused_whatever_its_name(name):
    plain = getattr(keras.optimizers, name)(0.1)
    wrapped = horovod_optimizer(plain)
    assert type(wrapped).__name__ == name
    for each in (plain, keras.optimizers.LossScaleOptimizer(plain), keras.optimizers.get(name), None):
        refuse_horovod_optimizer(each)
    for each in (wrapped, keras.optimizers.LossScaleOptimizer(wrapped), horovod_optimizer(plain, "elsewhere")):
        with pytest.raises(ValueError, match=f"DistributedOptimizer.* plain keras.optimizers.{name}, and strategy"):
            refuse_horovod_optimizer(each)


def test_horovods_optimizer_exchanges_nothing_under_keras_3():
    # The reason: Keras 3 calls none of the methods that Horovod overrides.
    called = []
    wrapped = horovod_optimizer(keras.optimizers.SGD(0.1))
    wrapped._allreduce_grads = lambda gradients, variables: called.append(1)
    type(wrapped)._aggregate_gradients = lambda self, pairs: called.append(2)
    type(wrapped)._compute_gradients = lambda self, *args, **kwargs: called.append(3)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(wrapped, "mse", jit_compile=False)
    before = model.get_weights()[0]
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert called == []
    assert (model.get_weights()[0] != before).any()
