"""Applies a given kernel as a Keras layer would: what the layer computes before bias and activation.

One-dimensional convolutions run as two-dimensional ones of height 1, as they do in the file.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import layers

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose)
LINEAR = (layers.Conv1D, layers.Conv2D, layers.Dense, *DEPTHWISE, *TRANSPOSED)


def channel_axes(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Which axes of a layer's kernel are its output channels.

    >>> channel_axes(layers.DepthwiseConv2D(3))
    (-2, -1)
    """
    if isinstance(layer, DEPTHWISE):
        return (-2, -1)
    return (-2,) if isinstance(layer, TRANSPOSED) else (-1,)


def is_1d(layer: keras.layers.Layer) -> bool:
    """Whether it is a one-dimensional convolution."""
    return getattr(layer, "rank", None) == 1


def with_height(kernel: Any, layer: keras.layers.Layer) -> Any:
    """The kernel as the two-dimensional convolution wants it: one-dimensional ones get a height of 1."""
    return kernel[None] if is_1d(layer) else kernel


def convolve(layer: keras.layers.Layer, inputs: tf.Tensor, kernel: Any, for_file: bool) -> tf.Tensor:
    """Convolution or product of the inputs with a kernel.

    Args:
      layer: one of `LINEAR`, channels last; its own kernel is not used.
      inputs: float32, as for the layer.
      kernel: as `with_height` gives it.
      for_file: use operators that LiteRT's converter knows, even where TensorFlow has no gradient for them.
    """
    if isinstance(layer, layers.Dense):
        return _dense(inputs, kernel)
    if not is_1d(layer):
        return _convolve_2d(layer, inputs, kernel, for_file)
    if layer.padding == "causal":
        inputs = tf.pad(inputs, [[0, 0], [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0], [0, 0]])
    return tf.squeeze(_convolve_2d(layer, tf.expand_dims(inputs, 1), kernel, for_file), 1)


def _dense(inputs: tf.Tensor, kernel: Any) -> tf.Tensor:
    if len(inputs.shape) == 2:
        return tf.matmul(inputs, kernel)
    flat = tf.matmul(tf.reshape(inputs, (-1, inputs.shape[-1])), kernel)
    return tf.reshape(flat, (-1, *_sizes(inputs)[1:-1], kernel.shape[-1]))


def _sizes(tensor: tf.Tensor) -> list[Any]:
    """The tensor's shape, as numbers where they are known."""
    dynamic = tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(tensor.shape)]


def _convolve_2d(layer: keras.layers.Layer, inputs: tf.Tensor, kernel: Any, for_file: bool) -> tf.Tensor:
    ones = (1,) * (2 - layer.rank)
    strides, dilation = (*ones, *layer.strides), (*ones, *layer.dilation_rate)
    padding = "VALID" if layer.padding == "causal" else layer.padding.upper()
    if isinstance(layer, TRANSPOSED):
        output_padding = None if layer.output_padding is None else (*(0 for _ in ones), *_pair(layer))
        return keras.ops.conv_transpose(
            inputs, kernel, strides, padding.lower(), output_padding, "channels_last", dilation
        )
    if isinstance(layer, DEPTHWISE):
        # TensorFlow wants square strides; along the height of 1 any stride is right.
        strides = strides if layer.rank == 2 else layer.strides * 2
        return keras.ops.depthwise_conv(inputs, kernel, strides, padding.lower(), "channels_last", dilation)
    if layer.groups > 1 and not for_file:
        # TensorFlow on CPUs has no gradient for groups; Keras compiles them with XLA.
        return keras.ops.conv(inputs, kernel, strides, padding.lower(), "channels_last", dilation)
    return tf.nn.conv2d(inputs, kernel, strides, padding, dilations=dilation)


def _pair(layer: keras.layers.Layer) -> tuple[int, ...]:
    padding = layer.output_padding
    return tuple(padding) if isinstance(padding, list | tuple) else (padding,) * layer.rank
