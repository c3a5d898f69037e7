"""Whether examples of several requests may share a run of a model, and each still get the same bits as alone."""

import contextlib
import time
from collections.abc import Mapping

import numpy as np

from tfopt.serve.description import STRING, TensorInfo
from tfopt.serve.model import Model
from tfopt.tflite.interpreter import DYNAMIC_BATCH

# What a model raises that cannot compute its inputs.
FAILURES = (ValueError, RuntimeError, MemoryError)


def shared_rows(model: Model, most: int, seconds: float = 10.0, seed: int = 0) -> int:
    """How many examples of several requests may share a run; 1: only those of one request.

    It is measured: random examples are run alone, and then together, in every number up to the one returned. Where one
    bit differs, as in float kernels that add up in another order, that number and those above are not used. Nor are
    they where the model cannot compute the random examples, as one that takes no negative numbers.

    Args:
      model: with any kind of batch.
      most: at least 1.
      seconds: to measure for, at most; what is not measured is not used.
      seed: of the examples.
    """
    batch = model.description.batch
    infos = model.description.inputs
    # One by one anyway; or there is no telling what other sizes and texts may bring.
    if batch in (0, 1) or most == 1 or any(-1 in info.shape[1:] or info.dtype == STRING for info in infos):
        return 1
    deadline = time.monotonic() + seconds
    most = min(most, batch if batch > 0 else DYNAMIC_BATCH)
    generator = np.random.default_rng(seed)
    examples = {info.name: _examples(info, most, generator) for info in infos}
    equal = 1
    with contextlib.suppress(*FAILURES):
        alone = [model.predict(_rows(examples, row, row + 1), raw=True) for row in range(most)]
        while equal < most and time.monotonic() <= deadline:
            size = equal + 1
            for start in {0, most - size}:
                together = model.predict(_rows(examples, start, start + size), raw=True)
                if not all(_equal(_rows(together, row, row + 1), alone[start + row]) for row in range(size)):
                    return equal
            equal = size
    return equal


def _examples(info: TensorInfo, count: int, generator: np.random.Generator) -> np.ndarray:
    shape, dtype = (count, *info.shape[1:]), np.dtype(info.stored)
    if dtype.kind in "fc":
        return generator.normal(size=shape).astype(dtype)
    if dtype.kind == "b":
        return generator.random(shape) < 0.5
    # Unquantized integers are indices, whose range the file does not tell; 0 and 1 are within any table.
    limits = np.iinfo(dtype)
    low, high = (limits.min, limits.max) if info.is_quantized else (0, 1)
    return generator.integers(low, high, shape, dtype, endpoint=True)


def _rows(arrays: Mapping[str, np.ndarray], start: int, end: int) -> dict[str, np.ndarray]:
    return {name: values[start:end] for name, values in arrays.items()}


def _equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """To the bit, NaN included."""
    return all(values.tobytes() == other[name].tobytes() for name, values in one.items())


def predict_all(model: Model, requests: list[dict[str, np.ndarray]], raw: bool) -> list[dict[str, np.ndarray] | str]:
    """The answers to several requests in one run, or one by one where that fails: each its own answer or error."""
    if len(requests) > 1:
        sizes = [len(next(iter(each.values()))) for each in requests]
        try:
            together = model.predict(
                {name: np.concatenate([each[name] for each in requests]) for name in requests[0]}, raw
            )
        except FAILURES:
            # One of them is to blame, and the others must not suffer.
            return [predict_all(model, [each], raw)[0] for each in requests]
        ends = np.cumsum(sizes)
        return [_rows(together, end - size, end) for size, end in zip(sizes, ends, strict=True)]
    try:
        return [model.predict(requests[0], raw)]
    except FAILURES as error:
        return [str(error).strip()[:1000] or type(error).__name__]
