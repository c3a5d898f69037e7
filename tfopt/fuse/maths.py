"""The arithmetic of fusing, in float64: what weights become when an affine map, or another layer, goes into them."""

import numpy as np

Weights = tuple[np.ndarray, np.ndarray]


def affine(
    mean: np.ndarray, variance: np.ndarray, epsilon: float, gamma: np.ndarray | None, beta: np.ndarray | None
) -> Weights:
    """Scale and shift of a BatchNormalization in prediction: gamma / sqrt(variance + epsilon), beta - scale * mean.

    Source: Ioffe and Szegedy, Batch Normalization, 2015, arXiv:1502.03167, algorithm 2.

    >>> affine(np.array([2.0]), np.array([3.0]), 1.0, np.array([4.0]), None)
    (array([2.]), array([-4.]))
    """
    scale = (1.0 if gamma is None else gamma.astype("float64")) / np.sqrt(variance.astype("float64") + epsilon)
    return scale, (0.0 if beta is None else beta.astype("float64")) - scale * mean.astype("float64")


def scale_outputs(
    kernel: np.ndarray, bias: np.ndarray | None, scale: np.ndarray, shift: np.ndarray, axes: str
) -> Weights:
    """The weights of a layer whose outputs were scaled and shifted.

    Args:
      kernel: of any rank.
      bias: shape (outputs,); None: zeros.
      scale: shape (outputs,).
      shift: shape (outputs,).
      axes: where the kernel has its outputs: "last", "last but one" (transposed convolutions), or "both" of the last
        two (depthwise convolutions).

    >>> kernel, bias = scale_outputs(np.ones((1, 2)), np.array([1.0, 1.0]), np.array([2.0, 3.0]), np.zeros(2), "last")
    >>> kernel.tolist(), bias.tolist()
    ([[2.0, 3.0]], [2.0, 3.0])
    """
    if axes == "both":
        factors = scale.reshape(kernel.shape[-2:])
    else:
        factors = scale[:, None] if axes == "last but one" else scale
    return kernel * factors, shift + (0.0 if bias is None else bias.astype("float64") * scale)


def scale_inputs(
    kernel: np.ndarray, bias: np.ndarray | None, scale: np.ndarray, shift: np.ndarray, axes: str
) -> Weights:
    """The weights of a layer whose inputs were scaled and shifted, and not padded with zeros afterwards.

    Args:
      kernel: shape (..., inputs, outputs), or (..., channels, multiplier) of a depthwise convolution.
      bias: shape (outputs,); None: zeros.
      scale: shape (inputs,).
      shift: shape (inputs,).
      axes: "last", or "both" for a depthwise convolution.

    >>> kernel, bias = scale_inputs(np.ones((2, 1)), None, np.array([2.0, 3.0]), np.array([1.0, 0.5]), "last")
    >>> kernel.tolist(), bias.tolist()
    ([[2.0], [3.0]], [1.5])
    """
    window = kernel.astype("float64").sum(axis=tuple(range(kernel.ndim - 2)))
    added = (window * shift[:, None]).reshape(-1) if axes == "both" else shift @ window
    return kernel * scale[:, None], added + (0.0 if bias is None else bias)


def chain(
    first: np.ndarray, first_bias: np.ndarray | None, second: np.ndarray, second_bias: np.ndarray | None
) -> Weights:
    """One layer for two that follow each other without an activation: dense ones, or convolutions, one of them 1 x 1.

    >>> kernel, bias = chain(np.array([[2.0, 1.0]]), np.array([1.0, 0.0]), np.array([[3.0], [4.0]]), None)
    >>> kernel.tolist(), bias.tolist()
    ([[10.0]], [3.0])
    """
    one, other = first.astype("float64"), second.astype("float64")
    # One of the two has a window of a single place.
    kernel = one @ other
    bias = np.zeros(kernel.shape[-1]) if second_bias is None else second_bias.astype("float64")
    if first_bias is not None:
        bias = bias + first_bias @ other.sum(axis=tuple(range(other.ndim - 2)))
    return kernel, bias
