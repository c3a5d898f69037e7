"""What travels between server and clients: frames, strings and JSON, bit for bit."""

import contextlib

import hypothesis
import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import numpy as np

from tfopt.serve.description import TensorInfo
from tfopt.serve.tensors import dump, parse, to_array, to_values
from tfopt.serve.wire import PREFIX, from_bytes, pack, to_bytes, unpack

NUMBERS = st.sampled_from(["float32", "float16", "int8", "uint8", "int64", "bool", "float64"])
ARRAYS = NUMBERS.flatmap(lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, min_side=0)))


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(st.dictionaries(st.text(max_size=5), ARRAYS, max_size=3), max_size=3))
def test_frames_carry_arrays_bit_for_bit(requests):
    prefix, head, *content = pack({"raw": True}, requests)
    joined = b"".join(content)
    assert PREFIX.unpack(prefix) == (len(head), len(joined))
    found, received = unpack(head, joined)
    assert found["raw"] is True
    for sent, got in zip(requests, received, strict=True):
        assert list(sent) == list(got)
        for name, values in sent.items():
            assert (got[name].dtype, got[name].shape) == (values.dtype, values.shape)
            assert got[name].tobytes() == values.tobytes()


@hypothesis.given(st.lists(st.binary(max_size=20), max_size=5))
def test_strings_as_bytes(texts):
    dtype, content = to_bytes(np.array([*texts, b""], object)[: len(texts)])
    assert from_bytes(content, dtype, [len(texts)]).tolist() == texts


@hypothesis.given(st.binary(max_size=60), st.lists(st.integers(0, 2**62), max_size=3))
def test_any_bytes_are_strings_or_a_value_error(content, shape):
    with contextlib.suppress(ValueError):
        assert from_bytes(content, "string", shape).shape == tuple(shape)


@hypothesis.given(st.binary(max_size=60))
def test_any_bytes_are_json_or_a_value_error(content):
    with contextlib.suppress(ValueError):
        parse(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@hypothesis.given(JSON, st.sampled_from(["float32", "int8", "uint8", "int64", "bool", "string", "float16"]))
def test_any_values_are_an_array_or_a_value_error(values, dtype):
    with contextlib.suppress(ValueError):
        array = to_array(values, TensorInfo("x", (-1,), dtype, dtype))
        assert array.dtype == (object if dtype == "string" else dtype)


@hypothesis.given(arrays_of.arrays("float32", 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_floats_survive_json_bit_for_bit(values):
    info = TensorInfo("x", (-1,), "float32", "float32")
    assert to_array(parse(dump(to_values(values, "x"))), info).tobytes() == values.tobytes()


def test_strings_in_json():
    info = TensorInfo("x", (-1,), "string", "string")
    array = to_array(["é", {"b64": "/w=="}], info)
    assert array.tolist() == ["é".encode(), b"\xff"]
    assert to_values(array, "x") == ["é", {"b64": "/w=="}]
    assert to_values(array, "x_bytes") == [{"b64": "w6k="}, {"b64": "/w=="}]
