"""BatchNormalization inside a quantized layer: in one fused operator for training, folded away for the file."""

import keras
import numpy as np
import tensorflow as tf


def gain(layer: keras.layers.BatchNormalization) -> tf.Tensor:
    """What the layer multiplies each channel by when it predicts: gamma / sqrt(variance + epsilon)."""
    factor = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
    return layer.gamma * factor if layer.scale else factor


def gain_and_shift(layer: keras.layers.BatchNormalization) -> tuple[tf.Tensor, tf.Tensor]:
    """The layer as `x * gain + shift`, when it predicts: two tensors of shape (channels,)."""
    factor = gain(layer)
    shift = -layer.moving_mean * factor
    return factor, shift + layer.beta if layer.center else shift


def fold(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """The same as arrays.

    >>> layer = keras.layers.BatchNormalization(epsilon=0.0)
    >>> layer.build((None, 1))
    >>> layer.set_weights([np.array([6.0]), np.array([1.0]), np.array([2.0]), np.array([4.0])])
    >>> fold(layer)
    (array([3.], dtype=float32), array([-5.], dtype=float32))
    """
    factor, shift = gain_and_shift(layer)
    return factor.numpy(), shift.numpy()


def normalize(layer: keras.layers.BatchNormalization, inputs: tf.Tensor, training: bool) -> tf.Tensor:
    """What `layer(inputs, training=training)` gives, in TensorFlow's fused operator where that exists.

    Keras computes moments and result in a dozen passes over the tensor, whose intermediate results stay in memory
    for the gradient; the fused operator needs two passes.
    """
    rank = len(inputs.shape)
    fusable = rank == 4 and layer.axis in (-1, 3) and not layer.renorm and not layer.synchronized
    if not fusable:
        return layer(inputs, training=training)
    channels = inputs.shape[-1]
    learns = bool(training and layer.trainable)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma if layer.scale else tf.ones(channels),
        offset=layer.beta if layer.center else tf.zeros(channels),
        mean=tf.zeros(0) if learns else layer.moving_mean,
        variance=tf.zeros(0) if learns else layer.moving_variance,
        epsilon=layer.epsilon,
        is_training=learns,
    )
    if learns:
        # The operator gives the variance of the population that the batch was drawn from, Keras keeps the batch's.
        count = tf.cast(tf.size(inputs) // channels, "float32")
        variance = variance * (count - 1.0) / count
        for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + new * (1.0 - layer.momentum))
    return outputs
