"""Models of tf_keras, and what compares them with those that `load_model` gives."""

import json
import os
import zipfile

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from tfopt.load.verify import random_inputs

K2 = tf_keras.layers


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
