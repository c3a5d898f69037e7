"""Generators become arrays, in memory or on the disk; and every way that one can be unfit."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt.data import from_generator

X, Y = np.random.default_rng(0).normal(size=(40, 3)).astype("float32"), np.arange(40) % 2


def pairs():
    yield from zip(X, Y.tolist(), strict=True)


def everything(data):
    return [
        [np.asarray(part).tolist() for part in tf.nest.flatten(example)]
        for split in data.sizes
        for example in data.examples(split).as_numpy_iterator()
    ]


def test_what_arrays_give(tmp_path):
    expected = everything(tfopt.from_arrays((X, Y), seed=5, stratify=True))
    memory = from_generator(pairs, seed=5, stratify=True)
    disk = from_generator(pairs, folder=tmp_path / "kept", seed=5, stratify=True)
    assert everything(memory) == everything(disk) == expected
    assert memory.element_spec == disk.element_spec
    assert disk.name == "kept"
    assert sorted(each.name for each in (tmp_path / "kept").iterdir()) == ["x.npy", "y.npy"]


def test_structures_text_and_lists():
    def examples():
        for row in range(20):
            yield {"text": f"ä {row}", "list": [row, row + 1]}, float(row), 0.5

    data = from_generator(examples)
    x, y, weight = data.element_spec
    assert (x["text"].dtype, x["list"].shape, y.dtype, weight.dtype) == (tf.string, (None, 2), tf.float64, tf.float64)
    for x, y, _ in data.examples("train").as_numpy_iterator():
        assert x["text"].decode() == f"ä {int(y)}"
        assert x["list"].tolist() == [y, y + 1]


@pytest.mark.parametrize("kind", [bytes, tf.constant, lambda text: [text, text + b"!"]])
def test_bytes_keep_their_last_nul(kind):
    texts = [b"%d\0" % row for row in range(20)]
    data = from_generator(lambda: ((kind(text), 0) for text in texts))
    found = [x for split in data.sizes for x, _ in data.examples(split).as_numpy_iterator()]
    found = [x if isinstance(x, bytes) else x[0] for x in found]
    assert sorted(found) == sorted(texts)


def test_a_spec_sets_types_and_most_ends_what_does_not():
    spec = (tf.TensorSpec((), tf.float32), tf.TensorSpec((), tf.int32))
    data = from_generator(lambda: ((number, number % 2) for number in itertools.count()), spec, most=30)
    assert data.sizes == {"train": 24, "validation": 3, "test": 3}
    assert [each.dtype for each in data.element_spec] == [tf.float32, tf.int32]


def test_what_is_infinite_stays_infinite():
    found = everything(from_generator(lambda: ((np.float32(row) if row else -np.inf, 0) for row in range(20, -1, -1))))
    assert sorted(x for x, _ in found)[:2] == [-np.inf, 1.0]


def once():
    iterator = pairs()
    return lambda: iterator


def unseeded():
    rng = np.random.default_rng(0)
    return lambda: ((rng.normal(size=2), 0) for _ in range(20))


def growing():
    calls = itertools.count()
    return lambda: zip(X[: 20 + next(calls)], Y, strict=False)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (once(), {}, ValueError, "39 examples the first time and 0 the second: make.. must return a new iterator"),
        (growing(), {}, ValueError, "21 examples the first time and 22 the second"),
        (unseeded(), {}, ValueError, "other examples each time it runs, .*: seed"),
        (lambda: iter(()), {}, ValueError, "gives no examples"),
        (pairs(), {}, TypeError, "make must be a function that returns a new iterator, received generator"),
        (lambda: iter(X), {}, TypeError, r"examples must be \(x, y\)"),
        (lambda: iter([(X[0], 0), (X[0, :2], 0)]), {}, ValueError, r"example 1 .* holds .*shape=\(2,\).*expected"),
        (lambda: iter([(1, 0), (1.5, 0)]), {}, ValueError, r"example 1 .* holds .*float64"),
        (lambda: iter([(1, 0), ("a", 0)]), {}, ValueError, r"example 1 .* holds .*string"),
        (lambda: iter([(2**70, 0)]), {}, TypeError, "examples must hold numbers and text, received int 118"),
        (lambda: iter([(None, 0)]), {}, TypeError, "examples must hold numbers and text, received NoneType"),
        (
            lambda: iter([(np.int32(1), 0), (2**40, 0)]),
            {},
            ValueError,
            "example 1 .* 1099511627776.* int32",
        ),
        (lambda: iter([(np.int8(1), 0), (np.uint8(200), 0)]), {}, ValueError, "example 1 .* 200.* int8"),
        (
            lambda: iter([(np.float16(1), 0), (1e9, 0)]),
            {},
            ValueError,
            r"example 1 .* 1000000000.0.* float16",
        ),
        (pairs, {"spec": (tf.TensorSpec((None,)), tf.TensorSpec(()))}, ValueError, "spec must have full shapes"),
        (lambda: iter([("a", 0)] * 20), {"folder": "."}, ValueError, "one array of numbers each"),
        (pairs, {"most": 0}, ValueError, "gives no examples"),
        (pairs, {"most": -1}, ValueError, "most must be at least 0, received -1"),
    ],
)
def test_what_is_no_generator_of_examples(make, options, error, message):
    with pytest.raises(error, match=message):
        from_generator(make, **options)
