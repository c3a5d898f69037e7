"""The files below a folder, or in a ZIP archive."""

import dataclasses
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable

import tensorflow as tf

from tfopt.config import require

# Above the largest image that is decoded: the archive's own word on sizes is checked before memory is spent.
_MOST_BYTES = 512 * 2**20


@dataclasses.dataclass(frozen=True)
class Tree:
    """Files by their paths relative to `root`, with "/" between the parts, in rising order of the parts.

    Args:
      root: a folder or a ZIP archive.
      files: paths of the files; hidden ones are left out.
      folders: paths of the folders.
      archive: the open archive, where `root` is one.
      top: the folder in the archive that holds all; with "/" at its end.
    """

    root: pathlib.Path
    files: tuple[str, ...]
    folders: tuple[str, ...]
    archive: zipfile.ZipFile | None = None
    top: str = ""

    def content(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
          OSError: with the reason, where it cannot be read.
        """
        if self.archive is None:
            return (self.root / name).read_bytes()
        size = self.archive.getinfo(self.top + name).file_size
        if size > _MOST_BYTES:
            raise OSError(0, f"it unpacks to {size:,} bytes, more than {_MOST_BYTES:,}")
        try:
            return self.archive.read(self.top + name)
        # A wrong checksum, damaged compression, a kind of compression that Python lacks, a password.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(0, str(error)) from error

    def load(self, name: tf.Tensor) -> tf.Tensor:
        """The bytes of a file, in a tf.data pipeline."""
        if self.archive is None:
            return tf.io.read_file(tf.strings.join([f"{self.root}{os.sep}", name]))
        content = tf.numpy_function(lambda each: self.content(each.decode()), [name], tf.string, stateful=False)
        content.set_shape(())
        return content


def open_tree(path: pathlib.Path) -> Tree:
    """Lists a folder or a ZIP archive; one folder that holds all folders of an archive counts as its root.

    Raises:
      FileNotFoundError: neither is there.
      ValueError: the archive is damaged, or the name of a file is not UTF-8.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        return _archive(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: give one with a folder of images for each class")
    files, folders = list[str](), list[str]()
    for parent, _, names in os.walk(path, followlinks=True):
        below = pathlib.Path(parent).relative_to(path)
        folders.append(below.as_posix())
        files.extend((below / name).as_posix() for name in names)
    for name in files:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the name {name!a} in {path} is not UTF-8: rename it") from error
    return Tree(path, _visible(files), _visible(each for each in folders if each != "."))


def _archive(path: pathlib.Path) -> Tree:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} cannot be read as a ZIP archive: {error}") from error
    files = _visible(each.filename for each in archive.infolist() if not each.is_dir())
    parents = {parent.as_posix() for name in files for parent in pathlib.PurePosixPath(name).parents}
    named = {each.filename.rstrip("/") for each in archive.infolist() if each.is_dir()}
    folders = _visible((parents | named) - {"."})
    require(bool(files), f"there are no files in {path}")
    tops = {name.partition("/")[0] for name in (*files, *folders)}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""
    # The only folder of an archive is that of its only class, unless it holds folders itself.
    if not any(name.startswith(top) for name in folders):
        top = ""
    files, folders = (
        tuple(name.removeprefix(top) for name in names if name.startswith(top)) for names in (files, folders)
    )
    return Tree(path, files, folders, archive, top)


def _visible(names: Iterable[str]) -> tuple[str, ...]:
    parts = [name.split("/") for name in names]
    shown = [each for each in parts if each[0] != "__MACOSX" and not any(part.startswith(".") for part in each)]
    return tuple("/".join(each) for each in sorted(shown))
