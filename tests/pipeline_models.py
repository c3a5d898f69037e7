"""A model with all kinds of connections, its data, and twins of which one is cut: for the tests of pipelines."""

import keras
import numpy as np

from tests.conftest import blobs

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


def fit_skips(model, callbacks=()):
    """Batches of 8; the last is of 2."""
    x, y, weight = skips_data()
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
