"""Tables: what each kind of column becomes, which rows are taken, and every way that a table can be wrong."""

import gzip
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import tfopt
from tfopt.data import from_table

ROWS = 40


def everything(data):
    return {split: list(data.examples(split).as_numpy_iterator()) for split in data.sizes}


def png(seed, mode="RGB"):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype("uint8")
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


def numbers():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=ROWS),
        "b": rng.integers(0, 9, ROWS),
        "kind": np.array(["x", "y"])[np.arange(ROWS) % 2],
    }


def write(path, columns):
    """The columns in a file of the kind that its name says."""
    table = pa.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
        return path
    names, delimiter = table.column_names, "\t" if ".tsv" in path.name else ","
    lines = [delimiter.join(names)]
    lines += [
        delimiter.join("" if row[name] is None else str(row[name]) for name in names) for row in table.to_pylist()
    ]
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["set.csv", "set.csv.gz", "set.tsv", "set.tsv.gz", "set.parquet"])
def test_numbers_in_every_kind_of_file(name, tmp_path):
    columns = numbers()
    data = from_table(write(tmp_path / name, columns), "kind", seed=3, stratify=True)
    assert (data.name, data.class_names, data.input_shape) == ("set", ("x", "y"), (2,))
    assert data.sizes == {"train": 32, "validation": 4, "test": 4}
    x, y = np.stack([columns["a"], columns["b"]], -1).astype("float32"), np.arange(ROWS) % 2
    arrays = everything(tfopt.from_arrays((x, y), seed=3, stratify=True))
    for split, examples in everything(data).items():
        for (one, label), (other, expected) in zip(examples, arrays[split], strict=True):
            np.testing.assert_array_equal(one, other)
            assert (one.dtype, label) == (np.float32, expected)


def test_missing_numbers_are_nan(tmp_path):
    lines = ["a,b,y", *[f"{row},{'?' if row == 7 else row},{row % 2}" for row in range(20)]]
    (tmp_path / "set.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"'b' holds '0' beside others: choose with features="):
        from_table(tmp_path / "set.csv", "y")
    x = np.concatenate(
        [[x for x, _ in part] for part in everything(from_table(tmp_path / "set.csv", "y", missing="?")).values()]
    )
    x = x[np.argsort(x[:, 0])]
    assert np.isnan(x[7, 1])
    assert np.isnan(x).sum() == 1
    assert from_table(tmp_path / "set.csv", "y", features=["a"]).input_shape == (1,)


def test_the_type_of_a_column_does_not_follow_from_its_beginning(tmp_path):
    """A megabyte of whole numbers, then one with a fraction."""
    lines = ["a,y", *[f"{10**9 + row},{row % 2}" for row in range(120_000)], "0.5,1"]
    (tmp_path / "set.csv").write_text("\n".join(lines))
    data = from_table(tmp_path / "set.csv", "y")
    assert sum(data.sizes.values()) == 120_001
    assert data.element_spec[0].dtype.name == "float32"


def test_text_as_it_is(tmp_path):
    texts = ["two\nlines, and a comma", "NA", "", "ünï", *(f"text {row}" for row in range(16))]
    quoted = ["text,y", *(f'"{text}",{row % 2}' for row, text in enumerate(texts))]
    (tmp_path / "set.csv").write_text("\n".join(quoted), encoding="utf-8")
    write(tmp_path / "set.parquet", {"text": texts, "y": np.arange(20) % 2})
    found = [everything(from_table(tmp_path / name, "y", seed=2)) for name in ("set.csv", "set.parquet")]
    assert found[0] == found[1]
    assert sorted(x.decode() for part in found[0].values() for x, _ in part) == sorted(texts)


def test_splits_as_given_and_rows_chosen(tmp_path):
    rows = [("m", "train")] * 8 + [("n", "train")] * 8 + [("m", "dev")] * 3 + [("m", "test")] * 2 + [("m", "all")]
    columns = {
        "text": [f"text {row}" for row in range(len(rows))],
        "set": [each for each, _ in rows],
        "split": pa.array([each for _, each in rows]).dictionary_encode(),
        "label": pa.array([row % 2 for row in range(len(rows))], pa.int8()),
    }
    path = write(tmp_path / "set.parquet", columns)
    with pytest.raises(ValueError, match="the column 'split' holds all, and splits are named train"):
        from_table(path, "label", split="split", where={"set": "m"})
    path = write(path, {name: column[:-1] for name, column in columns.items()})
    data = from_table(path, "label", split="split", where={"set": "m"})
    found = {split: [x.decode() for x, _ in part] for split, part in everything(data).items()}
    assert found == {
        split: [f"text {row}" for row in range(*places)]
        for split, places in {"train": (0, 8), "validation": (16, 19), "test": (19, 21)}.items()
    }
    drawn = from_table(path, "label", features=["text"], split="split", where={"split": "train"}, stratify=True)
    assert drawn.sizes == {"train": 12, "validation": 2, "test": 2}
    with pytest.raises(ValueError, match=r"no row .* has .*: the column 'set' holds m, n"):
        from_table(path, "label", where={"set": "o"})
    with pytest.raises(ValueError, match="names no rows of training, only test"):
        from_table(path, "label", features=["text"], split="split", where={"split": "test"}, task="classification")


def test_groups_stay_together(tmp_path):
    path = write(tmp_path / "set.csv", {"a": np.arange(ROWS), "who": np.arange(ROWS) // 4, "y": np.arange(ROWS) % 2})
    data = from_table(path, "y", groups="who")
    assert data.input_shape == (1,)
    found = [{int(x[0]) // 4 for x, _ in part} for part in everything(data).values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 10


@pytest.mark.parametrize(
    ("target", "options", "first", "names"),
    [
        ([0.5, 2.0], {}, np.float32(0.5), ()),
        ([3, 7], {"task": "regression"}, np.float32(3), ()),
        ([3, 7], {}, 0, ("3", "7")),
        ([1, 0], {"class_names": ("a", "b", "c")}, 1, ("a", "b", "c")),
        (["b", "a"], {"class_names": ("b", "a")}, 0, ("b", "a")),
        ([True, False], {}, 1, ("False", "True")),
    ],
)
def test_what_targets_become(target, options, first, names, tmp_path):
    for name in ("set.csv", "set.parquet"):
        path = write(tmp_path / name, {"a": np.arange(20), "y": target * 10})
        data = from_table(path, "y", **options)
        assert data.class_names == names
        y = {int(x[0]): y for part in everything(data).values() for x, y in part}
        assert (y[0], y[0].dtype) == (first, np.asarray(first).dtype)
        assert y[0] != y[1]


def test_missing_truth_values_are_missing_numbers(tmp_path):
    flags = [True, False, None, False] * 5
    path = write(tmp_path / "set.parquet", {"a": flags, "b": np.arange(20), "y": np.arange(20) % 2})
    for part in everything(from_table(path, "y")).values():
        for (flag, row), _ in part:
            np.testing.assert_equal(flag, {True: 1.0, False: 0.0, None: np.nan}[flags[int(row)]])
    path = write(tmp_path / "none.parquet", {"a": pa.array([None] * 20, pa.string()), "y": np.arange(20) % 2})
    with pytest.raises(ValueError, match="row 0 of .*: there is no text in the column 'a'"):
        from_table(path, "y")


def test_words_that_stand_for_nothing_in_csv_are_words_in_parquet(tmp_path):
    path = write(tmp_path / "set.parquet", {"a": np.arange(20), "y": ["NA", "EU"] * 10})
    assert from_table(path.rename(tmp_path / "SET.PARQUET"), "y").class_names == ("EU", "NA")


def test_huge_whole_numbers_are_told_apart(tmp_path):
    labels = np.array([2**63 + 5, 2**63 + 6] * 10, "uint64")
    assert from_table(write(tmp_path / "set.parquet", {"a": np.arange(20), "y": labels}), "y").class_names == (
        "9223372036854775813",
        "9223372036854775814",
    )


def test_images_are_those_of_the_bytes(tmp_path):
    pictures = [png(row) for row in range(20)]
    structs = [{"bytes": each, "path": None} for each in pictures]
    plain = write(tmp_path / "a.parquet", {"image": pictures, "y": np.arange(20) % 2})
    nested = write(tmp_path / "b.parquet", {"image": structs, "y": np.arange(20) % 2})
    found = [
        everything(from_table(path, "y", image_size=(6, 8), cache=cache))
        for path, cache in ((plain, True), (nested, False))
    ]
    expected = {np.asarray(Image.open(io.BytesIO(each))).tobytes() for each in pictures}
    for each in found:
        assert {x.tobytes() for part in each.values() for x, _ in part} == expected
    batch, _ = next(iter(from_table(plain, "y", image_size=(4, 4)).train))
    assert batch.shape == (16, 4, 4, 3)
    assert 0 <= batch.numpy().min() <= batch.numpy().max() <= 1
    with pytest.raises(ValueError, match="holds images: pass image_size="):
        from_table(plain, "y")


def test_bad_rows_are_named(tmp_path):
    pictures = [png(row) for row in range(20)]
    pictures[3], pictures[5], pictures[8] = b"no image", png(5, "L"), None
    path = write(tmp_path / "set.parquet", {"image": pictures, "y": [None, *(row % 2 for row in range(19))]})
    with pytest.raises(ValueError, match=r"row 0 of .*: there is nothing in the column 'y'\. Mend it, or pass on_bad"):
        from_table(path, "y", image_size=(6, 8))
    data = from_table(path, "y", image_size=(6, 8), on_bad="skip")
    assert list(data.skipped) == ["row 0", "row 3", "row 5", "row 8"]
    assert data.skipped["row 5"] == "the image: channels of mode L, where RGB is expected"
    assert data.skipped["row 8"] == "the image: it is empty"
    assert sum(data.sizes.values()) == 16
    repaired = from_table(path, "y", image_size=(6, 8), on_bad="repair")
    assert list(repaired.skipped) == ["row 0", "row 3", "row 8"]
    assert sum(len(part) for part in everything(repaired).values()) == 17
    texts = write(tmp_path / "text.parquet", {"text": [None, *"abcdefghijklmnopqrs"], "y": np.arange(20) % 2})
    assert from_table(texts, "y", on_bad="skip").skipped == {"row 0": "there is no text in the column 'text'"}
    assert b"" in [x for part in everything(from_table(texts, "y", on_bad="repair")).values() for x, _ in part]


def test_rows_keep_their_numbers_where_some_cannot_be_parsed(tmp_path):
    lines = ["a,y", *[f"{row},{'' if row == 6 else row % 2}" + ",9" * (row in (2, 4)) for row in range(20)]]
    (tmp_path / "set.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"cannot be read as csv: .*Expected 2 columns, got 3"):
        from_table(tmp_path / "set.csv", "y")
    data = from_table(tmp_path / "set.csv", "y", on_bad="skip")
    assert data.skipped == {
        "row 2": "it has 3 values, and there are 2 columns",
        "row 4": "it has 3 values, and there are 2 columns",
        "row 6": "there is nothing in the column 'y'",
    }
    assert sorted(int(x[0]) for part in everything(data).values() for x, _ in part) == sorted(
        set(range(20)) - {2, 4, 6}
    )


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,y\n", {}, "has no rows"),
        ("", {}, "cannot be read as csv: Empty CSV file"),
        (b"a,y\n\xff,1\n", {}, "cannot be read as csv: .*UTF8"),
        ("a,a,y\n1,2,0\n", {}, "has several columns of the name 'a'"),
        ("y\n1\n", {}, "no columns of inputs beside y"),
        ("a,label\n1,0\n", {"target": "lable"}, r"no column 'lable': did you mean label\? There are a, label"),
        ("a,y\n1,0\n", {"features": ["y"]}, "the target 'y' is among the features"),
        ("a,y\n1,0\n", {"on_bad": "ignore"}, "on_bad must be one of raise"),
        ("a,y\n1,0\n", {"image_size": (8, 8)}, "image_size is for a column of images"),
        ("a,y\nt,0\n", {"image_size": (8, 8)}, "the column 'a' holds no images"),
        ("a,y\n1e300,0\n", {}, "row 0 of .*: a number is too large for float32"),
        ("a,y\n1,NA\n", {"on_bad": "skip"}, "none of the 1 rows"),
        ("a,y\n1,0\n1,2\n", {"class_names": ("n",)}, r"the label \[2\] is out of range: there are 1 class_names"),
        ("a,y\n1,m\n", {"class_names": ("n",)}, r"the label \['m'\] is none of the class_names"),
        ("a,y\n1,30\n2,40\n3,50\n", {}, 'has 3 different whole numbers in 3 rows: pass task="regression"'),
        ("a,y\n1,0.5\n", {"task": "classification"}, "the targets have fractions"),
        ("a,y\n1,m\n", {"task": "regression"}, "regression takes numbers"),
        ("a,y\n1,1\n1,inf\n", {}, r"row 1 of .*: the target is infinite"),
        ("a,y\n1,1e20\n1,2\n1,2\n1,2\n", {}, "the label 100000000000000000000 is too large"),
        ("a,y\n1,9007199254740993\n1,9007199254740992\n", {}, "the label 9007199254740992 is too large"),
    ],
)
def test_bad_tables(content, options, message, tmp_path):
    (tmp_path / "set.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        from_table(tmp_path / "set.csv", **{"target": "y", **options})


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_table(tmp_path / "none.csv", "y")
    (tmp_path / "set.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        from_table(tmp_path / "set.parquet", "y")
    (tmp_path / "set.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        from_table(tmp_path / "set.xlsx", "y")
    dates = write(tmp_path / "dates.parquet", {"day": pa.array([0, 1], pa.date32()), "y": [0, 1]})
    with pytest.raises(ValueError, match="the column 'day' is of the type date32"):
        from_table(dates, "y")
