"""The TensorFlow functions that tf_keras records in a functional model, as keras.ops.

Each function here has the parameter names of the TensorFlow one. Shapes are plain tuples, with None where
the size is not known before the model runs.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

Op = Callable[..., Any]


def _unary(op: Op) -> Op:
    return lambda *args, **kwargs: op(*args, *kwargs.values())


def _binary(op: Op) -> Op:
    def apply(x: Any, y: Any) -> Any:
        return op(_like(x, y), _like(y, x))

    return apply


def _like(value: Any, other: Any) -> Any:
    """A list or array in the dtype of the tensor it meets, as TensorFlow converts it."""
    if isinstance(value, (list, tuple, np.ndarray)) and isinstance(other, keras.KerasTensor):
        return np.asarray(value, other.dtype)
    return value


def _reduce(op: Op) -> Op:
    return lambda input_tensor, axis=None, keepdims=False: op(input_tensor, axis=axis, keepdims=keepdims)


def _backend_reduce(op: Op) -> Op:
    return lambda x, axis=None, keepdims=False: op(x, axis=axis, keepdims=keepdims)


def _arg(op: Op) -> Op:
    return lambda input, axis=0, output_type="int64": ops.cast(op(input, axis=axis), _dtype(output_type))


def _dtype(dtype: Any) -> str:
    return tf.as_dtype(dtype).name


def _index(part: Any) -> Any:
    if isinstance(part, dict):
        return slice(part["start"], part["stop"], part["step"])
    if isinstance(part, (list, tuple)):
        return tuple(_index(each) for each in part)
    return part


def _getitem(tensor: Any, slice_spec: Any) -> Any:
    index = _index(slice_spec)
    if isinstance(tensor, tuple) and isinstance(index, tuple) and len(index) == 1:
        index = index[0]
    return tensor[index]


def _shape(input: Any, out_type: Any = "int32") -> tuple[int | None, ...]:
    return tuple(input.shape)


def _reshape(tensor: Any, shape: Any) -> Any:
    sizes = [shape] if isinstance(shape, int) else list(shape)
    unknown = [i for i, size in enumerate(sizes) if size is None]
    if len(unknown) > 1 or (unknown and -1 in sizes):
        raise ValueError(f"the shape {sizes} leaves more than one size to be known only at run time")
    return ops.reshape(tensor, [-1 if size is None else int(size) for size in sizes])


def _concat(values: Any, axis: Any) -> Any:
    return ops.concatenate(values, axis=int(axis))


def _split(value: Any, num_or_size_splits: Any, axis: int = 0, num: Any = None) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis=axis)
    if -1 in list(num_or_size_splits):
        raise ValueError("a split size of -1 has no counterpart")
    return ops.split(value, [int(end) for end in np.cumsum(num_or_size_splits)[:-1]], axis=axis)


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Any:
    widths = [tuple(int(n) for n in pair) for pair in paddings]
    if mode.lower() == "constant":
        return ops.pad(tensor, widths, mode="constant", constant_values=constant_values)
    return ops.pad(tensor, widths, mode=mode.lower())


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, **options: Any) -> Any:
    if any(options.values()):
        raise ValueError(f"linalg.matmul with {options} has no counterpart")
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    b = ops.swapaxes(b, -1, -2) if transpose_b else b
    return ops.matmul(a, b)


def _transpose(a: Any, perm: Any = None, conjugate: bool = False) -> Any:
    return ops.transpose(a, None if perm is None else [int(axis) for axis in perm])


def _gather(params: Any, indices: Any, validate_indices: Any = None, axis: Any = None, batch_dims: int = 0) -> Any:
    if batch_dims:
        raise ValueError(f"gather with batch_dims={batch_dims} has no counterpart")
    return ops.take(params, indices, axis=int(axis or 0))


def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12, dim: Any = None) -> Any:
    square = ops.sum(ops.square(x), axis=dim if axis is None else axis, keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(square, epsilon)))


def _one_hot(
    indices: Any, depth: Any, on_value: Any = None, off_value: Any = None, axis: Any = None, dtype: Any = None
) -> Any:
    if on_value not in (None, 1, 1.0) or off_value not in (None, 0, 0.0):
        raise ValueError("one_hot with values other than 0 and 1 has no counterpart")
    return ops.one_hot(indices, int(depth), axis=-1 if axis is None else axis, dtype=_dtype(dtype or "float32"))


def _resize(
    images: Any,
    size: Any,
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Any:
    if preserve_aspect_ratio:
        raise ValueError("image.resize with preserve_aspect_ratio=True has no counterpart")
    resized = ops.image.resize(images, tuple(map(int, size)), interpolation=method, antialias=antialias)
    return resized if method == "nearest" else ops.cast(resized, "float32")


def _pool(op: Op, **fixed: Any) -> Op:
    def apply(input: Any, ksize: Any, strides: Any, padding: str, data_format: str | None = None) -> Any:
        if data_format not in (None, "NHWC", "NWC"):
            raise ValueError(f"pooling in the data format {data_format} has no counterpart")
        return op(input, ksize, strides, padding=padding.lower(), data_format="channels_last", **fixed)

    return apply


def _silu(features: Any, beta: float = 1.0) -> Any:
    return ops.multiply(features, ops.sigmoid(ops.multiply(features, beta)))


def _add_n(inputs: Any) -> Any:
    total = inputs[0]
    for each in inputs[1:]:
        total = ops.add(total, each)
    return total


def _identity(input: Any) -> Any:
    return input


_UNARY = {
    "math": "abs acos acosh asin asinh atan atanh ceil cos cosh erf exp expm1 floor log log1p logical_not "
    "negative reciprocal round rsqrt sigmoid sign sin sinh softplus sqrt square tan tanh",
    "nn": "relu relu6 selu softplus softsign sigmoid tanh",
    "": "ones_like zeros_like stop_gradient abs exp floor round sigmoid sign sqrt square tanh",
    "keras.backend": "abs exp log relu round sigmoid sign softplus softsign sqrt square tanh",
}
_BINARY = {
    "add": ops.add, "subtract": ops.subtract, "multiply": ops.multiply, "truediv": ops.true_divide,
    "divide": ops.true_divide, "pow": ops.power, "maximum": ops.maximum, "minimum": ops.minimum,
    "floordiv": ops.floor_divide, "floormod": ops.mod, "mod": ops.mod, "greater": ops.greater,
    "greater_equal": ops.greater_equal, "less": ops.less, "less_equal": ops.less_equal, "equal": ops.equal,
    "not_equal": ops.not_equal, "logical_and": ops.logical_and, "logical_or": ops.logical_or,
    "logical_xor": ops.logical_xor, "squared_difference": lambda x, y: ops.square(ops.subtract(x, y)),
    "atan2": ops.arctan2, "divide_no_nan": ops.divide_no_nan,
}  # fmt: skip
_REDUCE = {
    "sum": ops.sum, "mean": ops.mean, "max": ops.max, "min": ops.min, "prod": ops.prod, "any": ops.any,
    "all": ops.all, "std": ops.std, "variance": ops.var, "logsumexp": ops.logsumexp,
}  # fmt: skip
_RENAMED = {
    "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan",
    "atanh": "arctanh",
}  # fmt: skip

OPS: dict[str, Op] = {
    f"{module}.{name}".lstrip("."): _unary(getattr(ops, _RENAMED.get(name, name)))
    for module, names in _UNARY.items()
    for name in names.split()
}
OPS |= {f"math.{name}": _binary(op) for name, op in _BINARY.items()}
OPS |= {f"math.reduce_{name}": _reduce(op) for name, op in _REDUCE.items()}
OPS |= {f"keras.backend.{name}": _backend_reduce(_REDUCE[name]) for name in ("sum", "mean", "max", "min", "prod")}
OPS |= {
    "__operators__.add": _binary(ops.add),
    "__operators__.eq": _binary(ops.equal),
    "__operators__.ne": _binary(ops.not_equal),
    "__operators__.getitem": _getitem,
    "compat.v1.floor_div": _binary(ops.floor_divide),
    "compat.v1.div": _binary(ops.true_divide),
    "compat.v1.shape": _shape,
    "shape": _shape,
    "compat.v1.pad": _pad,
    "pad": _pad,
    "reshape": _reshape,
    "concat": _concat,
    "split": _split,
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "unstack": lambda value, num=None, axis=0: ops.unstack(value, num, axis),
    "transpose": _transpose,
    "compat.v1.transpose": _transpose,
    "expand_dims": lambda input, axis: ops.expand_dims(input, int(axis)),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "compat.v1.squeeze": lambda input, axis=None, squeeze_dims=None: ops.squeeze(
        input, squeeze_dims if axis is None else axis
    ),
    "tile": lambda input, multiples: ops.tile(input, [int(n) for n in multiples]),
    "repeat": lambda input, repeats, axis=None: ops.repeat(input, repeats, axis),
    "reverse": lambda tensor, axis: ops.flip(tensor, axis),
    "roll": lambda input, shift, axis: ops.roll(input, shift, axis),
    "cast": lambda x, dtype: ops.cast(x, _dtype(dtype)),
    "identity": _identity,
    "where": lambda condition, x=None, y=None: ops.where(condition, _like(x, y), _like(y, x)),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(t, clip_value_min, clip_value_max),
    "one_hot": _one_hot,
    "gather": _gather,
    "compat.v1.gather": _gather,
    "einsum": lambda equation, *inputs: ops.einsum(equation, *inputs),
    "tensordot": lambda a, b, axes: ops.tensordot(a, b, axes),
    "linalg.matmul": _matmul,
    "math.add_n": _add_n,
    "math.argmax": _arg(ops.argmax),
    "math.argmin": _arg(ops.argmin),
    "math.cumsum": lambda x, axis=0: ops.cumsum(x, axis),
    "math.l2_normalize": _l2_normalize,
    "math.top_k": lambda input, k=1, sorted=True: ops.top_k(input, int(k), sorted),
    "image.resize": _resize,
    "nn.bias_add": lambda value, bias: ops.add(value, _like(bias, value)),
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, -1 if axis is None else axis),
    "nn.log_softmax": lambda logits, axis=-1: ops.log_softmax(logits, -1 if axis is None else axis),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.elu": lambda features: ops.elu(features),
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.silu": _silu,
    "nn.swish": _silu,
    "nn.max_pool1d": _pool(ops.max_pool),
    "nn.max_pool2d": _pool(ops.max_pool),
    "nn.avg_pool1d": _pool(ops.average_pool),
    "nn.avg_pool2d": _pool(ops.average_pool),
    "keras.backend.softmax": lambda x, axis=-1: ops.softmax(x, axis),
    "keras.backend.concatenate": lambda tensors, axis=-1: ops.concatenate(tensors, axis),
    "keras.backend.l2_normalize": _l2_normalize,
    "keras.backend.clip": lambda x, min_value, max_value: ops.clip(x, min_value, max_value),
}

# On plain sizes, before any tensor is involved.
_SIZE_OPS: dict[str, Op] = {
    "math.add": lambda x, y: x + y,
    "__operators__.add": lambda x, y: x + y,
    "math.subtract": lambda x, y: x - y,
    "math.multiply": lambda x, y: x * y,
    "compat.v1.floor_div": lambda x, y: x // y,
    "math.floordiv": lambda x, y: x // y,
    "math.floormod": lambda x, y: x % y,
    "__operators__.getitem": _getitem,
    "stack": lambda values, axis=0: tuple(values),
    "concat": lambda values, axis: tuple(size for value in values for size in value),
    "cast": lambda x, dtype: x,
}


def apply_op(symbol: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Applies the keras.ops counterpart of a TensorFlow function to Keras 3 tensors.

    Args:
      symbol: the function's public name without "tf.", such as "nn.relu6".
      args: its positional arguments, tensors replaced by Keras 3 ones.
      kwargs: its keyword arguments.

    Returns:
      Keras 3 tensors, or plain sizes when the function works on shapes only.

    Raises:
      ValueError: when the function, or its use here, has no counterpart.

    >>> apply_op("math.add", (keras.Input((3,)), 1.0), {"name": None}).shape
    (None, 3)
    """
    kwargs = {key: value for key, value in kwargs.items() if key != "name"}
    symbolic = any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten((args, kwargs)))
    table = OPS if symbolic else _SIZE_OPS
    if symbol not in table:
        raise ValueError(f"tf.{symbol} has no counterpart" + ("" if symbolic else " for sizes of shapes"))
    try:
        return table[symbol](*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"tf.{symbol} with these arguments has no counterpart ({error})") from error
