"""Trained ranges spread as LiteRT's kernels need them."""

import numpy as np
import pytest

from tfopt.tflite.flatbuffer import Graph, Operator, Tensor
from tfopt.tflite.ranges import FIXED, complete_ranges


def graph(*operators, outputs=("out",), constants=()):
    """A graph of operators given as (type, names of inputs, names of outputs), the input being "x"."""
    names = list(dict.fromkeys(["x", *(name for _, before, after in operators for name in (*before, *after))]))
    tensors = tuple(
        Tensor(i, name, (1, 4), "float32", None, np.ones((1, 4), "float32") if name in constants else None, i)
        for i, name in enumerate(names)
    )
    made = tuple(
        Operator(kind, tuple(map(names.index, before)), tuple(map(names.index, after)))
        for kind, before, after in operators
    )
    return Graph("main", tensors, made, (0,), tuple(map(names.index, outputs)))


A, B, C = (-1.0, 2.0), (0.0, 6.0), (-3.0, 3.0)


def test_what_only_moves_values_keeps_the_range():
    found = complete_ranges(
        graph(("ADD", ["x", "x"], ["a"]), ("MAX_POOL_2D", ["a"], ["b"]), ("RESHAPE", ["b"], ["out"])),
        # What is said of the outputs does not count: their kernels have no choice.
        {"x": A, "a": B, "b": C, "out": C},
        16,
    )
    assert found == {"x": A, "a": B, "b": B, "out": B}


def test_a_range_behind_what_moves_values_holds_before_it():
    moved = graph(("ADD", ["x", "x"], ["a"]), ("TRANSPOSE", ["a"], ["b"]), ("PAD", ["b"], ["out"]))
    assert complete_ranges(moved, {"x": A, "out": B}, 16)["a"] == B
    read_twice = graph(("ADD", ["x", "x"], ["a"]), ("PAD", ["a"], ["out"]), ("NEG", ["a"], ["c"]))
    with pytest.raises(
        ValueError, match=r"tensors without a range: 'a' \(ADD\), 'a' \(PAD\), 'a' \(NEG\), 'c' \(NEG\)"
    ):
        complete_ranges(read_twice, {"x": A, "out": B}, 16)
    # The average of large values can be small.
    averaged = graph(("ADD", ["x", "x"], ["a"]), ("AVERAGE_POOL_2D", ["a"], ["out"]))
    with pytest.raises(ValueError, match=r"without a range: 'a' \(ADD\), 'a' \(AVERAGE_POOL_2D\). Put a quantizer"):
        complete_ranges(averaged, {"x": A, "out": B}, 16)


def test_a_relu_on_its_own_may_cut_before_it():
    cut = graph(("MEAN", ["x"], ["a"]), ("RELU", ["a"], ["out"]))
    assert complete_ranges(cut, {"x": A, "out": B}, 16)["a"] == B
    # What another one reads is not cut for it, and the ReLU has a range of its own.
    read_twice = graph(("MEAN", ["x"], ["a"]), ("RELU", ["a"], ["out"]), ("NEG", ["a"], ["c"]))
    assert complete_ranges(read_twice, {"x": A, "a": C, "out": B, "c": C}, 16) == {"x": A, "a": C, "out": B, "c": C}
    with pytest.raises(ValueError, match=r"tensors without a range: 'a' \(MEAN\)"):
        complete_ranges(read_twice, {"x": A, "out": B, "c": C}, 16)


def test_concatenated_concatenations_share_one_range():
    nested = graph(
        ("NEG", ["x"], ["a"]),
        ("ADD", ["x", "x"], ["b"]),
        ("MUL", ["x", "x"], ["c"]),
        ("CONCATENATION", ["a", "b"], ["d"]),
        ("CONCATENATION", ["d", "c"], ["out"]),
    )
    found = complete_ranges(nested, {"x": A, "out": C}, 8)
    assert found == {"x": A, "a": C, "b": C, "c": C, "d": C, "out": C}


def test_branches_keep_their_range_where_it_is_needed():
    branches = graph(
        ("NEG", ["x"], ["a"]),
        ("MAX_POOL_2D", ["x"], ["b"]),
        ("CONCATENATION", ["a", "b"], ["c"]),
        ("ADD", ["a", "a"], ["out"]),
    )
    found = complete_ranges(branches, {"x": A, "a": B, "c": C, "out": C}, 8)
    assert (found["a"], found["b"]) == (B, A)


@pytest.mark.parametrize(
    ("bits", "kind", "scale"), [(8, "SOFTMAX", 1 / 256), (16, "LOGISTIC", 1 / 32768), (16, "TANH", 1 / 32768)]
)
def test_kernels_with_ranges_of_their_own(bits, kind, scale):
    fixed = graph((kind, ["x"], ["a"]), ("RESHAPE", ["a"], ["out"]))
    found = complete_ranges(fixed, {"x": A, "a": C}, bits)
    low, high = found["a"]
    assert found["out"] == found["a"] == FIXED[bits][kind]
    assert scale == (high / 32767 if bits == 16 else (high - low) / 255)


def test_constants_have_the_range_of_the_tensor_they_become():
    table = graph(("GATHER", ["table"], ["out"]), ("ADD", ["x", "added"], ["b"]), constants=("table", "added"))
    own = {"table": A, "added": A}
    found = complete_ranges(table, {"x": A, "out": C, "b": B}, 16, own)
    assert (found["table"], found["out"], found["added"]) == (C, C, A)
    assert complete_ranges(table, {"x": A, "b": B}, 16, own)["out"] == A
