"""load_model against tf_keras on the same file, and against bad input."""

import json
import marshal
import os
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfopt.load import load_model
from tfopt.load.verify import random_inputs

K2 = tf_keras.layers
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*does not support masking and will therefore destroy the mask"),
]


def functional(shape, *layers, dtype=None):
    inputs = tensor = tf_keras.Input(shape, dtype=dtype)
    for layer in layers:
        tensor = layer(tensor)
    return tf_keras.Model(inputs, tensor)


def randomized(model, seed=0):
    """With weights that differ everywhere, so that no two can be swapped unseen; variances stay positive."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.dtype.is_floating and "count" not in weight.name:
            values = rng.uniform(0.05, 0.5, weight.shape) * (1 if "variance" in weight.name else rng.choice([-1, 1]))
            weight.assign(values)
    for layer in model._flatten_layers():
        layer.finalize_state()
    return model


def save(model, folder, kind):
    """Saves a tf_keras model as "h5", "keras", "hdf5 in keras" or "saved_model"."""
    name = {"h5": "m.h5", "keras": "m.keras", "hdf5 in keras": "m.keras", "saved_model": "m"}[kind]
    path = folder / name
    if kind == "keras":
        model.save(path)
    elif kind == "hdf5 in keras":
        model.save(folder / "m.h5")
        os.rename(folder / "m.h5", path)
    else:
        model.save(path, save_format="h5" if kind == "h5" else "tf", include_optimizer=False)
    return path


def assert_same(model, reference, tolerance=1e-5):
    inputs = random_inputs(reference)
    reference.reset_states()
    expected = tf.nest.flatten(reference(inputs, training=False))
    actual = keras.tree.flatten(model(inputs, training=False))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        if getattr(other, "_keras_mask", None) is not None:
            one, other = one[other._keras_mask], other[other._keras_mask]
        scale = max(1.0, float(tf.reduce_max(tf.abs(tf.cast(other, "float32")))))
        np.testing.assert_allclose(
            np.float32(one), np.float32(other), rtol=0, atol=tolerance * scale, err_msg=model.name
        )
    # Not all zeros or all one value: otherwise any two models would agree.
    assert any(np.ptp(np.float32(each)) > 0 for each in expected)


def dense():
    return tf_keras.Sequential(
        [
            K2.Dense(
                8,
                activation="gelu",
                input_shape=(5,),
                kernel_initializer=tf_keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
                kernel_regularizer=tf_keras.regularizers.L1L2(0.1, 0.2),
                kernel_constraint=tf_keras.constraints.MaxNorm(3.0),
                name="first",
            ),
            K2.Dropout(0.5),
            K2.Dense(3, activation="softmax", bias_initializer="ones", activity_regularizer="l2"),
        ],
        name="a_dense",
    )


def convolutions():
    return functional(
        (9, 8, 4),
        K2.Conv2D(8, 3, strides=2, padding="same", groups=2, use_bias=False),
        K2.BatchNormalization(momentum=0.9, epsilon=0.01),
        K2.ReLU(6.0, negative_slope=0.1),
        K2.DepthwiseConv2D(3, depth_multiplier=2, padding="same", depthwise_regularizer="l2"),
        K2.SeparableConv2D(6, 3, padding="same", activation="swish"),
        K2.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=1),
        K2.UpSampling2D(2, interpolation="bilinear"),
        K2.ZeroPadding2D(((1, 0), (0, 2))),
        K2.AveragePooling2D(3, padding="same"),
        K2.PReLU(shared_axes=[1, 2]),
        K2.GlobalAveragePooling2D(keepdims=True),
        K2.Flatten(),
    )


def one_dimensional():
    return functional(
        (12, 3),
        K2.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="elu"),
        K2.DepthwiseConv1D(3),
        K2.SeparableConv1D(6, 3),
        K2.Conv1DTranspose(4, 3),
        K2.LeakyReLU(0.2),
        K2.ThresholdedReLU(0.3),
        K2.MaxPooling1D(2),
        K2.Cropping1D(1),
        K2.Permute((2, 1)),
        K2.Reshape((-1, 2)),
        K2.LayerNormalization(epsilon=1e-3),
        K2.GlobalMaxPooling1D(),
        K2.RepeatVector(3),
    )


def recurrent():
    return functional(
        (6, 3),
        K2.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid"),
        K2.GRU(5, return_sequences=True, reset_after=True),
        K2.GRU(4, return_sequences=True, reset_after=False, go_backwards=True),
        K2.SimpleRNN(3, return_sequences=True),
        K2.Bidirectional(K2.LSTM(3, return_sequences=True), merge_mode="sum", name="both"),
        K2.Bidirectional(
            K2.GRU(2, return_sequences=True),
            backward_layer=K2.GRU(2, return_sequences=True, go_backwards=True),
        ),
        K2.RNN([K2.LSTMCell(3), K2.GRUCell(4)], return_sequences=True),
        K2.TimeDistributed(K2.Dense(3, activation="tanh")),
        K2.SimpleRNN(2, unroll=True),
    )


def encoder_decoder():
    source, target = tf_keras.Input((None, 3), name="source"), tf_keras.Input((None, 2), name="target")
    _, h, c = K2.LSTM(4, return_state=True)(source)
    decoded = K2.LSTM(4, return_sequences=True)(target, initial_state=[h, c])
    return tf_keras.Model([source, target], K2.Dense(2)(decoded))


def conv_lstm():
    return functional(
        (3, 5, 5, 2), K2.ConvLSTM2D(3, 2, return_sequences=True), K2.Conv3D(2, 2), K2.GlobalMaxPooling3D()
    )


def stateful():
    inputs = tf_keras.Input(batch_shape=(2, 4, 3))
    return tf_keras.Model(inputs, K2.GRU(3, stateful=True)(inputs))


def masked_embedding():
    tokens = tf_keras.Input((7,), dtype="int32", name="tokens")
    x = K2.Embedding(11, 6, mask_zero=True, input_length=7)(tokens)
    x = x + K2.Bidirectional(K2.SimpleRNN(3, return_sequences=True))(x)
    return tf_keras.Model(tokens, K2.Dense(2)(K2.LSTM(4)(x)))


def attention():
    tokens = tf_keras.Input((6,), name="tokens")
    x = K2.Embedding(9, 8, mask_zero=True)(tokens)
    y = K2.MultiHeadAttention(2, 4, value_dim=3, name="heads")(x, x, use_causal_mask=True)
    x = K2.LayerNormalization()(K2.Add()([x, y]))
    z = K2.MultiHeadAttention(2, 4, output_shape=5)(x, y)
    w = K2.Attention(use_scale=True)([x, y])
    v = K2.AdditiveAttention()([x, y])
    e = K2.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")(K2.Dropout(0.3)(y))
    return tf_keras.Model(tokens, [K2.GlobalAveragePooling1D()(z), K2.LSTM(3)(w), K2.GlobalAveragePooling1D()(v), e])


def attention_scores():
    query, value = tf_keras.Input((4, 6)), tf_keras.Input((5, 6))
    y, scores = K2.MultiHeadAttention(2, 4, attention_axes=(1,))(query, value, return_attention_scores=True)
    return tf_keras.Model([query, value], [y, scores, K2.Attention(score_mode="concat")([query, value, value])])


def masking():
    return functional((5, 3), K2.Masking(0.0), K2.SimpleRNN(4, return_sequences=True), K2.SimpleRNN(3))


def names_with_slashes():
    inputs = tf_keras.Input((4,), name="in/put")
    x = K2.Dense(3, name="block/a")(inputs)
    y = K2.Dense(3, name="block_a")(inputs)
    return tf_keras.Model(inputs, K2.Add(name="add")([x, y + x]), name="whole/model")


def operators():
    image = tf_keras.Input((4, 6), name="image")
    x = tf.nn.relu6(image + 3.0) * (1.0 / 6.0)
    parts = [
        x[:, 0], x[:, -1, ::2], x[:, 1:3, 2], 2.0 - x[:, 0], x[:, 0] / 3, -x[:, 0], abs(x[:, 0]),
        x[:, 0] ** 2,
        x[:, 0] // 0.3, x[:, 0] % 0.4, tf.reduce_mean(x, axis=1), tf.math.reduce_max(x, [1]),
        tf.squeeze(tf.expand_dims(x[:, 0], 1), axis=1), tf.matmul(x, x, transpose_b=True)[:, 0],
        tf.where(x > 0.5, x, 0.0)[:, 1], tf.clip_by_value(x, 0.2, 0.4)[:, 2],
        tf.cast(x >= 0.5, "float32")[:, 3],
        tf.transpose(x, [0, 2, 1])[:, 0], tf.tile(x[:, 0], [1, 2]), tf.nn.softmax(x[:, 0]),
        tf.nn.silu(x[:, 0]),
        tf.split(x, 2, axis=2)[1][:, 0], tf.split(x, [1, 5], axis=2)[1][:, 0], tf.stack([x, x], 1)[:, 1, 0],
        tf.unstack(x, axis=1)[2], tf.pad(x, [[0, 0], [1, 0], [0, 2]])[:, 1],
        tf.math.l2_normalize(x, -1)[:, 0], tf.maximum(x, 0.3)[:, 0], tf.gather(x, [2, 0], axis=2)[:, 0],
        x[:, 0] * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], tf_keras.backend.mean(x, axis=1),
        x[:, :, tf.newaxis][:, 0, 0],
        tf.reshape(x, [-1, 24]), tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1] * tf.shape(x)[2]]),
        tf.one_hot(tf.argmax(x, axis=2), 6)[:, 0], tf.nn.leaky_relu(x[:, 0] - 0.5),
        tf.sqrt(tf.square(x))[:, 0],
        tf.image.resize(x[:, :, :, None], [2, 3])[:, 0, :, 0], tf.nn.avg_pool1d(x, 2, 2, "SAME")[:, 0],
        tf.identity(tf.add_n([x, x]))[:, 0], tf.cumsum(x, axis=1)[:, 3], tf.reverse(x, [1])[:, 0],
    ]  # fmt: skip
    return tf_keras.Model(image, K2.Dense(4, name="multiply")(tf.concat(parts, axis=-1)))


def nested_and_shared():
    inner = tf_keras.Sequential([K2.Dense(4, input_shape=(3,)), K2.BatchNormalization()], name="inner")
    tower = functional((3,), inner, K2.Activation("tanh"), K2.Dense(2))
    left, right = tf_keras.Input((3,), name="left"), tf_keras.Input((3,), name="right")
    shared = K2.Dense(3, name="shared")
    pair = [tower(shared(left)), tower(shared(right), training=False)]
    return tf_keras.Model({"l": left, "r": right}, {"far": K2.Subtract()(pair), "near": K2.Dot(1)(pair)})


def time_distributed_model():
    inner = functional((4, 4, 1), K2.Conv2D(2, 2), K2.BatchNormalization(), K2.Flatten(), K2.Dense(3))
    return functional((3, 4, 4, 1), K2.TimeDistributed(inner), K2.LSTM(2))


def preprocessing():
    normalization = K2.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 6, 6, 3)))
    return functional(
        (6, 6, 3),
        K2.Rescaling(1 / 127.5, offset=-1),
        K2.RandomFlip("horizontal"),
        K2.RandomRotation(0.1),
        K2.Resizing(8, 7),
        K2.CenterCrop(6, 6),
        normalization,
        K2.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 2.0]),
        K2.GaussianNoise(0.1),
        K2.SpatialDropout2D(0.2),
        K2.GlobalAveragePooling2D(),
    )


def merges():
    a, b = tf_keras.Input((4,)), tf_keras.Input((4,))
    merged = [layer()([a, b]) for layer in (K2.Add, K2.Multiply, K2.Average, K2.Maximum, K2.Minimum, K2.Concatenate)]
    return tf_keras.Model([a, b], K2.Dense(3, activation="hard_sigmoid")(K2.Concatenate()(merged)))


def normalizations():
    return functional(
        (4, 4, 6),
        K2.GroupNormalization(3),
        K2.UnitNormalization(),
        K2.LayerNormalization(axis=[1, 2]),
        K2.BatchNormalization(scale=False, synchronized=False),
        K2.Softmax(axis=2),
        K2.Dense(2, activation=K2.LeakyReLU(0.3)),
    )


def frozen():
    base = functional((4,), K2.Dense(3, name="a"), K2.BatchNormalization(), K2.Dense(3, name="b"))
    base.trainable = False
    model = functional((4,), base, K2.Dense(2, name="head"), K2.Dense(2, name="fixed", trainable=False))
    return model


MODELS = [
    dense, convolutions, one_dimensional, recurrent, encoder_decoder, conv_lstm, stateful, masked_embedding,
    attention, attention_scores, masking, names_with_slashes, operators, nested_and_shared,
    time_distributed_model, preprocessing, merges, normalizations, frozen,
]  # fmt: skip


QUICK = {(make, ("h5", "keras")[position % 2]) for position, make in enumerate(MODELS)}


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(make, kind, marks=() if (make, kind) in QUICK else pytest.mark.slow, id=f"{make.__name__}-{kind}")
        for make in MODELS
        for kind in ("h5", "keras", "saved_model")
    ],
)
def test_outputs_equal_tf_keras(make, kind, tmp_path):
    reference = randomized(make())
    model = load_model(save(reference, tmp_path, kind))
    assert isinstance(model, keras.Model)
    assert_same(model, reference)
    model.save(tmp_path / "again.keras")
    assert_same(keras.models.load_model(tmp_path / "again.keras"), reference)


@pytest.mark.parametrize("kind", ["hdf5 in keras", "saved_model"])
@pytest.mark.parametrize("make", [convolutions, nested_and_shared, names_with_slashes], ids=lambda make: make.__name__)
def test_other_formats(make, kind, tmp_path):
    reference = randomized(make())
    assert_same(load_model(save(reference, tmp_path, kind)), reference)


APPLICATIONS = [
    ("MobileNet", 32), ("MobileNetV2", 32), ("MobileNetV3Small", 64), ("MobileNetV3Large", 64),
    ("EfficientNetB0", 32), ("EfficientNetV2B0", 32), ("ResNet50", 32), ("DenseNet121", 32),
    ("NASNetMobile", 32),
    ("Xception", 71), ("InceptionV3", 75),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*each, marks=() if each[0] == "MobileNetV3Small" else pytest.mark.slow, id=each[0])
        for each in APPLICATIONS
    ],
)
@pytest.mark.filterwarnings("ignore:The `keras.initializers.serialize")
def test_applications(name, size, tmp_path):
    make = getattr(tf_keras.applications, name)
    reference = make(weights=None, classes=7, input_shape=(size, size, 3))
    for weight in reference.weights:
        if "moving_mean" in weight.name or "beta" in weight.name:
            weight.assign(tf.random.stateless_uniform(weight.shape, [0, 1], -0.2, 0.2))
    reference.save(tmp_path / "m.h5")
    model = load_model(tmp_path / "m.h5")
    assert_same(model, reference)
    assert model.count_params() == reference.count_params()


def test_names_and_trainable_flags_stay(tmp_path):
    reference = randomized(frozen())
    model = load_model(save(reference, tmp_path, "keras"))
    assert [each.name for each in model.layers] == [each.name for each in reference.layers]
    assert model.get_layer("head").trainable
    assert not model.get_layer("fixed").trainable
    assert [each.path for each in model.trainable_variables] == ["head/kernel", "head/bias"]
    inner = model.layers[1]
    assert [each.trainable for each in inner.layers[1:]] == [False, False, False]
    assert load_model(save(randomized(dense()), tmp_path, "h5")).name == "a_dense"


def test_slashes_in_names_become_underscores_and_stay_unique(tmp_path):
    model = load_model(save(names_with_slashes(), tmp_path, "h5"))
    names = [each.name for each in model.layers]
    assert {"in_put", "block_a", "block_a_1", "add"} <= set(names)
    assert len({each.name for each in model.operations}) == len(model.operations)
    assert model.name == "whole_model"


def test_shared_layers_stay_shared(tmp_path):
    reference = randomized(nested_and_shared())
    model = load_model(save(reference, tmp_path, "h5"))
    assert len(model.get_layer("shared")._inbound_nodes) == 2
    assert model.count_params() == reference.count_params()
    assert set(model.input) == {"l", "r"}
    assert set(model.output) == {"far", "near"}


def test_configs_of_layers_stay(tmp_path):
    model = load_model(save(dense(), tmp_path, "h5"))
    layer = model.get_layer("first")
    assert (layer.activation, layer.units) == (keras.activations.gelu, 8)
    assert layer.kernel_initializer.get_config()["scale"] == 2.0
    assert (float(layer.kernel_regularizer.l1), float(layer.kernel_regularizer.l2)) == pytest.approx((0.1, 0.2))
    assert layer.kernel_constraint.max_value == 3.0
    assert model.input_shape == (None, 5)
    assert not model.compiled


def test_trains_on(tmp_path):
    model = load_model(save(randomized(dense()), tmp_path, "keras"))
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = model.get_weights()
    keras.utils.set_random_seed(0)
    history = model.fit(np.ones((8, 5)), np.zeros(8), epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert not np.array_equal(before[0], model.get_weights()[0])


def test_mixed_precision(tmp_path):
    policy = tf_keras.mixed_precision.Policy("mixed_bfloat16")
    reference = randomized(functional((5,), K2.Dense(4, dtype=policy), K2.Dense(3, dtype="float32")))
    model = load_model(save(reference, tmp_path, "h5"))
    assert model.layers[1].dtype_policy.name == "mixed_bfloat16"
    assert_same(model, reference, tolerance=2e-2)


def test_ellipsis_in_a_slice(tmp_path):
    inputs = tf_keras.Input((4, 6))
    reference = tf_keras.Model(inputs, inputs[..., 2:4] * 2.0)
    assert_same(load_model(save(reference, tmp_path, "h5")), reference)


def test_keras3_files(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out")])
    model.compile("adam", "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model.fit(x, x[:, :2], verbose=0)
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    os.link(tmp_path / "m.keras", tmp_path / "zip.h5")
    os.link(tmp_path / "m.h5", tmp_path / "hdf5.keras")
    for name in ("m.keras", "zip.h5"):
        loaded = load_model(tmp_path / name)
        np.testing.assert_array_equal(loaded(x), model(x))
        assert loaded.compiled
        assert int(loaded.optimizer.iterations.numpy()) == 1
    for name in ("m.h5", "hdf5.keras"):
        # Keras 3.15 writes "mse" into HDF5 files so that it cannot read it again.
        with pytest.warns(UserWarning, match="is loaded uncompiled"):
            loaded = load_model(tmp_path / name)
        np.testing.assert_array_equal(loaded(x), model(x))


def test_keras3_file_with_an_unknown_loss_loads_uncompiled(tmp_path):
    def own_loss(y, p):
        return keras.ops.mean(y - p)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", own_loss)
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    model.save(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match=r"is loaded uncompiled.*own_loss"):
        assert not load_model(tmp_path / "m.keras").compiled
    assert load_model(tmp_path / "m.keras", {"own_loss": own_loss}).compiled


class Scale2(tf_keras.layers.Layer):
    def __init__(self, power=1.0, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def build(self, shape):
        self.factor = self.add_weight("factor", shape[-1:], initializer="ones")
        self.shift = self.add_weight("shift", shape[-1:], initializer="zeros", trainable=False)
        super().build(shape)

    def call(self, inputs):
        return (inputs * self.factor) ** self.power + self.shift

    def get_config(self):
        return {**super().get_config(), "power": self.power}


Scale2.__name__ = "Scale"


class Scale(keras.layers.Layer):
    def __init__(self, power=1.0, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], initializer="ones", name="factor")
        self.shift = self.add_weight(shape=shape[-1:], initializer="zeros", name="shift", trainable=False)

    def call(self, inputs):
        return (inputs * self.factor) ** self.power + self.shift

    def get_config(self):
        return {**super().get_config(), "power": self.power}


@pytest.mark.parametrize("kind", ["h5", "keras", "saved_model"])
def test_custom_layers(kind, tmp_path):
    reference = randomized(functional((4,), K2.Dense(3), Scale2(2.0, name="scaled"), K2.Dense(2)))
    path = save(reference, tmp_path, kind)
    with pytest.raises(ValueError, match=r"'scaled' needs the class 'Scale'.*custom_objects={'Scale': Scale}"):
        load_model(path)
    model = load_model(path, {"Scale": Scale})
    assert isinstance(model.get_layer("scaled"), Scale)
    assert model.get_layer("scaled").power == 2.0
    assert_same(model, reference)
    with pytest.raises(TypeError, match=r"custom_objects\['Scale'\] is a class of tf_keras"):
        load_model(path, {"Scale": Scale2})


@pytest.mark.parametrize("sequential", [True, False])
def test_a_custom_layer_that_computes_something_else_is_named(sequential, tmp_path):
    class Other(Scale):
        def call(self, inputs):
            return super().call(inputs) * 1.01

    layers = [K2.Dense(3), Scale2(2.0, name="scaled"), K2.Dense(2)]
    if sequential:
        reference = tf_keras.Sequential([K2.InputLayer((4,)), *layers])
    else:
        reference = functional((4,), *layers)
    path = save(randomized(reference), tmp_path, "saved_model")
    with pytest.raises(RuntimeError, match=r"differs from tf_keras by .*first layer that differs is 'scaled'"):
        load_model(path, {"Scale": Other})


def test_custom_activations(tmp_path):
    def doubled(x):
        return keras.ops.tanh(x) * 2

    reference = functional((4,), K2.Dense(3, activation=doubled))
    path = save(reference, tmp_path, "keras")
    with pytest.raises(ValueError, match=r"'dense.*' calls the function 'doubled'"):
        load_model(path)
    assert_same(load_model(path, {"doubled": doubled}), reference)


@pytest.mark.parametrize("kind", ["h5", "keras", "saved_model"])
def test_marshalled_code_is_refused_before_it_is_unmarshalled(kind, tmp_path, monkeypatch):
    inner = functional((4,), K2.Dense(3), K2.Lambda(lambda x: x * 2.0, name="evil"))
    reference = functional((2, 4), K2.TimeDistributed(inner))
    path = save(reference, tmp_path, kind)
    with monkeypatch.context() as patched:
        patched.setattr(marshal, "loads", lambda code: pytest.fail("code was unmarshalled"))
        with pytest.raises(ValueError, match=r"'evil' holds marshalled Python code.*safe_mode=False"):
            load_model(path)
    assert_same(load_model(path, safe_mode=False), reference)


def test_marshalled_code_in_keras3_files_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2, name="evil")])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"'evil' holds marshalled Python code.*safe_mode=False"):
            load_model(tmp_path / name)
    assert load_model(tmp_path / "m.keras", safe_mode=False).predict(np.ones((1, 3)), verbose=0).tolist() == [[2, 2, 2]]


def rewrite(source, target, change):
    """Copies a .keras file with its config changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            new.writestr(name, content)


@pytest.mark.parametrize("safe_mode", [True, False])
def test_modules_that_a_file_names_are_not_imported(safe_mode, tmp_path):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = save(functional((4,), K2.Dense(3, name="out")), tmp_path, "keras")

    def plant(config):
        config["config"]["layers"][1]["config"]["activation"] = {
            "module": "planted", "class_name": "function", "config": "run", "registered_name": "run"
        }  # fmt: skip

    rewrite(path, tmp_path / "bad.keras", plant)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ValueError, match="'out' calls the function 'run', which is neither"):
            load_model(tmp_path / "bad.keras", safe_mode=safe_mode)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_saved_model_that_touches_files_is_refused(tmp_path):
    class Reader(tf_keras.layers.Layer):
        def call(self, inputs):
            return inputs + float(len("x")) * tf.cast(tf.strings.length(tf.io.read_file(secret)), "float32")

    secret = str(tmp_path / "secret")
    (tmp_path / "secret").write_text("abc")
    path = save(functional((4,), Reader()), tmp_path, "saved_model")
    with pytest.raises(ValueError, match=r"has the operations ReadFile, which touch files.*safe_mode=False"):
        load_model(path, {"Reader": keras.layers.Identity})


def test_operation_without_counterpart_is_named(tmp_path):
    inputs = tf_keras.Input((4, 4))
    path = save(tf_keras.Model(inputs, tf.linalg.det(inputs)), tmp_path, "h5")
    with pytest.raises(ValueError, match=r"'tf.linalg.det' calls tf.linalg.det, which has no counterpart"):
        load_model(path)
    reshaped = tf.reshape(inputs, [tf.shape(inputs)[0], 2, tf.shape(inputs)[0] // tf.shape(inputs)[0], 8])
    path = save(tf_keras.Model(inputs, reshaped), tmp_path, "h5")
    with pytest.raises(ValueError, match=r"'tf.compat.v1.floor_div.*' cannot be expressed in keras.ops"):
        load_model(path)


def test_operation_of_an_old_tensorflow_is_named(tmp_path):
    path = save(functional((4,), K2.Dense(3, name="out")), tmp_path, "keras")

    def age(config):
        config["config"]["layers"][1]["class_name"] = "TensorFlowOpLayer"

    rewrite(path, tmp_path / "old.keras", age)
    with pytest.raises(ValueError, match=r"'out' is an operation as TensorFlow 2.0 to 2.3 recorded it"):
        load_model(tmp_path / "old.keras")


def test_vocabularies(tmp_path):
    text = K2.TextVectorization(output_sequence_length=4)
    text.adapt(["a small model", "a fast model"])
    words, labels = tf_keras.Input((), dtype="string"), tf_keras.Input((1,), dtype="string")
    tokens = K2.Embedding(text.vocabulary_size(), 3)(text(words))
    index = K2.StringLookup(vocabulary=["fast", "small"], output_mode="one_hot")(labels)
    reference = tf_keras.Model([words, labels], [tokens, index])
    model = load_model(save(reference, tmp_path, "keras"))
    inputs = [tf.constant(["a fast thing"]), tf.constant([["small"]])]
    for one, other in zip(model(inputs), reference(inputs), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model(inputs)[1].numpy().tolist() == [[0, 0, 1]]


def test_layer_that_keras3_does_not_have_is_named(tmp_path):
    path = save(functional((5, 2), K2.LocallyConnected1D(3, 2, name="local")), tmp_path, "h5")
    with pytest.raises(ValueError, match="'local' is a LocallyConnected1D, which Keras 3 does not have"):
        load_model(path)


def test_argument_that_keras3_does_not_have_is_named(tmp_path):
    path = save(functional((5, 2), K2.LSTM(3, time_major=True, name="turned")), tmp_path, "h5")
    with pytest.raises(ValueError, match="LSTM 'turned' has time_major=True, which Keras 3 does not know"):
        load_model(path)


def test_keras3_file_with_an_unknown_layer_names_it(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Scale(name="scaled")])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"'scaled' needs the class 'Scale'.*custom_objects={'Scale': Scale}"):
            load_model(tmp_path / name)
        assert isinstance(load_model(tmp_path / name, {"Scale": Scale}).get_layer("scaled"), Scale)


def test_subclassed_model_is_named(tmp_path):
    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = K2.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ValueError, match=r"'own.*' needs the class 'Own'"):
        load_model(save(model, tmp_path, "saved_model"))


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_sequential_without_input_shape(tmp_path):
    path = save(tf_keras.Sequential([K2.Dense(2)], name="open"), tmp_path, "keras")
    with pytest.raises(ValueError, match="'open' was saved without an input shape"):
        load_model(path)


def test_missing_file_names_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        load_model(tmp_path / "model.keras")
    (tmp_path / "modle.keras").touch()
    with pytest.raises(FileNotFoundError, match=r"nearest name in .* is 'modle.keras'"):
        load_model(tmp_path / "model.keras")
    with pytest.raises(FileNotFoundError, match=f"Its folder .*absent does not exist either; {tmp_path} does"):
        load_model(tmp_path / "absent" / "model.keras")


@pytest.mark.parametrize("kind", ["h5", "keras"])
@pytest.mark.parametrize("origin", [keras, tf_keras], ids=["keras3", "keras2"])
def test_truncated_files(origin, kind, tmp_path):
    layers = origin.layers
    path = tmp_path / f"m.{kind}"
    origin.Sequential([layers.InputLayer((3,)), layers.Dense(50)]).save(path)
    whole = path.read_bytes()
    for kept in (len(whole) - 1, len(whole) // 2, 100):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"damaged or truncated \({kept:,} bytes\)"):
            load_model(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is empty \(0 bytes\)"):
        load_model(path)


def test_keras_file_with_a_flipped_byte_or_a_missing_member(tmp_path):
    path = save(functional((3,), K2.Dense(50)), tmp_path, "keras")
    content = bytearray(path.read_bytes())
    content[content.index(b"\x89HDF") + 3000] ^= 255
    (tmp_path / "flipped.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged.*checksum of model.weights.h5"):
        load_model(tmp_path / "flipped.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "less.keras", "w") as new:
        new.writestr("config.json", old.read("config.json"))
    with pytest.raises(ValueError, match=r"damaged.*it lacks metadata.json, model.weights.h5"):
        load_model(tmp_path / "less.keras")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as new:
        new.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"is a zip file, but no .keras file: .* a.txt"):
        load_model(tmp_path / "other.zip")


def test_weights_only_files(tmp_path):
    tf_keras.Sequential([K2.Dense(2, input_shape=(3,))]).save_weights(tmp_path / "two.h5")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(tmp_path / "three.weights.h5")
    for name in ("two.h5", "three.weights.h5"):
        with pytest.raises(ValueError, match=rf"holds weights only.*model.load_weights\('.*{name}'\)"):
            load_model(tmp_path / name)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = [1, 2]
    with pytest.raises(ValueError, match=r"is an HDF5 file, but no Keras model.*It holds images"):
        load_model(tmp_path / "data.h5")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tflite", b"\x1c\0\0\0TFL3", r"a LiteRT \(TFLite\) file.*Interpreter"),
        ("m.keras", b"\x1c\0\0\0TFL3", r"a LiteRT \(TFLite\) file"),
        ("m.pt", b"\x80\x02", "a PyTorch file"),
        ("m.onnx", b"\x08\x07", "an ONNX file"),
        ("m.json", b"{}", "an architecture without weights"),
        ("m.keras", b"version https://git-lfs.github.com", "git lfs pull"),
        ("m.h5", b"<!DOCTYPE html>", "a web page"),
        ("m.keras", b"abcdefgh", r"no Keras model: it starts with b'abcdefgh' \(8 bytes\)"),
        ("saved_model.pb", b"abc", "one file of a SavedModel: give its folder"),
    ],
)
def test_other_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / name)


def test_pytorch_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", "")
    with pytest.raises(ValueError, match="a PyTorch file"):
        load_model(tmp_path / "m.pt")


def test_folders(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"no SavedModel: it has no saved_model.pb. It holds nothing"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "m.keras").touch()
    with pytest.raises(ValueError, match=r"Did you mean .*run/m.keras?"):
        load_model(tmp_path / "run")


def test_saved_models_without_layers(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(tf.Module(), str(tmp_path / "plain"))
    for name in ("exported", "plain"):
        with pytest.raises(ValueError, match=r"without Keras layers.*model.save\('name.keras'\).*TFSMLayer"):
            load_model(tmp_path / name)


def test_damaged_saved_model(tmp_path):
    path = save(functional((3,), K2.Dense(2)), tmp_path, "saved_model")
    metadata = (path / "keras_metadata.pb").read_bytes()
    (path / "keras_metadata.pb").write_bytes(metadata[:-7])
    with pytest.raises(ValueError, match=r"keras_metadata.pb is damaged or truncated \("):
        load_model(path)
    (path / "keras_metadata.pb").write_bytes(metadata)
    data = path / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_model(path)
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match=r"damaged: it has no variables/variables.index"):
        load_model(path)
    graph = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(ValueError, match=r"damaged: its saved_model.pb cannot be read"):
        load_model(path)


def test_the_two_keras_stay_apart(tmp_path):
    """tf.keras and the environment are as before, and importing the package does not import tf_keras."""
    save(functional((3,), K2.Dense(2, name="same")), tmp_path, "h5")
    program = """
import os, sys
import keras, tensorflow as tf
from tfopt.load import load_model
assert "tf_keras" not in sys.modules
before = dict(os.environ)
first = keras.layers.Dense(2, name="same")
model = load_model(sys.argv[1])
assert dict(os.environ) == before and "TF_USE_LEGACY_KERAS" not in before
assert tf.keras.__version__.startswith("3.") and tf.keras.Model is keras.Model
assert type(model.get_layer("same")) is keras.layers.Dense
assert not keras.saving.get_custom_objects().keys() - {"tfopt>hard_sigmoid"}
assert keras.layers.Dense(1).name == "dense"
"""
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "m.h5"], check=True, env=environment)
