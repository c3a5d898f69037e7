"""`Pattern`: the groups in which weights are removed together; pure maths on arrays and tensors."""

import dataclasses
import re
from typing import Any

import numpy as np
from keras import ops

from tfopt.config import require

# What `Pattern` takes, for messages.
PATTERNS = '"unstructured", "N:M" with N < M <= 16 such as "2:4", or a block of rows x columns such as "1x4"'
_LARGEST_GROUP = 16


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How the zeros of a kernel lie.

    A kernel counts as a matrix with one row for each input of a sum and one column for each output, that is
    `kernel.reshape(-1, kernel.shape[-1])`: rows are in the order in which LiteRT keeps the weights of an output.

    Args:
      text: "unstructured": anywhere. "N:M": of M weights in a row of the same output at most N are not zero, the last
        group of an output possibly shorter. "RxC": whole blocks of R inputs x C outputs are zero, those at the edge
        possibly smaller.

    Raises:
      ValueError: for any other text.

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378 (N:M); Narang et al.,
    Block-Sparse Recurrent Neural Networks, 2017, arXiv:1711.02782 (blocks).

    >>> Pattern("2:4").fixed_sparsity, Pattern("1x4").block
    (0.5, (1, 4))
    """

    text: str = "unstructured"

    def __post_init__(self) -> None:
        require(
            isinstance(self.text, str) and (self.text == "unstructured" or bool(self._numbers)),
            f"pattern must be {PATTERNS}; received {self.text!r}",
        )
        if self.ratio is not None:
            kept, group = self.ratio
            require(
                1 <= kept < group <= _LARGEST_GROUP,
                f"an N:M pattern leaves N of M weights, 1 <= N < M <= {_LARGEST_GROUP}; received {self.text!r}",
            )
        if self.block is not None:
            require(min(self.block) >= 1, f"a block has at least one row and one column; received {self.text!r}")

    @property
    def _numbers(self) -> tuple[int, str, int] | None:
        found = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", self.text)
        return (int(found[1]), found[2], int(found[3])) if found else None

    @property
    def ratio(self) -> tuple[int, int] | None:
        """(N, M) of an N:M pattern."""
        numbers = self._numbers
        return (numbers[0], numbers[2]) if numbers and numbers[1] == ":" else None

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, columns) of a block pattern."""
        numbers = self._numbers
        return (numbers[0], numbers[2]) if numbers and numbers[1] == "x" else None

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity that an N:M pattern ends at; None for the others, which take any."""
        return None if self.ratio is None else 1.0 - self.ratio[0] / self.ratio[1]

    def require_fits(self, shape: tuple[int, ...], name: str) -> None:
        """Raises a ValueError where a group is larger than the tensor."""
        rows, columns = _matrix_shape(shape)
        if self.block is not None:
            require(
                self.block[0] <= rows and self.block[1] <= columns,
                f"blocks of {self.text} are larger than {name}, a matrix of {rows} inputs x {columns} outputs: leave "
                "that layer out with layers=..., or take smaller blocks",
            )
        if self.ratio is not None:
            require(
                self.ratio[1] <= rows,
                f"groups of {self.ratio[1]} are larger than {name}, whose outputs have {rows} inputs: leave that layer "
                "out with layers=..., or take smaller groups",
            )

    def zero_count(self, shape: tuple[int, ...], sparsity: float) -> int:
        """How many weights of a kernel are zero at a sparsity; with blocks cut off at the edge, how many at least.

        >>> (
        ...     Pattern().zero_count((3, 4), 0.8),
        ...     Pattern("2:4").zero_count((6, 3), 0.5),
        ...     Pattern("2x2").zero_count((4, 4), 0.5),
        ... )
        (10, 6, 8)
        """
        rows, columns = _matrix_shape(shape)
        if self.ratio is not None:
            size = self.ratio[1]
            kept = size - round(sparsity * size)
            return columns * sum(max(0, min(size, rows - start) - kept) for start in range(0, rows, size))
        if self.block is not None:
            sizes = np.sort(_cells(self.block, rows, columns).ravel())
            return int(sizes[: round(sparsity * sizes.size)].sum())
        return round(sparsity * rows * columns)

    def structured_zeros(self, kernel: np.ndarray) -> int:
        """How many zeros of a kernel lie as the pattern asks.

        >>> Pattern("2:4").structured_zeros(np.array([[1.0], [0.0], [0.0], [0.0]]))
        2
        >>> Pattern("2x1").structured_zeros(np.array([[0.0], [0.0], [0.0], [1.0]]))
        2
        """
        zeros = (kernel == 0).reshape(_matrix_shape(kernel.shape))
        rows, columns = zeros.shape
        if self.ratio is not None:
            kept, size = self.ratio
            groups = [zeros[start : start + size] for start in range(0, rows, size)]
            return int(sum(np.minimum(each.sum(0), max(0, len(each) - kept)).sum() for each in groups))
        if self.block is not None:
            cells = _cells(self.block, rows, columns)
            padded = np.ones([size * count for size, count in zip(self.block, cells.shape, strict=True)], bool)
            padded[:rows, :columns] = zeros
            whole = padded.reshape(cells.shape[0], self.block[0], cells.shape[1], self.block[1]).all((1, 3))
            return int((whole * cells).sum())
        return int(zeros.sum())


def pattern_mask(scores: Any, sparsity: Any, pattern: Pattern = Pattern(), mask: Any = None) -> Any:
    """Marks the weights to keep: all but those of the lowest score, group by group.

    Exactly round(sparsity * count) groups are removed (of N:M: so many weights of each group of M), equal ones in their
    order in memory. With the mask so far, what it removed goes first, whatever its score is now: a rising sparsity
    never brings a weight back.

    Args:
      scores: how much each weight matters, any shape, float.
      sparsity: fraction to remove, in [0, 1); a float or a scalar tensor.
      pattern: the groups.
      mask: 0 or 1 for each weight, same shape; None: all ones.

    Returns:
      1 for the weights to keep and 0 for the others, same shape, float32.

    >>> ops.convert_to_numpy(pattern_mask([[3.0], [-1.0], [2.0], [0.5]], 0.5, Pattern("2:4"))).ravel().tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    return pattern_masks([scores], sparsity, pattern, None if mask is None else [mask])[0]


def pattern_masks(scores: list[Any], sparsity: Any, pattern: Pattern, masks: list[Any] | None = None) -> list[Any]:
    """`pattern_mask` of several tensors whose groups are ranked together.

    What has the highest score in each tensor is kept, so that no layer is lost whole.

    Raises:
      ValueError: for N:M, whose groups all have the same sparsity.
    """
    require(len(scores) == 1 or pattern.ratio is None, f"{pattern.text} has the same sparsity everywhere")
    tensors = [ops.cast(ops.convert_to_tensor(each), "float32") for each in scores]
    shapes = [tuple(each.shape) for each in tensors]
    if masks is not None:
        lowest = [each - _span(each) - 1.0 for each in tensors]
        tensors = [
            ops.where(ops.convert_to_tensor(mask) > 0, each, low)
            for each, low, mask in zip(tensors, lowest, masks, strict=True)
        ]
    if pattern.ratio is not None:
        return [_ratio_mask(tensors[0], sparsity, pattern.ratio[1])]
    grouped = [_group_means(each, pattern.block) for each in tensors]
    sizes = [int(each.shape[0]) for each in grouped]
    if len(grouped) > 1:
        highest = ops.max(ops.stack([ops.max(each) for each in grouped]))
        grouped = [
            each + ops.one_hot(ops.argmax(each), size) * (highest + 1.0)
            for each, size in zip(grouped, sizes, strict=True)
        ]
    keep = _keep_highest(ops.concatenate(grouped), sparsity)
    parts = ops.split(keep, np.cumsum(sizes)[:-1].tolist()) if len(sizes) > 1 else [keep]
    return [_spread(part, shape, pattern.block) for part, shape in zip(parts, shapes, strict=True)]


def _span(tensor: Any) -> Any:
    return ops.max(tensor) - ops.min(tensor)


def _keep_highest(scores: Any, sparsity: Any) -> Any:
    """1 for all but the round(sparsity * size) lowest of a vector."""
    size = scores.shape[0]
    keep_by_rank = ops.cast(ops.arange(size, dtype="int32") >= _removed(sparsity, size), "float32")
    return ops.scatter(ops.expand_dims(ops.argsort(scores), 1), keep_by_rank, (size,))


def _removed(sparsity: Any, size: int) -> Any:
    """round(sparsity * size), int32; not by ops.cast, which takes a Python number to float32 on its way."""
    return ops.cast(ops.round(ops.convert_to_tensor(sparsity, "float64") * size), "int32")


def _ratio_mask(scores: Any, sparsity: Any, size: int) -> Any:
    rows, columns = _matrix_shape(tuple(scores.shape))
    groups = -(-rows // size)
    # What is missing in the last group counts as removed.
    matrix = ops.pad(ops.reshape(scores, (rows, columns)), ((0, groups * size - rows), (0, 0)), constant_values=-np.inf)
    ranks = ops.argsort(ops.argsort(ops.reshape(matrix, (groups, size, columns)), axis=1), axis=1)
    removed = ops.cast(_removed(sparsity, size), ranks.dtype)
    keep = ops.reshape(ops.cast(ranks >= removed, "float32"), (groups * size, columns))
    return ops.reshape(keep[:rows], scores.shape)


def _group_means(scores: Any, block: tuple[int, int] | None) -> Any:
    """The mean score of each group, as a vector."""
    if block is None:
        return ops.reshape(scores, (-1,))
    rows, columns = _matrix_shape(tuple(scores.shape))
    cells = _cells(block, rows, columns)
    high, wide = cells.shape
    margins = ((0, high * block[0] - rows), (0, wide * block[1] - columns))
    matrix = ops.pad(ops.reshape(scores, (rows, columns)), margins)
    sums = ops.sum(ops.reshape(matrix, (high, block[0], wide, block[1])), axis=(1, 3))
    return ops.reshape(sums / cells.astype("float32"), (-1,))


def _spread(keep: Any, shape: tuple[int, ...], block: tuple[int, int] | None) -> Any:
    """The decision on each group, for each of its weights."""
    if block is None:
        return ops.reshape(keep, shape)
    rows, columns = _matrix_shape(shape)
    matrix = ops.reshape(keep, _cells(block, rows, columns).shape)
    matrix = ops.repeat(ops.repeat(matrix, block[0], axis=0), block[1], axis=1)
    return ops.reshape(matrix[:rows, :columns], shape)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(inputs, outputs)."""
    return (int(np.prod(shape[:-1])), int(shape[-1])) if shape else (1, 1)


def _cells(block: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """How many weights each block holds, shape (blocks down, blocks across)."""
    high = np.diff([*range(0, rows, block[0]), rows])
    wide = np.diff([*range(0, columns, block[1]), columns])
    return np.outer(high, wide)
