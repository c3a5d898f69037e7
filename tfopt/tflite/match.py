"""Finding a Keras kernel again among the weight tensors of a file."""

import itertools
import os
from collections.abc import Iterator, Mapping

import numpy as np

from tfopt.measure.file import weight_tensors
from tfopt.tflite.flatbuffer import read_tflite

# Recurrent operators hold one tensor for each gate: three of a GRU, four of an LSTM.
_GATES = (3, 4)


def missing_zero_patterns(path: str | os.PathLike[str], kernels: Mapping[str, np.ndarray]) -> list[str]:
    """The kernels whose zeros are not found in any weight tensor of the file, in their places.

    The converter transposes and reshapes kernels and scales their channels, but a zero stays zero. Names are no
    help: it renames tensors, and shares equal ones.

    Args:
      path: of the .tflite file.
      kernels: arrays of any shape, by a name of the caller's choice.

    Returns:
      The names of those not found.
    """
    zeros = [weight.is_zero for weight in weight_tensors(read_tflite(path))]

    def found(kernel_zeros: np.ndarray) -> bool:
        # Quantization may add zeros, never take one away.
        return any(
            bool(zero[arranged].all())
            for zero in zeros
            if zero.size == kernel_zeros.size
            for arranged in _arrangements(kernel_zeros, zero.shape)
        )

    def found_in_parts(kernel_zeros: np.ndarray) -> bool:
        return any(
            kernel_zeros.shape[-1] % gates == 0 and all(found(part) for part in np.split(kernel_zeros, gates, axis=-1))
            for gates in _GATES
        )

    return [name for name, kernel in kernels.items() if not (found(kernel == 0) or found_in_parts(kernel == 0))]


def missing_clusters(
    path: str | os.PathLike[str], kernels: Mapping[str, np.ndarray], by_channel: bool = False
) -> list[str]:
    """The kernels whose clusters are not found in any weight tensor of the file, in their places.

    Found means that where the kernel has one value, the file has one value: or, as a BatchNormalization with a
    negative gamma turns the sign of its channel, that value and its negative.

    Args:
      path: of the .tflite file.
      kernels: arrays of any shape, by a name of the caller's choice.
      by_channel: whether one value in each channel is enough: a folded BatchNormalization multiplies channels, and
        post-training quantization gives each a scale of its own.

    Returns:
      The names of those not found.
    """
    stored = [np.abs(weight.values.astype(np.float64)) for weight in weight_tensors(read_tflite(path))]

    def found(members: np.ndarray) -> bool:
        return any(
            _one_value_each(arranged.ravel(), tensor.ravel())
            # Channels are the first axis of a file's tensors, of depthwise ones the last.
            or (by_channel and any(_one_value_each_by(arranged, tensor, axis) for axis in (0, -1)))
            for tensor in stored
            if tensor.size == members.size
            for arranged in _arrangements(members, tensor.shape)
        )

    def members(kernel: np.ndarray) -> np.ndarray:
        return np.unique(kernel, return_inverse=True)[1].reshape(kernel.shape)

    return [name for name, kernel in kernels.items() if not found(members(kernel))]


def _one_value_each(members: np.ndarray, values: np.ndarray) -> bool:
    """Whether all values of a cluster are equal."""
    first = np.zeros(members.max() + 1)
    first[members] = values
    return bool((first[members] == values).all())


def _one_value_each_by(members: np.ndarray, values: np.ndarray, axis: int) -> bool:
    """Whether all values of a cluster within one slice along an axis are equal."""
    slices = np.moveaxis(members, axis, 0), np.moveaxis(values, axis, 0)
    return all(_one_value_each(each.ravel(), found.ravel()) for each, found in zip(*slices, strict=True))


def _arrangements(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The array in every order of its axes, reshaped."""
    for axes in itertools.permutations(range(array.ndim)):
        yield array.transpose(axes).reshape(shape)
