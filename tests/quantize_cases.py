"""Layers, activations and raw operators: each as a function of tensors, with LiteRT's operators for it.

Tensors: `image` of (8, 8, 4), `other` likewise, `sequence` of (12, 6), `vector` of (16,).
"""

import functools

import keras
import numpy as np
from keras import layers, ops

RNG = np.random.default_rng(0)
ROW = RNG.normal(size=4).astype("float32")


def uniform(low, high):
    return keras.initializers.RandomUniform(low, high, seed=1)


def then(*steps):
    """The layers one behind the other."""
    return lambda x: functools.reduce(lambda value, step: step(value), steps, x)


def adapted(**options):
    layer = layers.Normalization(**options)
    layer.adapt(np.random.default_rng(3).normal(1.0, 2.0, (64, 8, 8, 4)).astype("float32"))
    return layer


def twice(step):
    """A tensor with what a step makes of it."""
    return lambda x: layers.Concatenate()([x, layers.MaxPooling2D(1)(step(x))])


def leaky(x):
    return ops.leaky_relu(x, 0.3)


def norm():
    """BatchNormalization as after training."""
    return layers.BatchNormalization(
        beta_initializer=uniform(-1.0, 1.0),
        gamma_initializer=uniform(-1.5, 1.5),
        moving_mean_initializer=uniform(-1.0, 1.0),
        moving_variance_initializer=uniform(0.2, 2.0),
    )


def both(kind, *arguments, **options):
    """An operator of two images."""
    return lambda image, other: kind(*arguments, **options)([image, other])


LINEAR = {
    "conv_2d": (lambda image: layers.Conv2D(8, 3, padding="same", bias_initializer="ones")(image), "CONV_2D"),
    "conv_2d_dilated": (lambda image: layers.Conv2D(8, 3, dilation_rate=2, padding="same")(image), "CONV_2D"),
    "conv_2d_strided": (lambda image: layers.Conv2D(8, (3, 1), strides=(2, 1), use_bias=False)(image), "CONV_2D"),
    "conv_2d_norm_relu": (lambda image: then(layers.Conv2D(8, 3), norm(), layers.ReLU())(image), "CONV_2D"),
    "depthwise_2d": (lambda image: layers.DepthwiseConv2D(3, depth_multiplier=2)(image), "DEPTHWISE_CONV_2D"),
    "depthwise_2d_dilated": (lambda image: layers.DepthwiseConv2D(3, dilation_rate=2)(image), "DEPTHWISE_CONV_2D"),
    "depthwise_2d_norm_relu6": (
        lambda image: then(layers.DepthwiseConv2D(3, 2), norm(), layers.ReLU(6))(image),
        "DEPTHWISE_CONV_2D",
    ),
    "separable_2d": (
        lambda image: layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu")(image),
        "DEPTHWISE_CONV_2D CONV_2D",
    ),
    "separable_2d_norm": (
        lambda image: then(layers.SeparableConv2D(6, 3, 2, use_bias=False), norm())(image),
        "DEPTHWISE_CONV_2D CONV_2D",
    ),
    "transposed_2d": (lambda image: layers.Conv2DTranspose(5, 3, strides=2, padding="same")(image), "TRANSPOSE_CONV"),
    "transposed_2d_norm_relu": (
        lambda image: then(layers.Conv2DTranspose(5, 2, 2), norm(), layers.ReLU())(image),
        "TRANSPOSE_CONV",
    ),
    "conv_1d": (lambda sequence: layers.Conv1D(8, 3, strides=2)(sequence), "RESHAPE CONV_2D RESHAPE"),
    "conv_1d_causal": (
        lambda sequence: layers.Conv1D(8, 3, padding="causal", dilation_rate=2)(sequence),
        "PAD RESHAPE CONV_2D RESHAPE",
    ),
    "conv_1d_norm_relu": (
        lambda sequence: then(layers.Conv1D(8, 3), norm(), layers.ReLU())(sequence),
        "RESHAPE CONV_2D RESHAPE",
    ),
    "depthwise_1d": (
        lambda sequence: layers.DepthwiseConv1D(3, strides=2, padding="same")(sequence),
        "RESHAPE DEPTHWISE_CONV_2D RESHAPE",
    ),
    "separable_1d": (
        lambda sequence: layers.SeparableConv1D(8, 3, dilation_rate=2)(sequence),
        "RESHAPE DEPTHWISE_CONV_2D CONV_2D RESHAPE",
    ),
    "transposed_1d": (
        lambda sequence: layers.Conv1DTranspose(5, 3, strides=2)(sequence),
        "RESHAPE TRANSPOSE_CONV RESHAPE",
    ),
    "dense": (lambda vector: layers.Dense(8)(vector), "FULLY_CONNECTED"),
    "dense_norm_relu": (lambda vector: then(layers.Dense(8), norm(), layers.ReLU())(vector), "FULLY_CONNECTED"),
    "dense_of_sequence": (lambda sequence: layers.Dense(8, activation="relu")(sequence), "FULLY_CONNECTED"),
    "dense_of_image": (lambda image: layers.Dense(8)(image), "FULLY_CONNECTED"),
    "einsum_dense": (
        lambda sequence: layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d")(sequence),
        "FULLY_CONNECTED",
    ),
    "dense_regularized": (
        lambda vector: layers.Dense(8, activation="relu", activity_regularizer="l2")(vector),
        "FULLY_CONNECTED",
    ),
}

GROUPED = {
    "conv_2d_grouped": (lambda image: layers.Conv2D(8, 3, groups=2)(image), "CONV_2D"),
    "conv_2d_grouped_norm": (lambda image: then(layers.Conv2D(8, 3, groups=4), norm())(image), "CONV_2D"),
    "conv_1d_grouped": (
        lambda sequence: layers.Conv1D(6, 3, groups=3, padding="same")(sequence),
        "RESHAPE CONV_2D RESHAPE",
    ),
}

SCALES = {
    "batch_norm": (lambda image: norm()(image), "DEPTHWISE_CONV_2D"),
    "batch_norm_relu": (lambda image: then(norm(), layers.ReLU())(image), "DEPTHWISE_CONV_2D"),
    "batch_norm_of_vector": (lambda vector: norm()(vector), "RESHAPE DEPTHWISE_CONV_2D RESHAPE"),
    "batch_norm_of_sequence": (lambda sequence: norm()(sequence), "RESHAPE DEPTHWISE_CONV_2D RESHAPE"),
    "rescaling": (lambda image: layers.Rescaling([0.1, 0.2, 0.3, 4.0], offset=-1.0)(image), "DEPTHWISE_CONV_2D"),
    "normalization": (lambda image: adapted()(image), "DEPTHWISE_CONV_2D"),
    "normalization_of_all": (lambda image: adapted(axis=None)(image), "DEPTHWISE_CONV_2D"),
    "normalization_inverted": (lambda image: adapted(invert=True)(image), "DEPTHWISE_CONV_2D"),
    "scales_in_a_row": (lambda image: then(layers.Rescaling(1 / 3), adapted(), norm())(image), "DEPTHWISE_CONV_2D"),
}

ACTIVATIONS = {
    "relu": (lambda image: layers.ReLU()(image), ""),
    "relu_max": (lambda image: layers.ReLU(max_value=1.0)(image), ""),
    "relu_slope": (lambda image: layers.ReLU(negative_slope=0.3)(image), "LEAKY_RELU"),
    "relu_slope_max": (lambda image: layers.ReLU(negative_slope=0.3, max_value=1.0)(image), "LEAKY_RELU"),
    "relu_threshold": (lambda image: layers.ReLU(threshold=0.5)(image), "QUANTIZE GREATER SELECT_V2"),
    "relu_threshold_slope_max": (
        lambda image: layers.ReLU(2.0, negative_slope=0.1, threshold=0.5)(image),
        "QUANTIZE GREATER SUB MUL SELECT",
    ),
    "relu_raw": (lambda image: ops.relu(image), ""),
    "relu6_raw": (lambda image: ops.relu6(image), ""),
    "relu_with_options": (lambda image: keras.activations.relu(image, max_value=0.7), ""),
    "leaky_relu": (lambda image: layers.LeakyReLU(0.2)(image), "LEAKY_RELU"),
    "relu_of_shared": (
        lambda image: then(layers.Conv2D(4, 3), twice(layers.ReLU()))(image),
        "CONV_2D LEAKY_RELU MAX_POOL_2D QUANTIZE CONCATENATION",
    ),
    "relu6_of_shared": (
        lambda image: then(layers.Conv2D(4, 3), twice(layers.ReLU(6)))(image),
        "CONV_2D LEAKY_RELU MAX_POOL_2D QUANTIZE CONCATENATION",
    ),
    "relu_of_pooled": (lambda image: then(layers.MaxPooling2D(2), layers.ReLU(1.5))(image), "MAX_POOL_2D LEAKY_RELU"),
    "relu_of_shared_dense": (
        lambda vector: (lambda x: layers.ReLU()(x) + x)(layers.Dense(8)(vector)),
        "FULLY_CONNECTED LEAKY_RELU ADD",
    ),
    "dense_elu": (lambda vector: layers.Dense(8, activation="elu")(vector), "FULLY_CONNECTED EXP SUB LEAKY_RELU ADD"),
    "hard_tanh_of_shared": (
        lambda image: then(layers.Conv2D(4, 3), twice(ops.hard_tanh))(image),
        "CONV_2D RELU_N1_TO_1 MAX_POOL_2D CONCATENATION",
    ),
    "relu_of_averaged": (
        lambda image: then(layers.AveragePooling2D(2), layers.ReLU(6))(image),
        "AVERAGE_POOL_2D LEAKY_RELU",
    ),
    "relu_of_dropout": (lambda image: then(layers.Dropout(0.5), layers.ReLU(), layers.Dropout(0.1))(image), ""),
    "leaky_relu_raw": (lambda image: ops.leaky_relu(image, 0.1), "LEAKY_RELU"),
    "prelu": (lambda image: layers.PReLU(uniform(-0.1, 0.5), shared_axes=[1, 2])(image), "PRELU"),
    "prelu_of_vector": (lambda vector: layers.PReLU(uniform(-0.1, 0.5))(vector), "PRELU"),
    "prelu_of_zeros": (lambda image: layers.PReLU()(image), "PRELU"),
    "elu": (lambda image: layers.ELU()(image), "EXP SUB LEAKY_RELU ADD"),
    "elu_alpha": (lambda image: layers.ELU(0.7)(image), "EXP SUB MUL LEAKY_RELU ADD"),
    "selu": (lambda image: layers.Activation("selu")(image), "EXP SUB MUL MUL ADD"),
    "sigmoid": (lambda image: layers.Activation("sigmoid")(image), "LOGISTIC"),
    "tanh": (lambda image: ops.tanh(image), "TANH"),
    "softmax": (lambda image: layers.Softmax()(image), "SOFTMAX"),
    "softmax_over_rows": (lambda image: layers.Softmax(axis=1)(image), "TRANSPOSE SOFTMAX TRANSPOSE"),
    "log_softmax": (lambda vector: layers.Activation("log_softmax")(vector), "LOG_SOFTMAX"),
    "silu": (lambda image: layers.Activation("swish")(image), "LOGISTIC MUL"),
    "gelu": (lambda image: layers.Activation("gelu")(image), "GELU"),
    "gelu_approximate": (lambda image: ops.gelu(image, approximate=True), "GELU"),
    "hard_sigmoid": (lambda image: layers.Activation("hard_sigmoid")(image), "ADD MUL"),
    "hard_swish": (lambda image: layers.Activation("hard_swish")(image), "HARD_SWISH"),
    "softplus": (lambda image: layers.Activation("softplus")(image), "ABS LOGISTIC LOG LEAKY_RELU SUB"),
    "softsign": (lambda image: layers.Activation("softsign")(image), "ABS ADD RSQRT MUL MUL"),
    "mish": (lambda image: layers.Activation("mish")(image), "ABS LOGISTIC LOG LEAKY_RELU SUB TANH MUL"),
    "exponential": (lambda image: layers.Activation("exponential")(image), "EXP"),
    "hard_tanh": (lambda image: ops.hard_tanh(image), ""),
    "conv_tanh": (lambda image: layers.Conv2D(8, 3, activation="tanh")(image), "CONV_2D TANH"),
    "conv_gelu": (lambda image: layers.Conv2D(8, 3, activation="gelu")(image), "CONV_2D GELU"),
    "conv_relu6": (lambda image: layers.Conv2D(8, 3, activation="relu6")(image), "CONV_2D"),
    "conv_function": (
        lambda image: layers.Conv2D(8, 3, activation=leaky)(image),
        "CONV_2D LEAKY_RELU",
    ),
    "conv_norm_hard_swish": (
        lambda image: then(layers.Conv2D(8, 3), norm(), layers.Activation("hard_silu"))(image),
        "CONV_2D HARD_SWISH",
    ),
    "hard_sigmoid_raw": (lambda image: ops.relu6(image + 3.0) * (1.0 / 6.0), "ADD MUL"),
    "hard_swish_raw": (lambda image: image * ops.relu6(image + 3.0) / 6.0, "ADD MUL MUL"),
    "hard_swish_raw_last": (lambda image: image * (layers.ReLU(6.0)(image + 3.0) * (1.0 / 6.0)), "ADD MUL MUL"),
}

ARITHMETIC = {
    "add": (both(layers.Add), "ADD"),
    "add_relu": (
        lambda image, other: layers.ReLU()(layers.Add()([layers.Conv2D(4, 1)(image), other])),
        "CONV_2D ADD",
    ),
    "add_three": (lambda image, other: layers.Add()([image, other, image]), "ADD ADD"),
    "subtract": (both(layers.Subtract), "SUB"),
    "multiply": (both(layers.Multiply), "MUL"),
    "maximum": (both(layers.Maximum), "QUANTIZE QUANTIZE MAXIMUM"),
    "minimum": (both(layers.Minimum), "QUANTIZE QUANTIZE MINIMUM"),
    "average": (both(layers.Average), "ADD MUL"),
    "average_three": (lambda image, other: layers.Average()([image, other, other]), "ADD ADD MUL"),
    "plus_constant": (lambda image: image + 3.0, "ADD"),
    "constant_minus": (lambda image: 2 - image, "SUB"),
    "times_array": (lambda image: image * ROW, "MUL"),
    "plus_array": (lambda image: image + ROW, "ADD"),
    "divided": (lambda image: image / 2, "MUL"),
    "divided_by_array": (lambda image: ops.divide(image, np.abs(ROW) + 0.5), "MUL"),
    "negative": (lambda image: -image, "MUL"),
    "absolute": (lambda image: abs(image), "ABS"),
    "square": (lambda image: ops.square(image), "MUL"),
    "power_of_two": (lambda image: image**2, "MUL"),
    "maximum_of_constant": (lambda image: ops.maximum(image, 0.5), "MAXIMUM"),
    "maximum_of_negative": (lambda image: ops.maximum(image, -0.5), ""),
    "minimum_of_constant": (lambda image: ops.minimum(1.0, image), ""),
    "maximum_of_array": (lambda image: ops.maximum(image, ROW), "MAXIMUM"),
    "clip": (lambda image: ops.clip(image, -1.0, 0.5), ""),
    "clip_above_zero": (lambda image: ops.clip(image, 0.25, 0.75), "MAXIMUM MINIMUM"),
    "channel_product": (lambda image, other: image * ops.mean(other, axis=(1, 2), keepdims=True), "MEAN MUL"),
    "matmul": (lambda image, other: ops.matmul(image, ops.transpose(other, (0, 1, 3, 2))), "BATCH_MATMUL"),
    "dot": (
        lambda image, other: layers.Dot(axes=-1)([layers.Flatten()(image), layers.Flatten()(other)]),
        "RESHAPE RESHAPE BATCH_MATMUL RESHAPE",
    ),
}

SHAPES = {
    "slice": (lambda image: image[:, 1:], "STRIDED_SLICE"),
    "slice_backwards": (lambda image: image[:, ::-1, 0, ..., None], "RESHAPE STRIDED_SLICE"),
    "split": (lambda image: ops.subtract(*ops.split(image, 2, axis=-1)), "SPLIT SUB"),
    "unstack": (lambda sequence: ops.add(*ops.unstack(sequence[:, :2], axis=1)), "STRIDED_SLICE UNPACK ADD"),
    "concatenate": (lambda image, other: layers.Concatenate()([image, other]), "CONCATENATION"),
    "concatenate_raw": (
        lambda image, other: ops.concatenate([layers.Conv2D(4, 1, activation="relu")(image), other], 1),
        "CONV_2D CONCATENATION",
    ),
    "stack": (lambda image, other: ops.stack([image, other], axis=1), "PACK"),
    "reshape": (lambda image: ops.reshape(image, (-1, 16, 16)), "RESHAPE"),
    "transpose": (lambda image: ops.transpose(image, (0, 3, 1, 2)), "TRANSPOSE"),
    "squeeze": (lambda image: ops.squeeze(ops.expand_dims(image, 1), 1) + 1.0, "ADD"),
    "moveaxis": (lambda image: ops.moveaxis(image, -1, 1), "TRANSPOSE"),
    "flatten": (lambda image: layers.Flatten()(image), "RESHAPE"),
    "permute": (lambda image: layers.Permute((3, 1, 2))(image), "TRANSPOSE"),
    "repeat_vector": (lambda vector: layers.RepeatVector(3)(vector), "RESHAPE TILE RESHAPE"),
    "tile": (lambda image: ops.tile(image, (1, 2, 1, 1)), "TILE"),
    "flip": (lambda image: ops.flip(image, 2), "REVERSE_V2"),
    "roll": (lambda image: ops.roll(image, 1, axis=1), "SLICE SLICE CONCATENATION"),
    "pad": (lambda image: ops.pad(image, ((0, 0), (1, 1), (0, 2), (0, 0))), "PAD"),
    "pad_constant": (lambda image: ops.pad(image, ((0, 0), (1, 1), (0, 2), (0, 0)), constant_values=0.5), "PADV2"),
    "pad_reflect": (lambda image: ops.pad(image, ((0, 0), (1, 1), (0, 2), (0, 0)), mode="reflect"), "MIRROR_PAD"),
    "zero_padding_1d": (lambda sequence: layers.ZeroPadding1D(2)(sequence), "PAD"),
    "zero_padding_2d": (lambda image: layers.ZeroPadding2D(((1, 0), (2, 1)))(image), "PAD"),
    "cropping_1d": (lambda sequence: layers.Cropping1D((2, 1))(sequence), "STRIDED_SLICE"),
    "cropping_2d": (lambda image: layers.Cropping2D(1)(image), "STRIDED_SLICE"),
    "upsampling_1d": (lambda sequence: layers.UpSampling1D(2)(sequence), "RESHAPE TILE RESHAPE"),
    "upsampling_2d": (lambda image: layers.UpSampling2D((2, 3))(image), "RESIZE_NEAREST_NEIGHBOR"),
    "upsampling_2d_bilinear": (
        lambda image: layers.UpSampling2D(2, interpolation="bilinear")(image),
        "RESIZE_BILINEAR",
    ),
    "resizing": (lambda image: layers.Resizing(5, 11)(image), "RESIZE_BILINEAR"),
    "resizing_nearest": (
        lambda image: layers.Resizing(12, 4, interpolation="nearest")(image),
        "RESIZE_NEAREST_NEIGHBOR",
    ),
    "resize_raw": (lambda image: ops.image.resize(image, (4, 4)), "RESIZE_BILINEAR"),
}

POOLING = {
    "max_pooling_1d": (lambda sequence: layers.MaxPooling1D(2)(sequence), "RESHAPE MAX_POOL_2D RESHAPE"),
    "max_pooling_2d": (lambda image: layers.MaxPooling2D(3, 2, padding="same")(image), "MAX_POOL_2D"),
    "max_pool_raw": (lambda image: ops.max_pool(image, 2), "MAX_POOL_2D"),
    "average_pooling_1d": (lambda sequence: layers.AveragePooling1D(3)(sequence), "RESHAPE AVERAGE_POOL_2D RESHAPE"),
    "average_pooling_2d": (lambda image: layers.AveragePooling2D(3, 2, padding="same")(image), "AVERAGE_POOL_2D"),
    "average_pool_raw": (lambda image: ops.average_pool(image, 2), "AVERAGE_POOL_2D"),
    "global_max_pooling_1d": (lambda sequence: layers.GlobalMaxPooling1D()(sequence), "REDUCE_MAX"),
    "global_max_pooling_2d": (lambda image: layers.GlobalMaxPooling2D(keepdims=True)(image), "REDUCE_MAX"),
    "global_average_pooling_1d": (lambda sequence: layers.GlobalAveragePooling1D()(sequence), "MEAN"),
    "global_average_pooling_2d": (lambda image: layers.GlobalAveragePooling2D()(image), "MEAN"),
    "global_average_pooling_2d_keepdims": (lambda image: layers.GlobalAveragePooling2D(keepdims=True)(image), "MEAN"),
    "mean": (lambda image: ops.mean(image, axis=-1), "MEAN"),
    "sum": (lambda image: ops.sum(image, axis=(1, 2)), "SUM"),
    "max": (lambda image: ops.max(image, axis=(1, 2)), "REDUCE_MAX"),
    "min": (lambda image: ops.min(image, axis=-1, keepdims=True), "REDUCE_MIN"),
}

TRAINING_ONLY = {
    "dropout": (
        lambda image: then(layers.Dropout(0.5), layers.SpatialDropout2D(0.2), layers.GaussianNoise(0.1))(image),
        "",
    ),
    "augmentation": (
        lambda image: then(layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1))(image),
        "",
    ),
    "dropout_before_norm": (
        lambda image: then(layers.Conv2D(4, 3), layers.Dropout(0.1), norm(), layers.ReLU())(image),
        "CONV_2D DEPTHWISE_CONV_2D",
    ),
}

GROUPS = {
    "linear": LINEAR,
    "grouped": GROUPED,
    "activations": ACTIVATIONS,
    "arithmetic": ARITHMETIC,
    "shapes": SHAPES,
    "others": {**SCALES, **POOLING, **TRAINING_ONLY},
}
INPUTS = {"image": (8, 8, 4), "other": (8, 8, 4), "sequence": (12, 6), "vector": (16,)}


def model_of(cases):
    """A model with inputs of its own and an output, "relu_output", for each case."""
    inputs, outputs = [], []
    for name, (function, _) in cases.items():
        arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
        mine = [keras.Input(INPUTS[each], name=f"{name}_{each}") for each in arguments]
        inputs += mine
        outputs.append(layers.Identity(name=f"{name}_output")(function(*mine)))
    return keras.Model(inputs, outputs)


def examples(model, count=32):
    """Data by input name."""
    rng = np.random.default_rng(4)
    return {each.name: rng.normal(0.2, 1.5, (count, *each.shape[1:])).astype("float32") for each in model.inputs}
