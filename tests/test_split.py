"""Splits drawn by seed, class or group, and arrays read from files."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfopt
from tfopt.data.split import draw

FRACTIONS = {"validation": 0.2, "test": 0.1}


@given(st.integers(10, 200), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_every_row_is_in_one_split(size, seed):
    drawn = draw(size, FRACTIONS, seed)
    assert np.array_equal(np.sort(np.concatenate(list(drawn.values()))), np.arange(size))
    assert len(drawn["validation"]) == max(1, round(0.2 * size))
    assert all(np.array_equal(one, draw(size, FRACTIONS, seed)[split]) for split, one in drawn.items())


@given(st.lists(st.integers(3, 60), min_size=2, max_size=5), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_classes_give_their_share(counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    drawn = draw(len(labels), FRACTIONS, seed, labels=labels)
    for split, fraction in FRACTIONS.items():
        assert np.bincount(labels[drawn[split]]).tolist() == [max(1, round(fraction * count)) for count in counts]


@given(st.lists(st.integers(1, 30), min_size=3, max_size=9), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_groups_stay_together(counts, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    drawn = draw(len(groups), FRACTIONS, seed, groups=groups)
    seen = [set(groups[rows]) for rows in drawn.values()]
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(counts)
    assert sum(map(len, drawn.values())) == len(groups)


def subjects(data, x, subject):
    rows = {row.tobytes(): who for row, who in zip(x, subject, strict=True)}
    return {
        split: {rows[each.tobytes()] for each, _ in data.examples(split).as_numpy_iterator()} for split in data.sizes
    }


def test_files_give_what_arrays_give(tmp_path):
    rng = np.random.default_rng(0)
    x, y, who = rng.normal(size=(60, 5)).astype("float32"), np.arange(60) % 3, np.arange(60) // 6
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "all.npz", features=x, target=y, who=who)
    options = {"seed": 4, "batch_size": 7, "groups": who}
    arrays = tfopt.from_arrays((x, y), **options)
    mapped = tfopt.from_npy(tmp_path / "x.npy", tmp_path / "y.npy", **options)
    packed = tfopt.from_npz(tmp_path / "all.npz", "features", "target", groups="who", seed=4, batch_size=7)
    assert (mapped.name, packed.name) == ("x", "all")
    for epoch in (0, 1):
        batches = [list(each.training_batches(epoch).as_numpy_iterator()) for each in (arrays, mapped, packed)]
        for one, other, third in zip(*batches, strict=True):
            assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(one, other, third, strict=True))
    parts = list(subjects(mapped, x, who).values())
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    stratified = tfopt.from_npy(tmp_path / "x.npy", y, stratify=True)
    assert sorted(int(label) for _, label in stratified.examples("test")) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("names", [["naïve", "ok"], ["naïve".encode(), b"ok"]])
def test_names_of_classes_in_a_file(names, tmp_path):
    np.savez(tmp_path / "set.npz", x=np.zeros((20, 2)), y=np.arange(20) % 2, names=names)
    assert tfopt.from_npz(tmp_path / "set.npz", classes="names").class_names == ("naïve", "ok")


def test_home_is_where_files_may_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", np.arange(20))
    np.savez(tmp_path / "all.npz", x=np.arange(20), y=np.arange(20) % 2)
    data = tfopt.from_npy("~/x.npy", np.arange(20) % 2)
    assert all(x % 2 == y for x, y in data.examples("train").as_numpy_iterator())
    assert tfopt.from_npz("~/all.npz").fingerprint() == tfopt.from_npz(tmp_path / "all.npz").fingerprint()


STREAM = """
import sys, numpy as np, tfopt
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
data = tfopt.from_npy(sys.argv[1], np.arange(int(sys.argv[2])) % 2, batch_size=64)
next(iter(data.test))
before, most, total = resident(), 0, 0.0
for x, _ in data.train:
    total += float(x.numpy()[:, 0].sum())
    most = max(most, resident())
print(total, most - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_in_another_byte_order(order, tmp_path):
    rows = np.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "x.npy", np.asarray(rows.astype(">f4"), order=order))
    data = tfopt.from_npy(tmp_path / "x.npy", np.arange(20).astype(">i4"))
    for split in ("train", "test"):
        for x, y in data.examples(split).as_numpy_iterator():
            assert np.array_equal(x, rows[y])


@pytest.mark.slow
def test_what_is_larger_than_memory_streams(tmp_path):
    """A gigabyte passes, and the process grows by less than a fifth of it, pages of mapped files counted in."""
    rows, width = 16_384, 16_384
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "float32", (rows, width))
    x[:, 0] = 1.0
    del x
    command = [sys.executable, "-c", STREAM, str(tmp_path / "x.npy"), str(rows)]
    total, megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(total) == rows - 2 * round(0.1 * rows)
    assert int(megabytes) < 200


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: tfopt.from_npy(f / "none.npy", [1]), FileNotFoundError, "there is no file"),
        (lambda f: tfopt.from_npy(f / "x.npy", np.zeros(3)), ValueError, r"shapes \(20, 2\) and \(3,\)"),
        (lambda f: tfopt.from_npy(f / "all.npz", np.zeros(20)), ValueError, "use from_npz"),
        (lambda f: tfopt.from_npy(f / "damaged.npy", np.zeros(20)), ValueError, "Write it with np.save"),
        (lambda f: tfopt.from_npz(f / "x.npy"), ValueError, "use from_npy"),
        (lambda f: tfopt.from_npz(f / "all.npz", "images"), ValueError, "no array 'images', it has x, y"),
        (lambda f: draw(10, FRACTIONS, 0, groups=[0] * 10), ValueError, "there are 1 groups: at least 3"),
        (lambda f: draw(10, FRACTIONS, 0, labels=[0] * 9 + [1]), ValueError, r"has 1 examples: at least 3"),
        (lambda f: draw(10, FRACTIONS, 0, labels=[0] * 9), ValueError, "one for each of 10 examples, received 9"),
        (lambda f: draw(10, FRACTIONS, 0, [0] * 10, [0] * 10), ValueError, "not both"),
        (lambda f: draw(4, FRACTIONS, 0, labels=np.arange(4)), ValueError, "the class 0 has 1 examples"),
        (lambda f: draw(4, FRACTIONS, 0, labels=[0, 0, 0, np.nan]), ValueError, "labels must not be missing"),
        (lambda f: draw(4, FRACTIONS, 0, groups=["a", None, "b", "c"]), ValueError, "groups must not be missing"),
        (lambda f: draw(4, FRACTIONS, 0, groups=np.zeros((4, 1))), ValueError, r"of 4 examples, received .* \(4, 1\)"),
        (lambda f: tfopt.from_npy(f / "dates.npy", np.zeros(20)), ValueError, r"holds datetime64\[s\]: numbers"),
    ],
)
def test_bad_input(make, error, message, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((20, 2)))
    np.save(tmp_path / "dates.npy", np.zeros(20, "M8[s]"))
    np.savez(tmp_path / "all.npz", x=np.zeros((20, 2)), y=np.zeros(20))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(error, match=message):
        make(tmp_path)
