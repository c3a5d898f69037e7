"""Folders of images: what is read, how it is split, and every kind of file that cannot be used."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import tfopt


def encoded(array, kind="PNG", mode=None):
    image = Image.fromarray(array)
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind)
    return out.getvalue()


def picture(seed, size=(12, 10), kind="PNG", mode=None):
    return encoded(np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype("uint8"), kind, mode)


def png_of_size(width, height):
    """The header of a picture that would fill the memory, with nothing in it."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def bomb():
    """A few kilobytes that become 300 million pixels."""
    out = io.BytesIO()
    Image.new("1", (20_000, 15_000)).save(out, "PNG")
    return out.getvalue()


BAD = {
    "empty": (b"", "it is empty"),
    "text": (b"not a picture", "it is no image"),
    "truncated_png": (picture(1)[:200], "it is damaged"),
    "truncated_jpeg": (picture(1, (64, 64), "JPEG")[:900], "it is damaged"),
    "wrong_header": (b"\xff\xd8\xff\xe0" + picture(2)[4:], "it is no image"),
    "huge": (png_of_size(60_000, 60_000), "100,000,000"),
    "bomb": (bomb(), "100,000,000"),
    "format": (picture(3, kind="TIFF"), "it is TIFF"),
    "grey": (picture(4, mode="L"), "channels of mode L"),
    "cmyk": (picture(5, kind="JPEG", mode="CMYK"), "channels of mode CMYK"),
    "alpha": (picture(6, mode="RGBA"), "channels of mode RGBA"),
}


def write(folder, counts=(30, 20), start=0, kinds=("PNG", "JPEG", "BMP")):
    """Classes a and b of good pictures, of several sizes."""
    for name, count in zip("ab", counts, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            kind = kinds[number % len(kinds)]
            seed = start + 1000 * (name == "b") + number
            content = picture(seed, (8 + number % 5, 16), kind)
            (folder / name / f"{number}.{kind.lower()}").write_bytes(content)
    return folder


def everything(data):
    return {
        split: [(x.tobytes(), int(y)) for x, y in data.examples(split).as_numpy_iterator()]
        for split in ("train", "validation", "test")
    }


def test_classes_keep_their_shares(tmp_path):
    data = tfopt.from_folder(write(tmp_path / "set"), (8, 8), seed=1)
    assert data.sizes == {"train": 40, "validation": 5, "test": 5}
    assert data.class_names == ("a", "b")
    assert data.name == "set"
    assert data.skipped == {}
    labels = {split: [y for _, y in pairs] for split, pairs in everything(data).items()}
    assert [labels[split].count(0) for split in labels] == [24, 3, 3]
    images = [x for pairs in everything(data).values() for x, _ in pairs]
    assert len(set(images)) == 50
    assert everything(tfopt.from_folder(tmp_path / "set", (8, 8), seed=1, cache=False)) == everything(data)
    other = everything(tfopt.from_folder(tmp_path / "set", (8, 8), seed=2))
    assert set(other["test"]) != set(everything(data)["test"])
    batch, _ = next(iter(data.train))
    assert batch.shape == (40, 8, 8, 3)
    assert 0 <= batch.numpy().min() <= batch.numpy().max() <= 1


def test_pixels_are_those_of_the_file(tmp_path):
    write(tmp_path, (4, 4), kinds=("PNG",))
    array = np.random.default_rng(9).integers(0, 256, (8, 16, 3)).astype("uint8")
    (tmp_path / "a" / "0.png").write_bytes(encoded(array))
    data = tfopt.from_folder(tmp_path, (8, 16))
    assert array.tobytes() in {x for pairs in everything(data).values() for x, _ in pairs}
    grey = tfopt.from_folder(tmp_path, (8, 16), channels=1, on_bad="repair")
    assert grey.input_shape == (8, 16, 1)


def test_given_splits(tmp_path):
    write(tmp_path / "train", (8, 8))
    write(tmp_path / "val", (3, 3), start=100)
    data = tfopt.from_folder(tmp_path, (8, 8), test_fraction=0.25)
    assert data.sizes == {"train": 12, "validation": 6, "test": 4}
    write(tmp_path / "test", (2, 2), start=200)
    assert tfopt.from_folder(tmp_path, (8, 8)).sizes == {"train": 16, "validation": 6, "test": 4}


def test_copies_are_in_one_split(tmp_path):
    write(tmp_path, (20, 20))
    for number in range(20):
        content = next((tmp_path / "a").glob(f"{number}.*")).read_bytes()
        (tmp_path / "a" / f"copy_{number}.png").write_bytes(content)
    # In another class too: the label is doubtful, but nothing of it is in two splits.
    (tmp_path / "b" / "copy.png").write_bytes(next((tmp_path / "a").glob("3.*")).read_bytes())
    found = everything(tfopt.from_folder(tmp_path, (8, 8), validation_fraction=0.3, test_fraction=0.3))
    parts = [{x for x, _ in pairs} for pairs in found.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert sum(map(len, found.values())) == 61


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named(name, tmp_path):
    content, reason = BAD[name]
    write(tmp_path, (6, 6))
    (tmp_path / "a" / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a/bad\.png cannot be used: .*{reason}.*on_bad="):
        tfopt.from_folder(tmp_path, (8, 8))
    data = tfopt.from_folder(tmp_path, (8, 8), on_bad="skip")
    assert list(data.skipped) == ["a/bad.png"]
    assert reason in data.skipped["a/bad.png"]
    assert sum(data.sizes.values()) == 12
    repaired = tfopt.from_folder(tmp_path, (8, 8), on_bad="repair")
    assert sum(repaired.sizes.values()) == (13 if reason.startswith("channels") else 12)
    assert sum(len(list(repaired.examples(split))) for split in repaired.splits) == sum(repaired.sizes.values())


def test_hundreds_of_bad_files_are_counted(tmp_path):
    write(tmp_path, (10, 10))
    cheap = [name for name in BAD if name != "bomb"]
    for number in range(400):
        (tmp_path / "b" / f"bad_{number:03}.jpg").write_bytes(BAD[cheap[number % len(cheap)]][0])
    assert len(tfopt.from_folder(tmp_path, (8, 8), on_bad="skip").skipped) == 400
    with pytest.raises(ValueError, match=r"b/bad_000\.jpg cannot be used: it is empty"):
        tfopt.from_folder(tmp_path, (8, 8))


def test_the_stage_lists_what_it_left_out(tmp_path):
    write(tmp_path / "set", (12, 12))
    (tmp_path / "set" / "a" / "bad.png").write_bytes(b"")
    stages = [
        tfopt.LoadFolder(tmp_path / "set", (8, 8), on_bad="skip", batch_size=8),
        tfopt.Build(tfopt.models.cnn, {"filters": 2}),
        tfopt.Train(1),
    ]
    entry = tfopt.run(stages, tfopt.Work(workdir=tmp_path / "run")).report.stages[0]
    assert entry.skipped == [{"layer": "a/bad.png", "reason": "it is empty"}]
    assert "1 files left out" in entry.notes[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "nowhere"}, FileNotFoundError, "there is no folder nowhere"),
        ({"on_bad": "ignore"}, ValueError, "on_bad must be one of raise, skip, repair"),
        ({"channels": 2}, ValueError, "channels must be 1, 3 or 4"),
        ({"image_size": (0, 8)}, ValueError, r"image_size must be \(height, width\)"),
        ({"validation_fraction": 10}, ValueError, "for 10 % write 0.1"),
    ],
)
def test_bad_arguments(options, error, message, tmp_path):
    write(tmp_path, (4, 4))
    with pytest.raises(error, match=message):
        tfopt.from_folder(**{"path": tmp_path, "image_size": (8, 8), **options})


def test_a_class_needs_images(tmp_path):
    write(tmp_path / "flat", (6, 6))
    (tmp_path / "flat" / "notes").mkdir()
    for on_bad in ("raise", "skip", "repair"):
        with pytest.raises(ValueError, match=r"flat/notes has no images that can be used .* remove the folder"):
            tfopt.from_folder(tmp_path / "flat", (8, 8), on_bad=on_bad)
        (tmp_path / "flat" / "notes" / "1.txt").write_text("no picture")
    write(tmp_path / "given" / "train", (6, 0))
    write(tmp_path / "given" / "val", (3, 3), start=100)
    with pytest.raises(ValueError, match=r"given/train/b has no images"):
        tfopt.from_folder(tmp_path / "given", (8, 8))
    # What is measured need not have every class.
    write(tmp_path / "other" / "train", (6, 6))
    write(tmp_path / "other" / "val", (3, 0), start=100)
    assert tfopt.from_folder(tmp_path / "other", (8, 8)).sizes["validation"] == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_gif(channels, tmp_path):
    write(tmp_path, (6, 6), kinds=("GIF",))
    if channels == 3:
        data = tfopt.from_folder(tmp_path, (8, 8), cache=False)
        assert (data.skipped, sum(data.sizes.values())) == ({}, 12)
        assert next(iter(data.test))[0].shape == (2, 8, 8, 3)
    else:
        with pytest.raises(ValueError, match=r"a/0\.gif cannot be used: it is damaged \(channels must be"):
            tfopt.from_folder(tmp_path, (8, 8), channels=channels)


def test_reasons_do_not_change_from_run_to_run(tmp_path):
    write(tmp_path, (6, 6))
    (tmp_path / "a" / "bad.png").write_bytes(b"not a picture")
    assert tfopt.from_folder(tmp_path, (8, 8), on_bad="skip").skipped == {"a/bad.png": "it is no image"}


def test_a_name_that_is_no_text_is_told(tmp_path):
    write(tmp_path, (6, 6))
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(picture(99))
    with pytest.raises(ValueError, match=r"the name 'a/\\udcff.png' in .* is not UTF-8: rename it"):
        tfopt.from_folder(tmp_path, (8, 8))


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="has no folders"):
        tfopt.from_folder(tmp_path, (8, 8))
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="there are no files"):
        tfopt.from_folder(tmp_path, (8, 8))
    (tmp_path / "a" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 files"):
        tfopt.from_folder(tmp_path, (8, 8), on_bad="skip")
    (tmp_path / "a" / "1.png").write_bytes(picture(0))
    with pytest.raises(ValueError, match="the class 'a' has 1 examples: at least 3 are needed"):
        tfopt.from_folder(tmp_path, (8, 8))
    write(tmp_path / "sets" / "train", (4, 4))
    (tmp_path / "sets" / "test" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="has the classes a, other splits a, b"):
        tfopt.from_folder(tmp_path / "sets", (8, 8))


def packed(folder, archive, top="", compression=zipfile.ZIP_DEFLATED):
    """The files of a folder in an archive."""
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, f"{top}{path.relative_to(folder).as_posix()}")
    return archive


@pytest.mark.parametrize("top", ["", "flowers/"])
@pytest.mark.parametrize("cache", [True, False])
def test_an_archive_gives_what_its_folder_gives(top, cache, tmp_path):
    write(tmp_path / "plain", (12, 12))
    write(tmp_path / "split" / "train", (5, 5))
    write(tmp_path / "split" / "val", (2, 2), start=100)
    for name in ("plain", "split"):
        archive = packed(tmp_path / name, tmp_path / f"{name}.zip", top)
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("__MACOSX/._0.png", b"")
        data = tfopt.from_folder(archive, (8, 8), seed=1, cache=cache)
        folder = tfopt.from_folder(tmp_path / name, (8, 8), seed=1)
        assert everything(data) == everything(folder)
        assert (data.name, data.sizes, data.class_names) == (folder.name, folder.sizes, folder.class_names)
        assert len(list(data.training_batches(1))) == data.steps_per_epoch


def test_the_only_class_of_an_archive_is_no_top_folder(tmp_path):
    write(tmp_path / "set" / "train", (6, 0))
    (tmp_path / "set" / "train" / "b").rmdir()
    data = tfopt.from_folder(packed(tmp_path / "set" / "train", tmp_path / "set.zip"), (8, 8))
    assert data.class_names == ("a",)


def test_bad_members_of_an_archive(tmp_path):
    write(tmp_path / "set", (12, 12))
    archive = packed(tmp_path / "set", tmp_path / "set.zip", compression=zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    # A byte of the first member, behind its header and name, and the size that the directory states of another.
    content[70] ^= 0xFF
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.zip/a/0\.png cannot be used: it cannot be read \(Bad CRC-32"):
        tfopt.from_folder(archive, (8, 8))
    skipped = tfopt.from_folder(archive, (8, 8), on_bad="skip").skipped
    assert list(skipped) == ["a/0.png", "b/9.png"]
    assert skipped["b/9.png"] == "it cannot be read (it unpacks to 2,147,483,648 bytes, more than 536,870,912)"
    archive.write_bytes(content[:500])
    with pytest.raises(ValueError, match=r"set\.zip cannot be read as a ZIP archive"):
        tfopt.from_folder(archive, (8, 8))
    with zipfile.ZipFile(archive, "w"):
        pass
    with pytest.raises(ValueError, match=r"there are no files in .*set\.zip"):
        tfopt.from_folder(archive, (8, 8))


def test_given_splits_share_no_file(tmp_path):
    for number, split in enumerate(("train", "validation", "test")):
        write(tmp_path / split, (6, 6), start=100 * number)
    copied = (tmp_path / "test" / "a" / "0.png").read_bytes()
    (tmp_path / "train" / "a" / "copy.png").write_bytes(copied)
    with pytest.raises(ValueError, match=r"train/a/copy\.png is equal to test/a/0\.png: .*trained on.*on_bad="):
        tfopt.from_folder(tmp_path, (8, 8))
    (tmp_path / "validation" / "b" / "copy.png").write_bytes(copied)
    (tmp_path / "train" / "b" / "other.png").write_bytes((tmp_path / "validation" / "a" / "0.png").read_bytes())
    for on_bad in ("skip", "repair"):
        data = tfopt.from_folder(tmp_path, (8, 8), on_bad=on_bad)
        assert data.sizes == {"train": 12, "validation": 12, "test": 12}
        assert data.skipped == {
            "train/a/copy.png": "it is equal to test/a/0.png",
            "train/b/other.png": "it is equal to validation/a/0.png",
            "validation/b/copy.png": "it is equal to test/a/0.png",
        }
        parts = [{x for x, _ in pairs} for pairs in everything(data).values()]
        assert sum(map(len, parts)) == len(set.union(*parts))
    for path in (tmp_path / "train").glob("*/*"):
        path.write_bytes(copied)
    with pytest.raises(ValueError, match="all files of the train split of .* are in another split too"):
        tfopt.from_folder(tmp_path, (8, 8), on_bad="skip")
