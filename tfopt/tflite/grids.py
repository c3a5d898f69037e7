"""The grids that trained integer weights lie on."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from tfopt.config import require
from tfopt.tflite.flatbuffer import Graph, Tensor
from tfopt.tflite.ranges import KERNELS, kernel_operands

# The axis of the output channels, by operator.
_AXES = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
# How far from an integer weight / scale may be: what is left of float32 rounding.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a file's weight tensor.

    Args:
      bits: 8 or 4.
      scales: above 0, shape (1,) or (output channels,).
    """

    bits: int
    scales: np.ndarray

    @property
    def limit(self) -> int:
        """The largest integer: 127 or 7."""
        return 2 ** (self.bits - 1) - 1

    def along(self, axis: int, rank: int) -> np.ndarray:
        """The scales, float64, shaped to broadcast against a kernel of that rank."""
        return self.scales.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(rank)])

    def integers(self, kernel: Tensor, axis: int) -> np.ndarray:
        """A float kernel in steps of its scales, rounded, float64."""
        assert kernel.data is not None
        return np.rint(kernel.data / self.along(axis, kernel.data.ndim))


def channel_axis(graph: Graph, tensor: Tensor) -> int:
    """The axis of a kernel's output channels."""
    return _AXES[kernel_operands(graph)[tensor.index].type]


def kernels_of(graph: Graph) -> Iterator[tuple[Tensor, np.ndarray | None, Tensor]]:
    """The (kernel, bias, input) of each operator with a constant kernel; bias: its values, None without."""
    for operator in graph.operators:
        if operator.type in KERNELS:
            weight, bias = KERNELS[operator.type]
            source = operator.inputs[2 if operator.type == "TRANSPOSE_CONV" else 0]
            has_bias = bias < len(operator.inputs) and operator.inputs[bias] >= 0
            kernel = graph.tensors[operator.inputs[weight]]
            if kernel.data is not None:
                yield kernel, graph.tensors[operator.inputs[bias]].data if has_bias else None, graph.tensors[source]


def channel_scales(
    kernel: Tensor, axis: int, grid: Grid | None, bits: int, bias: np.ndarray | None, input_scale: float
) -> np.ndarray:
    """The scale of each output channel: of its grid, else by its largest weight.

    A channel of zeros may have any scale, so it gets one that its bias, stored in steps of `input_scale` times
    it, is fine and small on.

    Args:
      kernel: in float32.
      axis: of its output channels.
      grid: what it was trained on.
      bits: 8 or 4, without a grid.
      bias: (output channels,).
      input_scale: of the operator's input.

    Returns:
      float64, (output channels,).

    Raises:
      ValueError: the weights are not on the grid.
    """
    assert kernel.data is not None
    largest = np.abs(np.moveaxis(kernel.data, axis, 0).reshape(kernel.shape[axis], -1)).max(axis=1).astype(np.float64)
    if grid is None:
        scales = largest / (2 ** (bits - 1) - 1)
    else:
        steps = kernel.data / grid.along(axis, kernel.data.ndim)
        off, peak = np.abs(steps - np.rint(steps)).max(), int(np.abs(np.rint(steps)).max())
        require(
            off <= _TOLERANCE and peak <= grid.limit,
            f"the weights {kernel.name!r} are not the trained ones: up to {off:.2g} steps off the integers, which "
            f"reach {peak}, at most {grid.limit} with {grid.bits} bits. Export integers times scales",
        )
        scales = np.broadcast_to(grid.scales.astype(np.float64), largest.shape)
    usual = scales[largest > 0].max(initial=0.0) or 1.0
    holding = usual if bias is None else np.where(bias == 0, usual, np.abs(bias) / (input_scale * 2**24))
    return np.where(largest > 0, scales, holding)
